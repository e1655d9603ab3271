"""Pictures of scores, and a page that shows them.

Takes what `scores.json` holds and the scores of each frame. The page is one
file: pictures are inside it, and it loads nothing.
"""

import base64
from collections.abc import Mapping
from collections.abc import Sequence
import html
import json
import pathlib
from typing import Any

import matplotlib

# Draws files and needs no screen; before pyplot is imported.
matplotlib.use("Agg")
from matplotlib import pyplot
import numpy as np

from lsts_tf.scoring import scores as scores_lib

_MANY = 60
_TITLES = {"mean": "mean over frames", "mean_of_videos": "mean of videos"}
_STYLE = """
body { font: 15px/1.5 sans-serif; margin: 2em auto; max-width: 75em; }
table { border-collapse: collapse; margin: 1em 0; }
td, th { border-bottom: 1px solid #ccc; padding: .2em .8em; text-align: right; }
td:first-child, th:first-child { text-align: left; }
img { max-width: 100%; }
pre { background: #f4f4f4; overflow: auto; padding: 1em; }
"""


def write(
    folder: pathlib.Path,
    result: Mapping[str, Any],
    models: Mapping[str, scores_lib.Scores],
    rows: Mapping[str, Mapping[str, Any]],
) -> list[pathlib.Path]:
    """Draws everything into a folder.

    Args:
        folder: Is made if need be.
        result: What `scores.json` holds.
        models: {name: scores of its frames}.
        rows: {title: summary} of the table.

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
        pictures["models.png"] = _models(rows, result["statistic"])
    paths = []
    for name, figure in pictures.items():
        paths.append(folder / name)
        figure.savefig(paths[-1], dpi=100, metadata={"Software": None})
        pyplot.close(figure)
    page = folder / "scores.html"
    page.write_text(_page(result, rows, paths), encoding="utf-8")
    return [*paths, page]


def _figure(count: int, height: float = 2.2) -> tuple[Any, Sequence[Any]]:
    """A column of axes."""
    figure, axes = pyplot.subplots(
        count, 1, figsize=(11, height * count + 0.8), squeeze=False
    )
    figure.set_layout_engine("constrained")
    return figure, axes[:, 0]


def _by_video(models: Mapping[str, scores_lib.Scores]) -> Any:
    """Bars: a video each, a colour for each model."""
    first = next(iter(models.values()))
    figure, axes = _figure(len(first.values))
    means = {name: scores.by_video() for name, scores in models.items()}
    videos = list(next(iter(means.values())))
    places = np.arange(len(videos))
    width = 0.8 / len(models)
    for metric, ax in zip(first.values, axes, strict=True):
        for i, (name, table) in enumerate(means.items()):
            heights = [table[v][metric] for v in videos]
            ax.bar(
                places + (i - (len(models) - 1) / 2) * width,
                [np.nan if h is None else h for h in heights],
                width,
                label=name,
            )
        ax.set_ylabel(metric)
        step = max(1, len(videos) // _MANY)
        ax.set_xticks(
            places[::step], videos[::step], rotation=90, fontsize="x-small"
        )
        ax.margins(x=0.01)
    axes[0].set_title("mean of each video")
    if len(models) > 1:
        axes[0].legend()
    return figure


def _over_time(models: Mapping[str, scores_lib.Scores]) -> Any:
    """Mean over videos at each frame, and where half of the videos lie."""
    first = next(iter(models.values()))
    figure, axes = _figure(len(first.values))
    length = int(first.frame.max()) + 1
    _, place = np.unique(first.video, return_inverse=True)
    grid = np.full((place.max() + 1, length), np.nan)
    for metric, ax in zip(first.values, axes, strict=True):
        for name, scores in models.items():
            grid[place, scores.frame] = scores.values[metric]
            at = np.flatnonzero(np.isfinite(grid).any(axis=0))
            (line,) = ax.plot(
                at + 1, np.nanmean(grid[:, at], axis=0), label=name
            )
            if len(grid) > 1 and at.size:
                low, high = np.nanquantile(grid[:, at], [0.25, 0.75], axis=0)
                ax.fill_between(
                    at + 1, low, high, alpha=0.15, color=line.get_color()
                )
        ax.set_ylabel(metric)
        ax.margins(x=0.01)
    axes[0].set_title("mean over videos at each frame; band: middle half")
    axes[-1].set_xlabel("frame")
    if len(models) > 1:
        axes[0].legend()
    return figure


def _models(rows: Mapping[str, Mapping[str, Any]], statistic: str) -> Any:
    """Means of all rows with their intervals."""
    metrics = list(next(iter(rows.values())))
    figure, axes = _figure(len(metrics), 0.5 + 0.25 * len(rows))
    for metric, ax in zip(metrics, axes, strict=True):
        for place, summary in enumerate(rows.values()):
            mean = summary[metric][statistic]
            ci95 = summary[metric][scores_lib.STATISTICS[statistic]]
            if mean is None:
                continue
            spread = [[0.0], [0.0]]
            if ci95:
                spread = [
                    [max(0.0, mean - ci95[0])],
                    [max(0.0, ci95[1] - mean)],
                ]
            ax.errorbar([mean], [place], xerr=spread, fmt="o", capsize=3)
        ax.set_yticks(range(len(rows)), list(rows))
        ax.invert_yaxis()
        ax.set_xlabel(metric)
    axes[0].set_title(f"{_TITLES[statistic]}, 95 % interval over videos")
    return figure


def _page(
    result: Mapping[str, Any],
    rows: Mapping[str, Mapping[str, Any]],
    pictures: Sequence[pathlib.Path],
) -> str:
    about = {
        key: value
        for key, value in result.items()
        if not isinstance(value, dict) or key in ("ground_truth", "missing")
    }
    parts = [
        "<!doctype html><html lang=en><meta charset=utf-8>",
        f"<title>Scores</title><style>{_STYLE}</style><h1>Scores</h1>",
    ]
    if result.get("note"):
        parts.append(f"<p><strong>{html.escape(result['note'])}</strong></p>")
    parts.append(_summary_table(rows, result["statistic"]))
    for metric, found in result.get("comparison", {}).items():
        parts.append(_pair_table(metric, found["pairs"]))
    for path in pictures:
        data = base64.b64encode(path.read_bytes()).decode()
        parts.append(
            f"<h2>{html.escape(path.stem.replace('_', ' '))}</h2>"
            f'<img alt="{html.escape(path.stem)}" '
            f'src="data:image/png;base64,{data}">'
        )
    text = json.dumps(about, indent=2)
    parts.append(f"<h2>what was scored</h2><pre>{html.escape(text)}</pre>")
    return "\n".join(parts) + "</html>\n"


def _summary_table(
    rows: Mapping[str, Mapping[str, Any]], statistic: str
) -> str:
    metrics = list(next(iter(rows.values())))
    lines = []
    for title, summary in rows.items():
        cells = []
        for name in metrics:
            found = summary[name]
            ci95 = found[scores_lib.STATISTICS[statistic]]
            cell = _number(found[statistic])
            if ci95:
                cell += "<br><small>{:.4f}-{:.4f}</small>".format(*ci95)
            cell += f"<br><small>n = {found['n_valid']}</small>"
            cells.append(cell)
        lines.append([html.escape(title), *cells])
    return _table([_TITLES[statistic], *metrics], lines)


def _pair_table(metric: str, pairs: Sequence[Mapping[str, Any]]) -> str:
    lines = [
        [
            f"{html.escape(p['better'])} before {html.escape(p['worse'])}",
            _number(p["difference"]),
            "-".join(map(_number, p["ci95"] or (None,))),
            _number(p["p"]),
            _number(p["p_holm"]),
        ]
        for p in pairs
    ]
    heads = ["", "difference", "95 % interval", "p", "p, Holm"]
    return f"<h2>{html.escape(metric)}</h2>{_table(heads, lines)}"


def _table(heads: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    def row(cells: Sequence[str], tag: str) -> str:
        inside = "".join(f"<{tag}>{cell}</{tag}>" for cell in cells)
        return f"<tr>{inside}</tr>"

    body = "".join(row(line, "td") for line in lines)
    return f"<table>{row(heads, 'th')}{body}</table>"


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.4f}"
