"""Scores of many frames: means, intervals, comparisons, tables.

Scores are kept for each frame; NaN means that a metric is not defined there
(see `metrics`) and is left out of its mean. The benchmark's figure is the
mean over all frames of all videos ("overall"); the mean of the videos' means
stands beside it, and is the figure of other protocols (`STATISTICS`). Frames
of one video are alike, so confidence intervals come from drawing whole videos;
so do the tests of whether one model is better than another, on the same
frames and the same draws.
"""

from collections.abc import Mapping
from collections.abc import Sequence
import csv
import dataclasses
import itertools
import pathlib
from typing import Any

import numpy as np

RESAMPLES = 1000
# Of the tests, whose least p is 1 / (COMPARISONS + 1).
COMPARISONS = 10_000
# Which mean a figure is: {its key in a summary: that of its interval}.
STATISTICS = {"mean": "ci95", "mean_of_videos": "mean_of_videos_ci95"}
# Metrics of which less is better.
LESS_IS_BETTER = frozenset({"kld"})


@dataclasses.dataclass(frozen=True, kw_only=True)
class Scores:
    """Scores of frames.

    Attributes:
        video: int64 [N], number of each frame's video.
        frame: int64 [N], number of each frame in its video, from 0.
        values: {metric: float64 [N]}.
    """

    video: np.ndarray
    frame: np.ndarray
    values: Mapping[str, np.ndarray]

    @classmethod
    def joined(cls, parts: Sequence["Scores"]) -> "Scores":
        """Several parts, one after the other."""
        return cls(
            video=np.concatenate([p.video for p in parts]),
            frame=np.concatenate([p.frame for p in parts]),
            values={
                name: np.concatenate([p.values[name] for p in parts])
                for name in parts[0].values
            },
        )

    def where(self, chosen: np.ndarray) -> "Scores":
        """The frames for which `chosen`, bool [N], is true."""
        return Scores(
            video=self.video[chosen],
            frame=self.frame[chosen],
            values={k: v[chosen] for k, v in self.values.items()},
        )

    def summary(self, *, seed: int = 0) -> dict[str, dict[str, Any]]:
        """{metric: both means, their 95 % intervals, valid frames}.

        The intervals are the percentile bootstrap over videos; with fewer than
        two videos they are None. A mean of nothing is None, as in JSON.
        """
        return {
            name: {
                "mean": _mean(values),
                "ci95": self._interval(values, seed, "mean"),
                "n_valid": int(np.isfinite(values).sum()),
                "mean_of_videos": _mean(
                    np.array([_nan(m) for m in self._by_video(values)])
                ),
                "mean_of_videos_ci95": self._interval(
                    values, seed, "mean_of_videos"
                ),
            }
            for name, values in self.values.items()
        }

    def by_video(self) -> dict[str, dict[str, float | None]]:
        """{video: {metric: mean over its frames}}."""
        names = list(self.values)
        means = [self._by_video(self.values[name]) for name in names]
        return {
            f"{video:04d}": dict(zip(names, row, strict=True))
            for video, row in zip(
                np.unique(self.video), zip(*means, strict=True), strict=True
            )
        }

    def write_csv(self, path: pathlib.Path) -> None:
        """One line a frame; frames from 1, as in file names; "" for NaN."""
        with path.open("w", newline="", encoding="utf-8") as file:
            writer = csv.writer(file)
            writer.writerow(["video", "frame", *self.values])
            for video, frame, *row in zip(
                self.video.tolist(),
                self.frame.tolist(),
                *(values.tolist() for values in self.values.values()),
                strict=True,
            ):
                writer.writerow(
                    [
                        f"{video:04d}",
                        frame + 1,
                        *("" if v != v else repr(v) for v in row),
                    ]
                )

    def write_parquet(self, path: pathlib.Path) -> None:
        """The same table as Parquet, with numbers for videos."""
        # Costs a second, which only this needs.
        import pyarrow
        import pyarrow.parquet

        table = pyarrow.table(
            {
                "video": self.video,
                "frame": self.frame + 1,
                **{
                    name: pyarrow.array(values, from_pandas=True)
                    for name, values in self.values.items()
                },
            }
        )
        pyarrow.parquet.write_table(table, path)

    def _by_video(self, values: np.ndarray) -> list[float | None]:
        return [
            _mean(values[self.video == video])
            for video in np.unique(self.video)
        ]

    def _interval(
        self, values: np.ndarray, seed: int, statistic: str
    ) -> tuple[float, float] | None:
        videos, place = np.unique(self.video, return_inverse=True)
        sums, counts = _parts(values, place, len(videos), statistic)
        if (counts > 0).sum() < 2:
            return None
        rng = np.random.default_rng(seed)
        drawn = rng.integers(0, len(sums), (RESAMPLES, len(sums)))
        totals = counts[drawn].sum(axis=1)
        means = sums[drawn].sum(axis=1)[totals > 0] / totals[totals > 0]
        low, high = np.quantile(means, [0.025, 0.975])
        return float(low), float(high)


