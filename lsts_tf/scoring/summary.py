"""From scores of frames to means, intervals, comparisons and tables.

Scores are a table (pandas) with a line for each frame: `video`, `frame` (from
0) and a column for each metric. NaN means that a metric is not defined there
(see `metrics`) and is left out of its mean. The benchmark's figure is the mean
over all frames of all videos ("mean"); the mean of the videos' means stands
beside it, and is the figure of other protocols (`STATISTICS`). Frames of one
video are alike, so confidence intervals come from drawing whole videos; so do
the tests of whether one model is better than another, on the same frames and
the same draws.
"""

from collections.abc import Mapping, Sequence
import functools
import itertools
import json
import pathlib
from typing import Any

import numpy as np
import pandas as pd

from lsts_tf.media import files
from lsts_tf.scoring import metrics, scorer

RESAMPLES = 1000
# Of the tests, whose least p is 2 / (COMPARISONS + 1).
COMPARISONS = 10_000
# Which mean a figure is: {its key in a summary: that of its interval}.
STATISTICS = {"mean": "ci95", "mean_of_videos": "mean_of_videos_ci95"}
_LESS_IS_BETTER = {
    name
    for table in metrics.PROTOCOLS.values()
    for name, metric in table.items()
    if metric.less_is_better
}
CENTRE_TITLE = "centre prior"

Summary = dict[str, dict[str, Any]]


def metrics_of(scores: pd.DataFrame) -> list[str]:
    """Names of the metrics of a table of scores."""
    return [str(name) for name in scores if name not in ("video", "frame")]


# === One model ===


def summary(scores: pd.DataFrame, *, seed: int = 0) -> Summary:
    """{metric: both means, their 95 % intervals, valid frames}.

    The intervals are the percentile bootstrap over videos; with fewer than
    two videos they are None. A mean of nothing is None, as in JSON.
    """
    found: Summary = {}
    for name in metrics_of(scores):
        found[name] = {"n_valid": int(scores[name].count())}
        for statistic, interval in STATISTICS.items():
            mean, between, _ = _bootstrap(scores, name, statistic, seed=seed)
            found[name] |= {statistic: mean, interval: between}
    return found


def by_video(scores: pd.DataFrame) -> dict[Any, Any]:
    """{video: {metric: mean over its frames}}."""
    means = scores.groupby("video")[metrics_of(scores)].mean()
    means.index = means.index.map("{:04d}".format)
    return means.astype(object).where(means.notna(), None).to_dict("index")


def report(
    ours: pd.DataFrame,
    centre: pd.DataFrame,
    *,
    first_frames: int,
    scoring: scorer.Settings,
    about: Mapping[str, Any],
    observers: pd.DataFrame | None = None,
    filled_by: str = "",
) -> dict[str, Any]:
    """What `scores.json` holds about one model.

    Args:
        ours: The model's scores.
        centre: Those of the centre prior, on the same frames.
        first_frames: How many frames of each video are also scored apart.
        scoring: How it was scored.
        about: More keys; its "note" stands beside that of the protocol.
        observers: Scores of one observer by the others, if they are known.
        filled_by: What the first frames got instead of maps of their own.
    """
    of = functools.partial(summary, seed=scoring.seed)
    is_early = ours["frame"] < first_frames
    result = {
        **scoring.about,
        **about,
        "frames": len(ours),
        "overall": of(ours),
        "first_frames": {
            "number": first_frames,
            **({"filled_by": filled_by} if filled_by else {}),
            "first": of(ours[is_early]),
            "rest": of(ours[~is_early]),
            "rest_centre_prior": of(centre[centre["frame"] >= first_frames]),
        },
        "centre_prior": of(centre),
        "by_video": by_video(ours),
    }
    notes = about.get("note"), scoring.about["note"]
    result["note"] = "; ".join(filter(None, notes))
    if observers is not None:
        result["inter_observer"] = of(observers)
    return result


# === Several models ===


def joint_report(
    reports: Mapping[str, dict[str, Any]],
    models: Mapping[str, pd.DataFrame],
) -> dict[str, Any]:
    """What `scores.json` holds about all models: the best's, and all's."""
    first = next(iter(reports.values()))
    if len(reports) == 1:
        return first
    same = {key: first[key] for key in ("seed", "statistic")}
    comparison = compare(models, **same)
    best = next(iter(comparison.values()))["ranking"][0]
    several = {"best": best, "models": reports, "comparison": comparison}
    return reports[best] | several


