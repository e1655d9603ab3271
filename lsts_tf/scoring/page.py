"""Pictures of scores, and a page that shows them.

Takes what `scores.json` holds and the scores of each frame. The page is one
file: pictures are inside it, and it loads nothing.
"""

import base64
from collections.abc import Callable, Mapping
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
from lsts_tf.scoring import summary


def write(
    folder: pathlib.Path,
    result: Mapping[str, Any],
    models: Mapping[str, pd.DataFrame],
) -> None:
    """Draws by_video.png, over_time.png, and scores.html, which has both.

    Args:
        folder: Is made if need be.
        result: What `scores.json` holds.
        models: {name: scores of its frames}.
    """
    folder.mkdir(parents=True, exist_ok=True)
    pictures = {}
    for name, title, draw in (
        ("by_video", "mean of each video", _by_video),
        (
            "over_time",
            "mean over videos at each frame; band: middle half",
            _over_time,
        ),
    ):
        path = folder / f"{name}.png"
        figure = _figure(models, draw)
        figure.savefig(path, dpi=100, metadata={"Software": None})
        pyplot.close(figure)
        pictures[title] = base64.b64encode(path.read_bytes()).decode()
    files.write_text(folder / "scores.html", page(result, pictures))


def page(result: Mapping[str, Any], pictures: Mapping[str, str]) -> str:
    """The page, as HTML, with {title: PNG in base 64}."""
    statistic = result["statistic"]
    scores = summary.table(summary.rows(result), statistic)
    tables = {statistic.replace("_", " "): scores.to_html()}
    for metric, found in result.get("comparison", {}).items():
        pairs = pd.DataFrame(found["pairs"])
        tables[metric] = pairs.to_html(
            index=False, float_format="{:.4f}".format
        )
    about = {
        key: value
        for key, value in result.items()
        if not isinstance(value, dict) or key in ("ground_truth", "missing")
    }
    template = pathlib.Path(__file__).with_name("page.html").read_text()
    return jinja2.Template(template, autoescape=True).render(
        note=result["note"],
        tables=tables,
        pictures=pictures,
        about=json.dumps(about, indent=2),
    )


def _figure(
    models: Mapping[str, pd.DataFrame],
    draw: Callable[[Any, str, pd.DataFrame, str], None],
) -> Any:
    """A column of axes, one for each metric, with a colour for each model."""
    metrics = summary.metrics_of(next(iter(models.values())))
    figure, axes = pyplot.subplots(
        len(metrics),
        figsize=(11, 2.2 * len(metrics) + 0.8),
        squeeze=False,
        layout="constrained",
    )
    for metric, ax in zip(metrics, axes[:, 0], strict=True):
        for name, scores in models.items():
            draw(ax, name, scores, metric)
        ax.set_ylabel(metric)
        ax.margins(x=0.01)
    if len(models) > 1:
        axes[0, 0].legend()
    return figure


def _by_video(ax: Any, name: str, scores: pd.DataFrame, metric: str) -> None:
    means = scores.groupby("video")[metric].mean()
    ax.plot(means.index, means, "o", label=name)
    ax.set_xlabel("video")


def _over_time(ax: Any, name: str, scores: pd.DataFrame, metric: str) -> None:
    groups = scores.groupby("frame")[metric]
    means, bands = (
        groups.mean(),
        groups.quantile(np.array([0.25, 0.75])).unstack(),
    )
    (line,) = ax.plot(means.index + 1, means, label=name)
    colour = {"alpha": 0.15, "color": line.get_color()}
    ax.fill_between(means.index + 1, *bands.T.to_numpy(), **colour)
    ax.set_xlabel("frame")