def compare(
    models: Mapping[str, Scores], *, seed: int = 0, statistic: str = "mean"
) -> dict[str, dict[str, Any]]:
    """Which model is better, metric by metric, and whether that is chance.

    Differences are of the means over the frames where both are defined, or
    of the means of the videos over these frames. The p value is that of a
    paired bootstrap: whole videos are drawn, the same for both models; it is
    twice the share of draws in which the difference has the other sign, at
    most 1. It is corrected for the number of pairs by Holm's rule.

    Args:
        models: {name: scores} of the same frames in the same order.
        seed: Of the draws.
        statistic: Which mean is ranked and tested, one of `STATISTICS`.

    Returns:
        {metric: {"ranking": names, the best first, "pairs": [{"better",
        "worse", "difference", "ci95", "p", "p_holm", "frames"}, ...]}}; the
        interval is that of the difference. With fewer than two videos there
        are no "ci95" and "p" (None).

    Raises:
        ValueError: Fewer than two models, or of different frames, or another
            statistic.
    """
    _check_statistic(statistic)
    tables = list(models.values())
    if len(tables) < 2 or any(
        not np.array_equal(getattr(t, key), getattr(tables[0], key))
        for t in tables
        for key in ("video", "frame")
    ):
        raise ValueError(
            "At least two models with scores of the same frames are compared. "
            f"Received: { {n: len(t.frame) for n, t in models.items()} } frames"
        )
    videos, place = np.unique(tables[0].video, return_inverse=True)
    rng = np.random.default_rng(seed)
    drawn = rng.integers(0, len(videos), (COMPARISONS, len(videos)))
    # How often each video is in each draw: sums are then products.
    weights = np.zeros((COMPARISONS, len(videos)))
    np.add.at(weights, (np.arange(COMPARISONS)[:, None], drawn), 1.0)
    result = {}
    for metric in tables[0].values:
        sign = -1.0 if metric in LESS_IS_BETTER else 1.0
        means = {
            name: _nan(
                _figure(table.values[metric], place, len(videos), statistic)
            )
            for name, table in models.items()
        }
        ranking = sorted(
            models,
            key=lambda name: (np.isnan(means[name]), -sign * means[name]),
        )
        pairs = []
        for better, worse in itertools.combinations(ranking, 2):
            difference = (
                models[better].values[metric] - models[worse].values[metric]
            )
            pairs.append(
                {
                    "better": better,
                    "worse": worse,
                    **_tested(difference, sign, place, weights, statistic),
                }
            )
        _correct(pairs)
        result[metric] = {"ranking": ranking, "pairs": pairs}
    return result


def _parts(
    values: np.ndarray, place: np.ndarray, size: int, statistic: str
) -> tuple[np.ndarray, np.ndarray]:
    """Of each video a sum and a count [size], whose quotient is a mean.

    Sums over some videos, divided, are the mean of the frames of these videos,
    or of the means of those in which a frame is defined.
    """
    valid = np.isfinite(values)
    sums = np.bincount(place, np.where(valid, values, 0.0), size)
    counts = np.bincount(place, valid, size)
    if statistic == "mean_of_videos":
        return sums / np.maximum(counts, 1.0), (counts > 0).astype(np.float64)
    return sums, counts


def _figure(
    values: np.ndarray, place: np.ndarray, size: int, statistic: str
) -> float | None:
    if statistic == "mean":
        return _mean(values)
    means, counts = _parts(values, place, size, statistic)
    return _mean(means[counts > 0])


