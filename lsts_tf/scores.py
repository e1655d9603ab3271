"""Scores of many frames: means, intervals, tables.

Scores are kept for each frame; NaN means that a metric is not defined there
(see `metrics`) and is left out of its mean. The benchmark's figure is the
mean over all frames of all videos ("overall"); the mean of the videos' means
stands beside it. Frames of one video are alike, so confidence intervals come
from drawing whole videos.
"""

from collections.abc import Mapping
from collections.abc import Sequence
import dataclasses
from typing import Any

import numpy as np

RESAMPLES = 1000


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
        """{metric: mean over frames, 95 % interval, valid frames}.

        The interval is the percentile bootstrap over videos; with fewer than
        two videos it is None. A mean of nothing is None, as in JSON.
        """
        return {
            name: {
                "mean": _mean(values),
                "ci95": self._interval(values, seed),
                "n_valid": int(np.isfinite(values).sum()),
                "mean_of_videos": _mean(
                    np.array([_nan(m) for m in self._by_video(values)])
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

    def _by_video(self, values: np.ndarray) -> list[float | None]:
        return [
            _mean(values[self.video == video])
            for video in np.unique(self.video)
        ]

    def _interval(
        self, values: np.ndarray, seed: int
    ) -> tuple[float, float] | None:
        valid = np.isfinite(values)
        _, place = np.unique(self.video, return_inverse=True)
        sums = np.bincount(place, np.where(valid, values, 0.0))
        counts = np.bincount(place, valid)
        if (counts > 0).sum() < 2:
            return None
        rng = np.random.default_rng(seed)
        drawn = rng.integers(0, len(sums), (RESAMPLES, len(sums)))
        totals = counts[drawn].sum(axis=1)
        means = sums[drawn].sum(axis=1)[totals > 0] / totals[totals > 0]
        low, high = np.quantile(means, [0.025, 0.975])
        return float(low), float(high)


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


def table(rows: Mapping[str, Mapping[str, Mapping[str, Any]]]) -> str:
    """A table for the terminal.

    Args:
        rows: {name of a row: summary}.

    Returns:
        One line a row; means with three to four digits, "-" for none.
    """
    names = list(next(iter(rows.values())))
    width = max(map(len, rows))
    lines = [" " * width + "".join(f"{n:>11}" for n in names)]
    for title, summary in rows.items():
        cells = ""
        for name in names:
            mean = summary.get(name, {}).get("mean")
            cells += f"{'-' if mean is None else f'{mean:.4f}':>11}"
        lines.append(f"{title:<{width}}{cells}")
    return "\n".join(lines)
