"""The stores of several datasets, read as one.

Each dataset has stores of its own, which know nothing of the others. Here a
video has the number that `dataset.Joint` gives it.
"""

from collections.abc import Mapping
from collections.abc import Sequence
import dataclasses
import pathlib
from typing import Any

import numpy as np

from lsts_tf.features import dataset
from lsts_tf.features import extractor as extractor_lib
from lsts_tf.features import stores


def ready_stores(
    root: pathlib.Path,
    data: dataset.Dataset,
    numbers: Sequence[int],
    extractor: extractor_lib.Extractor,
    *,
    purpose: str,
    **options: Any,
) -> extractor_lib.Stores:
    """Open the stores of one dataset, or of several, and fill them.

    Args:
        root: Folder of the stores of all datasets.
        data: The dataset, or several as one.
        numbers: Videos wanted, numbered as in `data`.
        extractor: What computes what is missing.
        purpose: What they are for, on the progress bar.
        **options: Others of `extractor.ready_stores`, such as `stride`.

    Returns:
        Stores to read from, numbered as `data` is. Of several datasets there
        is no store of flows.

    Raises:
        Exception: As `extractor.fill`.
    """
    if not isinstance(data, dataset.Joint):
        return extractor_lib.ready_stores(
            root,
            data,
            numbers,
            extractor,
            purpose=purpose,
            **options,
        )
    kept = {
        index: extractor_lib.ready_stores(
            root,
            data.parts[index],
            local,
            extractor,
            purpose=f"{purpose}, {data.parts[index].name}",
            **options,
        )
        for index, local in data.by_part(numbers).items()
    }
    first = next(iter(kept.values()))
    return dataclasses.replace(
        first,
        truth=TruthStore({index: part.truth for index, part in kept.items()}),
        flow=None,
        features={
            stream: Store(
                {index: part.features[stream] for index, part in kept.items()}
            )
            for stream in first.features
        },
    )


class _Joint:
    """What stores of several datasets have in common.

    Args:
        parts: {place of a dataset: its store}.
    """

    def __init__(self, parts: Mapping[int, Any]) -> None:
        self._parts = dict(parts)
        # One extractor made all of them, so shape and dtype are the same.
        self.manifest = next(iter(parts.values())).manifest
        self.command = next(iter(parts.values())).command

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self._parts,)

    def __contains__(self, video: int) -> bool:
        index, local = divmod(video, dataset.STEP)
        return index in self._parts and local in self._parts[index]

    def videos(self) -> tuple[int, ...]:
        """As of one store."""
        return tuple(
            index * dataset.STEP + video
            for index, part in sorted(self._parts.items())
            for video in part.videos()
        )

    def _at(self, video: int) -> tuple[Any, int]:
        """The store that has a video, and the video's number there."""
        index, local = divmod(video, dataset.STEP)
        return self._parts[index], local


class Store(_Joint, stores.Store):
    """Stores of records, to be read as one; see `_Joint`."""

    def length(self, video: int) -> int:
        """As of one store."""
        return len(self.targets(video))

    def targets(self, video: int) -> range:
        """As of one store."""
        part, local = self._at(video)
        return part.targets(local)

    def read(self, video: int, indices: Sequence[int]) -> np.ndarray:
        """As of one store."""
        part, local = self._at(video)
        return part.read(local, indices)

    def read_batch(self, pairs: Sequence[tuple[int, int]]) -> np.ndarray:
        """As of one store."""
        places: dict[int, list[int]] = {}
        for place, (video, _) in enumerate(pairs):
            places.setdefault(video // dataset.STEP, []).append(place)
        out = np.empty((len(pairs), *self.shape), self.dtype)
        for index, chosen in places.items():
            out[chosen] = self._parts[index].read_batch(
                [(pairs[k][0] % dataset.STEP, pairs[k][1]) for k in chosen]
            )
        return out


class TruthStore(_Joint, stores.TruthStore):
    """Stores of density and fixation maps, read as one; see `_Joint`."""

    def length(self, video: int) -> int:
        """As of one store."""
        part, local = self._at(video)
        return part.length(local)

    def maps(self, video: int, frames: Sequence[int]) -> np.ndarray:
        """As of one store."""
        part, local = self._at(video)
        return part.maps(local, frames)

    def fixations(self, video: int, frames: Sequence[int]) -> np.ndarray:
        """As of one store."""
        part, local = self._at(video)
        return part.fixations(local, frames)
