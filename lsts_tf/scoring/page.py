"""Pictures of scores, and a page that shows them.

Takes what `scores.json` holds and the scores of each frame. The page is one
file: pictures are inside it, and it loads nothing.
"""

import base64
from collections.abc import Iterator
from collections.abc import Mapping
from collections.abc import Sequence
import json
import pathlib
from typing import Any

import jinja2
import matplotlib

# Draws files and needs no screen; before pyplot is imported.
matplotlib.use("Agg")
from matplotlib import pyplot
import numpy as np
import pandas as pd

from lsts_tf.media import files
from lsts_tf.scoring import summary as summary_lib

_MANY = 60
_TITLES = {"mean": "mean over frames", "mean_of_videos": "mean of videos"}


def write(
    folder: pathlib.Path,
    result: Mapping[str, Any],
    models: Mapping[str, pd.DataFrame],
) -> list[pathlib.Path]:
    """Draws everything into a folder.

    Args:
        folder: Is made if need be.
        result: What `scores.json` holds.
        models: {name: scores of its frames}.

    Returns:
        by_video.png, over_time.png, for several models models.png, and
        scores.html, in which they all are.
    """
    folder.mkdir(parents=True, exist_ok=True)
    pictures = {
        "by_video.png": _by_video(models),
        "over_time.png": _over_time(models),
    }
    if len(models) > 1:
        rows = summary_lib.rows(result)
        pictures["models.png"] = _models(rows, result["statistic"])
    paths = []
    for name, figure in pictures.items():
        paths.append(folder / name)
        figure.savefig(paths[-1], dpi=100, metadata={"Software": None})
        pyplot.close(figure)
    files.write_text(folder / "scores.html", page(result, paths))
    return [*paths, folder / "scores.html"]


def _figure(count: int, height: float = 2.2) -> tuple[Any, Sequence[Any]]:
    """A column of axes."""
    figure, axes = pyplot.subplots(
        count, 1, figsize=(11, height * count + 0.8), squeeze=False
    )
    figure.set_layout_engine("constrained")
    return figure, axes[:, 0]


def _by_video(models: Mapping[str, pd.DataFrame]) -> Any:
    """Bars: a video each, a colour for each model."""
    metrics = summary_lib.metrics_of(next(iter(models.values())))
    figure, axes = _figure(len(metrics))
    for metric, ax in zip(metrics, axes, strict=True):
        means = pd.DataFrame(
            {n: s.groupby("video")[metric].mean() for n, s in models.items()}
        )
        means.plot.bar(ax=ax, legend=False, width=0.8, xlabel="")
        ax.set_ylabel(metric)
        step = max(1, len(means) // _MANY)
        ax.set_xticks(
            range(0, len(means), step),
            [f"{video:04d}" for video in means.index[::step]],
            fontsize="x-small",
        )
        ax.margins(x=0.01)
    axes[0].set_title("mean of each video")
    if len(models) > 1:
        axes[0].legend()
    return figure


def _over_time(models: Mapping[str, pd.DataFrame]) -> Any:
    """Mean over videos at each frame, and where half of the videos lie."""
    metrics = summary_lib.metrics_of(next(iter(models.values())))
    figure, axes = _figure(len(metrics))
    for metric, ax in zip(metrics, axes, strict=True):
        for name, scores in models.items():
            groups = scores.dropna(subset=[metric]).groupby("frame")[metric]
            means = groups.mean()
            (line,) = ax.plot(means.index + 1, means, label=name)
            if scores["video"].nunique() > 1:
                low, high = groups.quantile(0.25), groups.quantile(0.75)
                ax.fill_between(
                    means.index + 1,
                    low,
                    high,
                    alpha=0.15,
                    color=line.get_color(),
                )
        ax.set_ylabel(metric)
        ax.margins(x=0.01)
    axes[0].set_title("mean over videos at each frame; band: middle half")
    axes[-1].set_xlabel("frame")
    if len(models) > 1:
        axes[0].legend()
    return figure


def _models(rows: Mapping[str, summary_lib.Summary], statistic: str) -> Any:
    """Means of all rows with their intervals."""
    metrics = list(next(iter(rows.values())))
    figure, axes = _figure(len(metrics), 0.5 + 0.25 * len(rows))
    for metric, ax in zip(metrics, axes, strict=True):
        for place, summary in enumerate(rows.values()):
            mean = summary[metric][statistic]
            if mean is None:
                continue
            ci95 = summary[metric][summary_lib.STATISTICS[statistic]]
            low, high = ci95 or (mean, mean)
            spread = np.maximum([[mean - low], [high - mean]], 0.0)
            ax.errorbar([mean], [place], xerr=spread, fmt="o", capsize=3)
        ax.set_yticks(range(len(rows)), list(rows))
        ax.invert_yaxis()
        ax.set_xlabel(metric)
    axes[0].set_title(f"{_TITLES[statistic]}, 95 % interval over videos")
    return figure


def page(result: Mapping[str, Any], pictures: Sequence[pathlib.Path]) -> str:
    """The page, as HTML."""
    about = {
        key: value
        for key, value in result.items()
        if not isinstance(value, dict) or key in ("ground_truth", "missing")
    }
    template = pathlib.Path(__file__).with_name("page.html").read_text()
    return jinja2.Template(template, autoescape=True).render(
        note=result["note"],
        tables=list(_tables(result)),
        pictures=[
            {
                "title": path.stem.replace("_", " "),
                "data": base64.b64encode(path.read_bytes()).decode(),
            }
            for path in pictures
        ],
        about=json.dumps(about, indent=2),
    )


def _tables(result: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    number, statistic = summary_lib.number, result["statistic"]
    rows = summary_lib.rows(result)
    metrics = list(next(iter(rows.values())))
    lines = []
    for title, summary in rows.items():
        cells = [title]
        for found in (summary[metric] for metric in metrics):
            ci95 = found[summary_lib.STATISTICS[statistic]]
            parts = [number(found[statistic])]
            parts += ["-".join(map(number, ci95))] if ci95 else []
            cells.append("\n".join([*parts, f"n = {found['n_valid']}"]))
        lines.append(cells)
    yield {"heads": [_TITLES[statistic], *metrics], "lines": lines}
    for metric, found in result.get("comparison", {}).items():
        yield {
            "title": metric,
            "heads": ["", "difference", "95 % interval", "p", "p, Holm"],
            "lines": [
                [
                    f"{p['better']} before {p['worse']}",
                    number(p["difference"]),
                    "-".join(map(number, p["ci95"] or (None,))),
                    number(p["p"]),
                    number(p["p_holm"]),
                ]
                for p in found["pairs"]
            ],
        }
