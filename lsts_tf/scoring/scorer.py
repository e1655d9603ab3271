"""The scores of frames of a set, wherever their maps come from.

A set is all frames that are scored together, numbered through: rows. Shuffled
AUC takes its negatives from the set as a whole, so the fixations of all
frames are known (`fixations.FixationSet`) before the first is scored. A
frame's scores then depend on its row, its map and its density alone: not on
the order, nor on what is scored beside it.

Maps are [H, W] and of any size and type; densities are [H, W] of the size of
the fixations; fixations are int16 [N, 2], (row, column).
"""

from collections.abc import Sequence
from typing import Any

import numpy as np

from lsts_tf.scoring import fixations as fixations_lib
from lsts_tf.scoring import metrics
from lsts_tf.scoring import scores

_KEPT = 64


class Scorer:
    """Scores by one protocol.

    Attributes:
        metrics: Names of the scores, in their order.
        needs_density: Whether densities are looked at.
    """

    def __init__(
        self,
        fixations: fixations_lib.FixationSet,
        *,
        protocol: str = "dhf1k",
        seed: int = 0,
        negatives: np.ndarray | None = None,
        baseline: np.ndarray | None = None,
    ):
        """Prepares; see `metrics` for what the protocols are.

        Args:
            fixations: Of all frames of the set.
            protocol: "dhf1k", "paper" or "aim".
            seed: Of the frames that shuffled AUC draws.
            negatives: A map [H, W] for shuffled AUC: its pixels above zero
                are the negatives of all frames. Default: see
                `jobs.Settings`.
            baseline: A map [H, W] for information gain, of any range, which
                it keeps when it is resized. Default: the centre prior.

        Raises:
            ValueError: An unknown protocol.
        """
        if protocol not in metrics.PROTOCOLS:
            raise ValueError(
                "The protocol must be one of "
                f"{', '.join(metrics.PROTOCOLS)}. Received: {protocol!r}"
            )
        self.fixations = fixations
        self.metrics = metrics.PROTOCOLS[protocol]
        self.needs_density = protocol != "paper"
        self._protocol = protocol
        self._seed = seed
        self._negatives = negatives
        self._baseline = baseline
        self._kept: dict[tuple, np.ndarray] = {}
        self._drawn: dict[tuple, np.ndarray] = {}

    def score(
        self,
        rows: Sequence[int],
        maps: Sequence[np.ndarray],
        densities: Sequence[np.ndarray] | None,
        fixations: Sequence[np.ndarray] | None = None,
    ) -> dict[str, np.ndarray]:
        """Scores of some frames.

        Args:
            rows: Numbers of the frames in the set.
            maps: A map for each.
            densities: A density for each; None if they are not needed.
            fixations: Of each, in the place of the set's own.

        Returns:
            {metric: float64 [len(rows)]}, NaN where it is not defined.
        """
        groups: dict[tuple, list[int]] = {}
        for i, (row, map_) in enumerate(zip(rows, maps, strict=True)):
            key = (map_.shape, map_.dtype.str, self.fixations.size(row))
            groups.setdefault(key, []).append(i)
        result = {name: np.empty(len(rows)) for name in self.metrics}
        for (*_, size), places in groups.items():
            chosen = [rows[i] for i in places]
            points = [
                self.fixations[row] if fixations is None else fixations[i]
                for i, row in zip(places, chosen, strict=True)
            ]
            values = metrics.score(
                np.stack([maps[i] for i in places]),
                None
                if densities is None
                else np.stack([densities[i] for i in places]),
                # As maps, because points do not say their maps' size.
                _as_maps(points, size) if densities is None else points,
                other=[self._kept_others(row, size) for row in chosen],
                baseline=self._of_size("baseline", size),
                metrics=self.metrics,
                protocol=self._protocol,
                seed=self._seed,
                frames=chosen,
            )
            for name in self.metrics:
                result[name][places] = values[name]
        return result

    def _kept_others(self, row: int, size: tuple[int, int]) -> np.ndarray:
        """Of a few frames, because several models are scored in turn."""
        key = (row, size)
        if key not in self._drawn:
            if len(self._drawn) >= _KEPT:
                self._drawn.clear()
            self._drawn[key] = self._others(row, size)
        return self._drawn[key]

    def _others(self, row: int, size: tuple[int, int]) -> np.ndarray:
        if "sauc" not in self.metrics:
            return np.zeros((0, 2), np.int16)
        if self._negatives is not None:
            return self._of_size("negatives", size)
        if self._protocol == "paper":
            drawn = [self.fixations.neighbour(row)]
        else:
            drawn = metrics.other_frames(
                row, len(self.fixations), seed=self._seed
            ).tolist()
        return self.fixations.gathered(drawn, size)

    def _of_size(self, what: str, size: tuple[int, int]) -> np.ndarray:
        """The baseline, or the pixels of the fixed negatives, at a size."""
        key = (what, size)
        if key not in self._kept:
            if what == "negatives":
                self._kept[key] = _scaled_points(self._negatives, size)
            elif self._baseline is None:
                self._kept[key] = scores.centre_prior(*size)
            else:
                # Resizing by cubics leaves the range of the map, which may be
                # negative: logarithms of densities.
                self._kept[key] = np.clip(
                    metrics.resize(self._baseline, size),
                    self._baseline.min(),
                    self._baseline.max(),
                )
        return self._kept[key]


def _scaled_points(map_: Any, size: tuple[int, int]) -> np.ndarray:
    points = np.argwhere(map_ > 0)
    scale = np.array(size) / map_.shape
    return np.floor((points + 0.5) * scale).astype(np.int64)


def _as_maps(points: Sequence[np.ndarray], size: tuple[int, int]) -> np.ndarray:
    fixated = np.zeros((len(points), *size), np.uint8)
    for map_, rows in zip(fixated, points, strict=True):
        map_[tuple(rows.T)] = 1
    return fixated