def compare(
    models: Mapping[str, pd.DataFrame],
    *,
    seed: int = 0,
    statistic: str = "mean",
) -> dict[str, dict[str, Any]]:
    """Which model is better, metric by metric, and whether that is chance.

    Differences are of the means over the frames where both are defined, or
    of the means of the videos over these frames. The p value is that of a
    paired bootstrap: whole videos are drawn, the same for both models; it is
    twice the share of draws in which the difference has the other sign, at
    most 1. It is corrected for the number of pairs by Holm's rule.

    Models are {name: scores} of the same frames in the same order. One mean of
    `STATISTICS` is ranked and tested.

    Returns:
        {metric: {"ranking": names, the best first, "pairs": [{"better",
        "worse", "difference", "ci95", "p", "p_holm", "frames"}, ...]}}; the
        interval is that of the difference. With fewer than two videos there
        are no "ci95" and "p" (None).
    """
    first = next(iter(models.values()))
    result = {}
    for metric in metrics_of(first):
        sign = -1.0 if metric in _LESS_IS_BETTER else 1.0
        means = {}
        for name, table in models.items():
            mean, *_ = _bootstrap(table, metric, statistic, seed=seed)
            means[name] = -np.inf if mean is None else sign * mean
        ranking = sorted(models, key=means.__getitem__, reverse=True)
        pairs = []
        for better, worse in itertools.combinations(ranking, 2):
            difference = first[["video"]].assign(
                difference=models[better][metric] - models[worse][metric]
            )
            tested = _tested(difference, seed, statistic)
            pairs.append({"better": better, "worse": worse, **tested})
        # Holm's rule: the least first, times how many are left.
        p = pd.Series([pair["p"] for pair in pairs], dtype=np.float64)
        p = p.dropna().sort_values(kind="stable")
        holm = (p * np.arange(len(p), 0, -1)).clip(upper=1.0).cummax()
        for row, pair in enumerate(pairs):
            pair["p_holm"] = holm.get(row)
        result[metric] = {"ranking": ranking, "pairs": pairs}
    return result


def _tested(table: pd.DataFrame, seed: int, statistic: str) -> dict[str, Any]:
    """Mean, interval and p value of the column "difference"."""
    mean, between, means = _bootstrap(
        table, "difference", statistic, seed=seed, draws=COMPARISONS
    )
    p = None
    if mean is not None and means is not None:
        # The frames on which both are defined may turn a ranking round.
        other_sign = (np.copysign(1.0, mean) * means <= 0).sum()
        p = float(min(1.0, 2 * (other_sign + 1) / (means.size + 1)))
    count = int(table["difference"].count())
    return {"difference": mean, "ci95": between, "p": p, "frames": count}


# === The bootstrap over videos ===


def _bootstrap(
    scores: pd.DataFrame,
    name: str,
    statistic: str,
    *,
    seed: int,
    draws: int = RESAMPLES,
) -> tuple[float | None, tuple[float, float] | None, np.ndarray | None]:
    """The mean of a metric, its 95 % interval, and the means that it is of.

    These are of videos drawn with replacement. A mean of nothing is None; so
    are interval and draws of fewer than two videos.
    """
    # The sum of some videos' sums, divided by that of their counts, is the mean
    # over their frames, or the mean of the means of those videos in which a
    # frame is defined.
    groups = scores.groupby("video")[name]
    sums, counts = groups.sum().to_numpy(), groups.count().to_numpy(np.float64)
    if statistic == "mean_of_videos":
        sums, counts = sums / np.maximum(counts, 1.0), np.minimum(counts, 1.0)
    if not counts.any():
        return None, None, None
    mean = float(sums.sum() / counts.sum())
    if np.count_nonzero(counts) < 2:
        return mean, None, None
    weights = _weights(len(counts), draws, seed)
    totals = weights @ counts
    # No frame of the drawn videos may be defined.
    means = (weights @ sums)[totals > 0] / totals[totals > 0]
    low, high = np.quantile(means, [0.025, 0.975]).tolist()
    return mean, (low, high), means


