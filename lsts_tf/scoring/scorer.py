"""The scores of frames of a set, wherever their maps come from.

A set is all frames that are scored together. Shuffled AUC takes its negatives
from the set as a whole, so the fixations of all frames are known
(`truth.FixationSet`) before the first is scored. A frame's scores then depend
on its row in the set, its map and its density alone: not on the order, nor on
what is scored beside it.

Maps are [H, W], of any size and type; densities are [H, W] of the size of the
fixations; fixations are int16 [N, 2], (row, column).
"""

import dataclasses
from typing import Any

import numpy as np

from lsts_tf.scoring import density as density_lib
from lsts_tf.scoring import metrics
from lsts_tf.scoring import truth

# Where the negatives of shuffled AUC come from.
_NEGATIVES = {
    "dhf1k": "ten random frames of the scored videos, seeded",
    "paper": "the next frame of the video (of the last, the one before)",
    "aim": "none",
}
_NOTES = {
    "dhf1k": "",
    "paper": "protocol of the LSTS report: not comparable with other papers",
    "aim": "the AIM 2024 and NTIRE 2026 challenges average over videos: "
    "mean_of_videos",
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Settings:
    """How to score.

    Attributes:
        protocol: A key of `metrics.PROTOCOLS`.
        seed: Of the frames that shuffled AUC draws.
        negatives: A map [H, W] for shuffled AUC: its pixels above zero are
            the negatives of all frames. None: see `other_fixations`.
        baseline: A map [H, W] for information gain, of any range, which it
            keeps when it is resized. None: the centre prior.
    """

    protocol: str = "dhf1k"
    seed: int = 0
    negatives: np.ndarray | None = None
    baseline: np.ndarray | None = None

    def __post_init__(self) -> None:
        if self.protocol not in metrics.PROTOCOLS:
            raise ValueError(
                "The protocol must be one of "
                f"{', '.join(metrics.PROTOCOLS)}. Received: {self.protocol!r}"
            )

    @property
    def note(self) -> str:
        """What must stand beside scores of this protocol, or ""."""
        return _NOTES[self.protocol]

    @property
    def statistic(self) -> str:
        """Which mean is shown, ranked and tested; see `summary.STATISTICS`."""
        return "mean_of_videos" if self.protocol == "aim" else "mean"

    @property
    def other_fixations(self) -> str:
        """Where the negatives of shuffled AUC come from."""
        if self.negatives is not None and self.protocol != "aim":
            return "a fixed map"
        return _NEGATIVES[self.protocol]


class Scorer:
    """Scores frames of a set.

    Attributes:
        fixations: Of all frames of the set.
        metrics: Names of the scores, in their order.
        needs_density: Whether densities are looked at.
    """

    def __init__(
        self,
        fixations: truth.FixationSet,
        settings: Settings | None = None,
    ):
        """Prepares; the settings are those of the benchmark by default."""
        self._settings = settings or Settings()
        self.fixations = fixations
        self.metrics = tuple(metrics.PROTOCOLS[self._settings.protocol])
        self.needs_density = self._settings.protocol != "paper"
        self._baselines: dict[tuple, np.ndarray] = {}
        # The last ones, because several models are scored in turn.
        self._others: tuple[Any, np.ndarray] = None, np.zeros((0, 2), int)

    def score(
        self,
        row: int,
        map_: np.ndarray,
        density: np.ndarray | None = None,
        fixations: np.ndarray | None = None,
    ) -> dict[str, float]:
        """Scores of a frame.

        Args:
            row: Number of the frame in the set.
            map_: Where a model says that people look.
            density: Needed if `needs_density`.
            fixations: In the place of the set's own.

        Returns:
            {metric: number}, NaN where it is not defined.
        """
        if fixations is None:
            fixations = self.fixations[row]
        return metrics.score(
            map_,
            density,
            fixations,
            others=self._negatives(row),
            baseline=self._baseline(self.fixations.size(row)),
            metrics=self.metrics,
            protocol=self._settings.protocol,
        )

    def _negatives(self, row: int) -> np.ndarray:
        fixed = self._settings.negatives
        key = row if fixed is None else self.fixations.size(row)
        if key != self._others[0] and "sauc" in self.metrics:
            self._others = key, self._drawn(row)
        return self._others[1]

    def _drawn(self, row: int) -> np.ndarray:
        size = self.fixations.size(row)
        fixed = self._settings.negatives
        if fixed is not None:
            return truth.scaled(np.argwhere(fixed > 0), fixed.shape, size)
        if self._settings.protocol == "paper":
            drawn = [self.fixations.neighbour(row)]
        else:
            drawn = metrics.other_frames(
                row, len(self.fixations), seed=self._settings.seed
            ).tolist()
        return self.fixations.gathered(drawn, size)

    def _baseline(self, size: tuple[int, int]) -> np.ndarray:
        if size not in self._baselines:
            base = self._settings.baseline
            if base is None:
                map_ = density_lib.centre_prior(*size)
            else:
                # Resizing by cubics leaves the range of the map, which may be
                # negative: logarithms of densities.
                map_ = np.clip(
                    metrics.resize(base, size), base.min(), base.max()
                )
            self._baselines[size] = metrics.distribution(map_)
        return self._baselines[size]
