"""The scores of frames of a set, wherever their maps come from.

A set is all frames that are scored together. Shuffled AUC takes its negatives
from the set as a whole, so the fixations of all frames are known
(`truth.FixationSet`) before the first is scored. A frame's scores then depend
on its row in the set, its map and its density alone: not on the order, nor on
what is scored beside it.

Maps are [H, W], of any size and type; densities are [H, W] of the size of the
fixations; fixations are int16 [N, 2], (row, column).
"""

from collections.abc import Callable, Sequence
import dataclasses
from typing import Any

import numpy as np
import tqdm

from lsts_tf.scoring import density as density_lib
from lsts_tf.scoring import metrics, truth

# Where the negatives of shuffled AUC come from, if a metric needs them.
_NEGATIVES = {
    "dhf1k": "ten random frames of the scored videos, seeded",
    "paper": "the next frame of the video (of the last, the one before)",
}
_NOTES = {
    "paper": "protocol of the LSTS report: not comparable with other papers",
    "aim": "the AIM 2024 and NTIRE 2026 challenges average over videos: "
    "mean_of_videos",
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Settings:
    """How to score.

    Attributes:
        protocol: A key of `metrics.PROTOCOLS`, or "msu" (`films`).
        seed: Of the frames that shuffled AUC draws.
        negatives: A map [H, W] for shuffled AUC: its pixels above zero are
            the negatives of all frames. None: see `about`.
        baseline: A map [H, W] for information gain, of any range, which it
            keeps when it is resized. None: the centre prior.
    """

    protocol: str = "dhf1k"
    seed: int = 0
    negatives: np.ndarray | None = None
    baseline: np.ndarray | None = None

    def __post_init__(self) -> None:
        given = {"others": self.negatives, "baseline": self.baseline}
        for name, map_ in given.items():
            if map_ is not None and not metrics.uses(name, self.protocol):
                raise ValueError(
                    f"No metric of protocol {self.protocol!r} needs `{name}`. "
                    "Received: a map of it. Leave it out."
                )

    @property
    def about(self) -> dict[str, Any]:
        """What scores record of it.

        "statistic" is the mean that is shown, and "note" what must stand beside
        the scores, or "".
        """
        is_of_videos = self.protocol in ("aim", "msu")
        negatives = _NEGATIVES.get(self.protocol, "none")
        given = "a fixed map"
        return {
            "protocol": self.protocol,
            "seed": self.seed,
            "statistic": "mean_of_videos" if is_of_videos else "mean",
            "other_fixations": negatives if self.negatives is None else given,
            "baseline": "centre prior" if self.baseline is None else given,
            "note": _NOTES.get(self.protocol, ""),
        }


class Scorer:
    """Scores frames of a set.

    Attributes:
        fixations: Of all frames of the set.
        metrics: Names of the scores, in their order.
        needs_density: Whether densities are looked at.
    """

    def __init__(
        self, fixations: truth.FixationSet, settings: Settings = Settings()
    ):
        """Prepares; the settings are those of the benchmark by default."""
        self.fixations, self._settings = fixations, settings
        protocol = settings.protocol
        self.metrics = tuple(metrics.PROTOCOLS[protocol])
        self.needs_density = metrics.uses("density", protocol)
        self._needs_others = metrics.uses("others", protocol)
        self._baselines: dict[tuple, np.ndarray] = {}
        # The last ones, because several models are scored in turn.
        self._others: tuple[Any, np.ndarray | None] = None, None

    def score(
        self,
        row: int,
        map_: np.ndarray,
        density: np.ndarray | None = None,
        fixations: np.ndarray | None = None,
    ) -> dict[str, float]:
        """{metric: number} of a frame of the set, NaN where it is not defined.

        The density is needed if `needs_density`. Fixations, if they are given,
        take the place of the set's own.
        """
        return metrics.score(
            map_,
            density,
            self.fixations[row] if fixations is None else fixations,
            others=self._negatives(row),
            baseline=self._baseline(self.fixations.size(row)),
            metrics=self.metrics,
            protocol=self._settings.protocol,
        )

    def _negatives(self, row: int) -> np.ndarray | None:
        fixed, size = self._settings.negatives, self.fixations.size(row)
        key = row if fixed is None else size
        if self._needs_others and key != self._others[0]:
            if fixed is not None:
                pixels = np.argwhere(fixed > 0)
                found = truth.scaled(pixels, fixed.shape, size)
            else:
                rows = [self.fixations.neighbour(row)]
                if self._settings.protocol != "paper":
                    total, seed = len(self.fixations), self._settings.seed
                    rows = metrics.other_frames(row, total, seed=seed).tolist()
                found = self.fixations.gathered(rows, size)
            self._others = key, found
        return self._others[1]

    def _baseline(self, size: tuple[int, int]) -> np.ndarray:
        if size not in self._baselines:
            map_ = self._settings.baseline
            if map_ is None:
                map_ = density_lib.centre_prior(*size)
            # Resizing by cubics leaves the range of the map, which may be
            # negative: logarithms of densities.
            map_ = np.clip(metrics.resize(map_, size), map_.min(), map_.max())
            self._baselines[size] = metrics.distribution(map_)
        return self._baselines[size]


def score_videos(
    videos: Sequence[Any],
    annotation: Any,
    maps_of: Callable[[Any], np.ndarray],
    settings: Settings,
) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Scores of a model and of the centre prior, a line for each frame.

    Where people looked tells a `features.stores.TruthStore`; `maps_of` gives
    all maps of a video, [T, H, W].
    """
    scorer = Scorer(
        truth.FixationSet.of_maps(
            (video, frame, annotation.fixations(video, [frame])[0])
            for video in videos
            for frame in range(annotation.length(video))
        ),
        settings,
    )
    ours, centre = [], []
    for video in tqdm.tqdm(videos, desc="scoring", unit="video"):
        for frame, map_ in enumerate(maps_of(video)):
            density = annotation.maps(video, [frame])[0]
            prior = density_lib.centre_map(*density.shape)
            row = scorer.fixations.row(video, frame)
            key = {"video": video, "frame": frame}
            ours.append(key | scorer.score(row, map_, density))
            centre.append(key | scorer.score(row, prior, density))
    return ours, centre