@functools.lru_cache(maxsize=2)
def _weights(videos: int, draws: int, seed: int) -> np.ndarray:
    """How often each video is in each draw, [draws, videos]."""
    drawn = np.random.default_rng(seed).integers(0, videos, (draws, videos))
    places = drawn + videos * np.arange(draws)[:, None]
    counts = np.bincount(places.ravel(), minlength=draws * videos)
    return counts.reshape(draws, videos).astype(np.float64)


# === Tables ===


def write(
    path: pathlib.Path,
    result: Mapping[str, Any],
    models: Mapping[str, pd.DataFrame],
    kinds: Sequence[str],
) -> None:
    """Writes tables of all frames, and last `scores.json`, which is `path`.

    Tables are `scores.csv` beside it, of several models `scores.NAME.csv`;
    frames are numbered from 1 in them. Their kinds are "csv", which has videos
    as in names of files ("0601"), "parquet", which has them as numbers, and
    "none".
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    for name, scores in models.items():
        scores = scores.assign(frame=scores["frame"] + 1)
        titled = scores.assign(video=scores["video"].map("{:04d}".format))
        model = f".{name}" if len(models) > 1 else ""
        writers: dict[str, Any] = {
            "csv": titled.to_csv,
            "parquet": scores.to_parquet,
        }
        for kind in set(kinds) - {"none"}:
            beside = path.with_name(f"{path.stem}{model}.{kind}")
            with files.replacing(beside) as temporary:
                writers[kind](temporary, index=False)
    files.write_text(path, json.dumps(result, indent=2, allow_nan=False) + "\n")


def rows(result: Mapping[str, Any]) -> dict[str, Summary]:
    """{title: summary} of the table of what `scores.json` holds."""
    if "models" in result:
        ranking = next(iter(result["comparison"].values()))["ranking"]
        found = {name: result["models"][name]["overall"] for name in ranking}
    else:
        first = result["first_frames"]
        copied = " (copied)" if "filled_by" in first else ""
        found = {
            "all frames": result["overall"],
            f"first {first['number']}{copied}": first["first"],
            "the rest": first["rest"],
            f"{CENTRE_TITLE}, the rest": first["rest_centre_prior"],
        }
    found[CENTRE_TITLE] = result["centre_prior"]
    if "inter_observer" in result:
        found["other observers"] = result["inter_observer"]
    return found


def table(
    summaries: Mapping[str, Summary], statistic: str = "mean"
) -> pd.DataFrame:
    """What people read of {name of a row: summary}, as texts.

    One line a row: a mean of `STATISTICS` with four digits, "-" for none. Below
    the first row stands its 95 % interval, if it has one, and below each how
    many frames count, unless they are as many as in the row above. The head
    says so if the means are not those over frames.
    """
    names = list(next(iter(summaries.values())))
    lines: list[list[str]] = []
    counts: list[str] = []
    for title, found in summaries.items():
        each = [found[name] for name in names]
        lines.append([title, *(_number(of[statistic]) for of in each)])
        ranges = [of[STATISTICS[statistic]] for of in each]
        if len(lines) == 1 and any(ranges):
            cells = ["..".join(map(_number, r or (None,))) for r in ranges]
            lines.append(["95 % interval", *cells])
        shown, counts = counts, [str(of["n_valid"]) for of in each]
        if counts != shown:
            lines.append(["valid frames", *counts])
    frame = pd.DataFrame(lines, columns=["", *names]).set_index("")
    frame.index.name = None
    if statistic != "mean":
        frame.columns.name = statistic.replace("_", " ")
    return frame


def text(result: Mapping[str, Any]) -> str:
    """What the terminal shows of what `scores.json` holds."""
    scores = table(rows(result), result["statistic"])
    lines = [scores.to_string(line_width=10_000)]
    for metric, found in result.get("comparison", {}).items():
        chance = [
            f"{p['better']} > {p['worse']}: p = {p['p_holm']:.4f}"
            for p in found["pairs"]
            if p["p_holm"] is not None
        ]
        lines.append(
            f"{metric}: {' > '.join(found['ranking'])}   {'; '.join(chance)}"
        )
    missing = result.get("missing", {})
    if missing.get("frames"):
        lines.append(
            f"{missing['frames']} annotated frames were left out, because "
            "maps are missing or cannot be read."
        )
    if result["note"]:
        lines.append(result["note"].upper())
    return "\n".join(lines)


def _number(value: float | None) -> str:
    # "z": the KLD of equal maps, -0.0000 by rounding, is 0.0000.
    return "-" if value is None else f"{value:z.4f}"
