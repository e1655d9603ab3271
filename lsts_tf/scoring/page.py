"""Pictures of scores, and a page that shows them.

Takes what `scores.json` holds and the scores of each frame. The page is one
file: pictures are inside it, and it loads nothing.
"""

import base64
from collections.abc import Mapping
import json
import pathlib
from typing import Any

import jinja2
import matplotlib

# Draws files and needs no screen; before pyplot is imported.
matplotlib.use("Agg")
from matplotlib import pyplot
import pandas as pd

from lsts_tf.media import files
from lsts_tf.scoring import summary


def write(
    folder: pathlib.Path,
    result: Mapping[str, Any],
    models: Mapping[str, pd.DataFrame],
) -> None:
    """Draws by_video.png, over_time.png, and scores.html, which has both.

    Of what `scores.json` holds, and of {name: scores of its frames}. The folder
    is made if need be.
    """
    folder.mkdir(parents=True, exist_ok=True)
    pictures = {}
    for by, name, title in (
        ("video", "by_video", "mean of each video"),
        (
            "frame",
            "over_time",
            "mean over videos at each frame; band: middle half",
        ),
    ):
        path = folder / f"{name}.png"
        _draw(path, models, by)
        pictures[title] = base64.b64encode(path.read_bytes()).decode()
    files.write_text(folder / "scores.html", page(result, pictures))


def page(result: Mapping[str, Any], pictures: Mapping[str, str]) -> str:
    """The page, as HTML, with {title: PNG in base 64}."""
    statistic = result["statistic"]
    scores = summary.table(summary.rows(result), statistic)
    tables = {statistic.replace("_", " "): scores.to_html()}
    for metric, found in result.get("comparison", {}).items():
        pairs = pd.DataFrame(found["pairs"])
        digits = "{:z.4f}".format
        tables[metric] = pairs.to_html(index=False, float_format=digits)
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


def _draw(
    path: pathlib.Path, models: Mapping[str, pd.DataFrame], by: str
) -> None:
    """A column of axes, one for each metric, with a colour for each model."""
    metrics = summary.metrics_of(next(iter(models.values())))
    figure, axes = pyplot.subplots(
        len(metrics),
        figsize=(11, 2.2 * len(metrics) + 0.8),
        squeeze=False,
        layout="constrained",
    )
    for name, scores in models.items():
        groups = scores.groupby(by)
        means = groups[metrics].mean()
        for metric, ax in zip(metrics, axes[:, 0], strict=True):
            if by == "video":
                ax.plot(means.index, means[metric], "o", label=name)
            else:
                x = means.index + 1
                (line,) = ax.plot(x, means[metric], label=name)
                band = (groups[metric].quantile(q) for q in (0.25, 0.75))
                ax.fill_between(x, *band, alpha=0.15, color=line.get_color())
            ax.set(xlabel=by, ylabel=metric)
            ax.margins(x=0.01)
    if len(models) > 1:
        axes[0, 0].legend()
    figure.savefig(path, dpi=100, metadata={"Software": None})
    pyplot.close(figure)