def _tested(
    difference: np.ndarray,
    sign: float,
    place: np.ndarray,
    weights: np.ndarray,
    statistic: str,
) -> dict[str, Any]:
    """Mean, interval and p value of a difference of frames [N]."""
    size = weights.shape[1]
    sums, counts = _parts(difference, place, size, statistic)
    found: dict[str, Any] = {
        "difference": _figure(difference, place, size, statistic),
        "ci95": None,
        "p": None,
        "frames": int(np.isfinite(difference).sum()),
    }
    if (counts > 0).sum() < 2:
        return found
    totals = weights @ counts
    means = (weights @ sums)[totals > 0] / totals[totals > 0]
    low, high = np.quantile(means, [0.025, 0.975])
    # The frames on which both are defined may turn a ranking round.
    if found["difference"] * sign < 0:
        sign = -sign
    other_sign = (sign * means <= 0).sum()
    found["ci95"] = float(low), float(high)
    found["p"] = float(min(1.0, 2 * (other_sign + 1) / (means.size + 1)))
    return found


def _correct(pairs: list[dict[str, Any]]) -> None:
    """Adds Holm's "p_holm": the least first, times how many are left."""
    tested = sorted(
        (p for p in pairs if p["p"] is not None), key=lambda pair: pair["p"]
    )
    least = 0.0
    for rank, pair in enumerate(tested):
        least = max(least, min(1.0, pair["p"] * (len(tested) - rank)))
        pair["p_holm"] = least
    for pair in pairs:
        pair.setdefault("p_holm", None)


def _check_statistic(statistic: str) -> None:
    if statistic not in STATISTICS:
        raise ValueError(
            f"A statistic is one of {', '.join(STATISTICS)}. "
            f"Received: {statistic!r}"
        )


def _mean(values: np.ndarray) -> float | None:
    valid = values[np.isfinite(values)]
    return float(valid.mean()) if len(valid) else None


def _nan(value: float | None) -> float:
    return np.nan if value is None else value


def centre_prior(height: int, width: int) -> np.ndarray:
    """A map that looks at the middle: the baseline that looks at no frame.

    A Gaussian whose standard deviation is a quarter of each side.

    Returns:
        float64 [height, width], 1 in the middle.
    """

    def bell(length: int) -> np.ndarray:
        x = (np.arange(length) + 0.5) / length - 0.5
        return np.exp(-0.5 * (x / 0.25) ** 2)

    return np.outer(bell(height), bell(width))


def table(
    rows: Mapping[str, Mapping[str, Mapping[str, Any]]],
    statistic: str = "mean",
) -> str:
    """A table for the terminal.

    Args:
        rows: {name of a row: summary}.
        statistic: Which mean it shows, one of `STATISTICS`.

    Returns:
        One line a row; means with four digits, "-" for none. Below the first
        row stands its 95 % interval, if it has one, and below each how many
        frames count, unless they are as many as in the row above. The head
        says so if the means are not those over frames.

    Raises:
        ValueError: Another statistic.
    """
    _check_statistic(statistic)
    names = list(next(iter(rows.values())))
    interval, valid = "95 % interval", "valid frames"
    head = "" if statistic == "mean" else statistic.replace("_", " ")
    width = max(map(len, [*rows, interval, head]))
    lines = [f"{head:<{width}}" + "".join(f"{n:>17}" for n in names)]
    shown: list[int | None] = [None] * len(names)
    for number, (title, summary) in enumerate(rows.items()):
        cells = ""
        for name in names:
            mean = summary.get(name, {}).get(statistic)
            cells += f"{'-' if mean is None else f'{mean:.4f}':>17}"
        lines.append(f"{title:<{width}}{cells}")
        ranges = [
            summary.get(name, {}).get(STATISTICS[statistic]) for name in names
        ]
        if number == 0 and any(ranges):
            cells = "".join(
                f"{'{:.4f}..{:.4f}'.format(*r) if r else '-':>17}"
                for r in ranges
            )
            lines.append(f"{interval:<{width}}{cells}")
        counts = [summary.get(name, {}).get("n_valid") for name in names]
        if counts != shown and any(n is not None for n in counts):
            cells = "".join(f"{'-' if n is None else n:>17}" for n in counts)
            lines.append(f"{valid:<{width}}{cells}")
            shown = counts
    return "\n".join(lines)
