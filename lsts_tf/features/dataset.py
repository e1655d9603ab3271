"""The door to TFDS: what a dataset offers, read by video number.

A dataset is a folder in `data/` whose builder writes one example a video:

* `video`: int64, its number, 1 … 1000 in DHF1K.
* `fps`: float32; `num_frames`: int64, T.
* `frames`: T JPEG images [H, W, 3].
* `maps`, `fixations`: T PNG images [H, W, 1], or none where annotations are
  withheld. H and W are 360 and 640 in DHF1K; elsewhere each video has its own.

Those names are the contract; builder and reader never import each other.
Videos are chosen by number and not by slices of a split, because TFDS hashes
the order: `train[:500]` would not be DHF1K's videos 1 to 500.

Several datasets are read as one (`Joint`): video n of dataset i has the number
i * STEP + n there, so that those of the first keep theirs.
"""

from collections.abc import Collection
from collections.abc import Iterator
from collections.abc import Mapping
from collections.abc import Sequence
import dataclasses
import functools
import pathlib
import re
from typing import Any

from absl import logging
import cv2
import numpy as np
import tensorflow as tf
import tensorflow_datasets as tfds

from lsts_tf import windows

FEATURES = ("video", "fps", "num_frames", "frames", "maps", "fixations")

# Between the numbers of two datasets that are read as one.
STEP = 1_000_000

# Numbers that a split can hold. Of other datasets it is found out by reading.
_OFFICIAL = {
    "dhf1k": {
        "train": range(1, 601),
        "validation": range(601, 701),
        "test": range(701, 1001),
    },
}
_IMAGES = ("frames", "maps", "fixations")


class DatasetError(ValueError):
    """A dataset is missing, or is not what this program reads."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Video:
    """One video, its images still encoded.

    Attributes:
        number: Number in the dataset.
        fps: Frames a second.
        jpegs: The frames, bytes each.
        maps: PNG bytes of each frame's density map; empty if withheld.
        fixations: PNG bytes of each frame's fixation map; empty if withheld.
    """

    number: int
    fps: float
    jpegs: tuple[bytes, ...]
    maps: tuple[bytes, ...]
    fixations: tuple[bytes, ...]

    @property
    def num_frames(self) -> int:
        """Number of frames, T."""
        return len(self.jpegs)

    @property
    def annotated(self) -> bool:
        """Whether it is known where people looked."""
        return bool(self.maps)

    def after(self, lead: Sequence[int]) -> "Video":
        """The video with some of its frames played before it.

        Args:
            lead: Which, in order; see `windows.Geometry.lead`.

        Returns:
            A video without annotation, or this one if `lead` is empty.
        """
        if not lead:
            return self
        before = tuple(self.jpegs[index] for index in lead)
        return dataclasses.replace(
            self, jpegs=before + self.jpegs, maps=(), fixations=()
        )

    def frames(self) -> Iterator[np.ndarray]:
        """Decode the frames one by one: uint8 RGB [H, W, 3]."""
        for index, jpeg in enumerate(self.jpegs):
            frame = cv2.imdecode(
                np.frombuffer(jpeg, np.uint8), cv2.IMREAD_COLOR_RGB
            )
            if frame is None:
                raise DatasetError(
                    f"Frame {index} of video {self.number} cannot be decoded; "
                    "build the dataset again."
                )
            yield frame


class Dataset:
    """A prepared dataset.

    Args:
        name: TFDS name, such as "dhf1k"; a version may follow a colon.
        data_dir: TFDS data folder; empty for TFDS' default.

    Raises:
        DatasetError: It has not been built, or its features are others.
    """

    # (split, what is damaged there), known once it was counted.
    _damages: tuple[tuple[str, str], ...] = ()

    def __init__(self, name: str, data_dir: str = "") -> None:
        self._builder = _open(name, data_dir)
        missing = set(FEATURES) - set(self._builder.info.features)
        if missing:
            raise DatasetError(
                f"Dataset {name} needs the features {', '.join(FEATURES)}. "
                f"Received: one without {', '.join(sorted(missing))}."
            )

    @property
    def name(self) -> str:
        """Name and version, for instance dhf1k:1.0.0."""
        return f"{self._builder.name}:{self._builder.version}"

    @functools.cached_property
    def splits(self) -> dict[str, dict[int, int]]:
        """{split: {number: frames}}, in the order of reading.

        Without what cannot be read; see `damage`.
        """
        found: dict[str, dict[int, int]] = {}
        decoders = tfds.decode.PartialDecoding(
            {"video": True, "num_frames": True}
        )
        for split in self._builder.info.splits:
            found[split] = {}
            for example in self._examples(split, decoders):
                if isinstance(example, DatasetError):
                    self._damages += ((split, str(example)),)
                    continue
                number = int(example["video"])
                found[split][number] = int(example["num_frames"])
        return found

    def damage(self, numbers: Collection[int]) -> str:
        """What is damaged where some of these videos may lie, or "".

        Known once the dataset was counted (`frame_counts`).
        """
        official = _OFFICIAL.get(self.name.partition(":")[0], {})
        wanted = frozenset(numbers)
        found = [
            text
            for split, text in self._damages
            if not wanted.isdisjoint(official.get(split, wanted))
        ]
        return "; ".join(found)

    def _examples(self, split: str, decoders: Any) -> Iterator[Any]:
        """Examples of a split in order, and a DatasetError for each damage.

        What follows a damaged record in its file is lost; the next file is
        read.
        """
        examples = iter(
            self._builder.as_dataset(
                split=split, decoders=decoders, read_config=_in_order()
            )
        )
        stuck = damaged = False
        while True:
            try:
                example = next(examples)
            except StopIteration:
                return
            except tf.errors.OpError as error:
                # A file that cannot be passed by; or, at the end, that there
                # were fewer than promised, which is said by then.
                if stuck or (
                    damaged
                    and isinstance(error, tf.errors.FailedPreconditionError)
                ):
                    return
                stuck = damaged = True
                why = re.sub(r"^{{.*?}} | \[Op:.*$", "", error.message)
                yield DatasetError(
                    f"The split {split} of dataset {self.name} in "
                    f"{self._builder.data_dir} is damaged ({why}). "
                    "Remove that folder and build the dataset again."
                )
                continue
            stuck = False
            yield tfds.as_numpy(example)

    @functools.cached_property
    def frame_counts(self) -> dict[int, int]:
        """Frames of each video, by number, in the order of reading."""
        return {
            number: frames
            for counts in self.splits.values()
            for number, frames in counts.items()
        }

    def numbers(
        self, named: Mapping[str, Collection[int]], otherwise: str = ""
    ) -> frozenset[int]:
        """Numbers of videos of one or several datasets.

        Args:
            named: {dataset without version: numbers}; see
                `windows.parse_videos`.
            otherwise: Split of which a dataset has all videos if `named`
                does not name it, and names others; "" for none.
        """
        base = self.name.partition(":")[0]
        if base in named or not named:
            return frozenset(named.get(base, ()))
        return frozenset(self.splits.get(otherwise, ()))

    def choose(
        self,
        numbers: Collection[int],
        purpose: str,
        geometry: windows.Geometry | None = None,
        *,
        whole: bool = True,
    ) -> list[int]:
        """Videos of the dataset whose number is in `numbers`.

        Args:
            numbers: Wanted numbers; those that the dataset lacks are left
                out, because any part of DHF1K is a dataset.
            purpose: What they are for, in the error.
            geometry: If given, videos that have no window are left out too.
            whole: Whether damage where they may lie is an error. Otherwise
                what cannot be read is left out; see `damage`.

        Returns:
            Numbers in the order of reading.

        Raises:
            DatasetError: Not one of them is there; or `whole`, and the
                dataset is damaged; or `geometry` is one of flow, and some are
                stills.
        """
        there = [n for n in self.frame_counts if n in numbers]
        if whole and (damage := self.damage(numbers)):
            raise DatasetError(damage)
        if not there:
            have = sorted(self.frame_counts)
            raise DatasetError(
                f"Dataset {self.name} has none of the videos for {purpose}. "
                f"It has {len(have)}, from {have[0]} to {have[-1]}; choose "
                "some of these by --train_videos, --val_videos or "
                "--test_videos."
            )
        if geometry is not None and geometry.first:
            self._check_moving(there, purpose)
        chosen = [
            n
            for n in there
            if geometry is None or geometry.targets(self.frame_counts[n])
        ]
        if len(chosen) < len(there):
            left_out = (
                f"{len(there) - len(chosen)} of {len(there)} videos for "
                f"{purpose} are shorter than a window"
            )
            if not chosen:
                raise DatasetError(
                    f"Dataset {self.name}: {left_out}. Lower --window, or "
                    "play them backwards before their start by "
                    "--short_clips=mirror."
                )
            logging.warning("%s: %s; left out.", self.name, left_out)
        return chosen

    def _check_moving(self, numbers: Collection[int], purpose: str) -> None:
        """Raises if these are stills, whose flow would be zero throughout.

        A shot of one frame among longer ones is a video nevertheless; a
        dataset where all are such holds stills.
        """
        if numbers and set(self.frame_counts.values()) == {1}:
            raise DatasetError(
                "A still does not move: it has no flow to learn from or to "
                f"predict by. Received: dataset {self.name}, where each video "
                f"has one frame, for {purpose} with the stream flow. Choose "
                "--streams=rgb, or take other datasets."
            )

    def videos(self, numbers: Collection[int]) -> Iterator[Video]:
        """Stream the videos whose number is in `numbers`, in a fixed order.

        Raises:
            DatasetError: The dataset is damaged. `next` goes on behind it,
                with what can be read.
        """
        return _Videos(self._read(frozenset(numbers)))

    def _read(self, wanted: frozenset[int]) -> Iterator[Video | DatasetError]:
        decoders = {name: tfds.decode.SkipDecoding() for name in _IMAGES}
        for split in self._builder.info.splits:
            if wanted.isdisjoint(self._held(split, wanted)):
                continue
            for example in self._examples(split, decoders):
                if isinstance(example, DatasetError):
                    yield example
                elif int(example["video"]) in wanted:
                    yield Video(
                        number=int(example["video"]),
                        fps=float(example["fps"]),
                        jpegs=tuple(example["frames"]),
                        maps=tuple(example["maps"]),
                        fixations=tuple(example["fixations"]),
                    )

    def _held(self, split: str, unknown: Collection[int]) -> Collection[int]:
        """Numbers that a split can hold, as far as known without reading it."""
        if "splits" in self.__dict__:
            return self.splits[split]
        official = _OFFICIAL.get(self._builder.name, {})
        return official.get(split, unknown)


class _Videos(Iterator[Video]):
    """Raises errors that come in the place of videos, and can go on then."""

    def __init__(self, found: Iterator[Video | DatasetError]) -> None:
        self._found = found

    def __next__(self) -> Video:
        video = next(self._found)
        if isinstance(video, DatasetError):
            raise video
        return video


class Joint(Dataset):
    """Several datasets as one, mixed in the order of reading.

    Args:
        parts: At least one.
    """

    def __init__(self, parts: Sequence[Dataset]) -> None:
        self.parts = tuple(parts)

    @property
    def name(self) -> str:
        """Names and versions, joined by a plus."""
        return "+".join(part.name for part in self.parts)

    @functools.cached_property
    def splits(self) -> dict[str, dict[int, int]]:
        """As of one dataset; of each split, that of all parts."""
        found: dict[str, dict[int, int]] = {}
        for index, part in enumerate(self.parts):
            for split, counts in part.splits.items():
                found.setdefault(split, {}).update(
                    {_joint(index, n): t for n, t in counts.items()}
                )
        return found

    @functools.cached_property
    def frame_counts(self) -> dict[int, int]:
        """As of one dataset; each part's videos are spread over the whole.

        The few videos that are open at a time are then of all datasets.
        """
        places = [
            ((place + 0.5) / len(part.frame_counts), index, number)
            for index, part in enumerate(self.parts)
            for place, number in enumerate(part.frame_counts)
        ]
        return {
            _joint(index, number): self.parts[index].frame_counts[number]
            for _, index, number in sorted(places)
        }

    def numbers(
        self, named: Mapping[str, Collection[int]], otherwise: str = ""
    ) -> frozenset[int]:
        """As of one dataset, of all parts."""
        return frozenset(
            _joint(index, number)
            for index, part in enumerate(self.parts)
            for number in part.numbers(named, otherwise)
        )

    def damage(self, numbers: Collection[int]) -> str:
        """As of one dataset, of all parts."""
        found = (
            self.parts[index].damage(local)
            for index, local in self.by_part(numbers).items()
        )
        return "; ".join(filter(None, found))

    def _check_moving(self, numbers: Collection[int], purpose: str) -> None:
        """As of one dataset, of all parts."""
        for index, local in self.by_part(numbers).items():
            self.parts[index]._check_moving(local, purpose)

    def by_part(self, numbers: Collection[int]) -> dict[int, list[int]]:
        """{place of a part: numbers that its videos have there}."""
        found: dict[int, list[int]] = {}
        for number in numbers:
            found.setdefault(number // STEP, []).append(number % STEP)
        return found

    def videos(self, numbers: Collection[int]) -> Iterator[Video]:
        """As of one dataset."""
        streams = {
            index: self.parts[index].videos(local)
            for index, local in self.by_part(numbers).items()
        }
        wanted = frozenset(numbers)
        for number in self.frame_counts:
            if number in wanted:
                index = number // STEP
                video = next(streams[index])
                yield dataclasses.replace(
                    video, number=_joint(index, video.number)
                )


def open_datasets(names: Sequence[str], data_dir: str = "") -> Dataset:
    """One dataset, or several as one.

    Raises:
        DatasetError: One of them has not been built, or its features are
            others.
    """
    parts = [Dataset(name, data_dir) for name in names]
    return parts[0] if len(parts) == 1 else Joint(parts)


def _joint(index: int, number: int) -> int:
    if not 0 <= number < STEP:
        raise DatasetError(
            f"Datasets that are read as one have numbers below {STEP}. "
            f"Received: {number}"
        )
    return index * STEP + number


def _in_order() -> tfds.ReadConfig:
    """One file after the other: whole videos are large to read ahead."""
    return tfds.ReadConfig(interleave_cycle_length=1, try_autocache=False)


def _open(name: str, data_dir: str) -> tfds.core.DatasetBuilder:
    """The builder of a prepared dataset; none of its code is needed."""
    base, _, version = name.partition(":")
    root = pathlib.Path(data_dir or tfds.core.constants.DATA_DIR).expanduser()
    prepared = {
        tuple(map(int, folder.name.split("."))): folder
        for folder in root.glob(f"{base}/*")
        if re.fullmatch(r"\d+\.\d+\.\d+", folder.name)
        and version in ("", folder.name)
        and (folder / "dataset_info.json").is_file()
    }
    if not prepared:
        flag = f" --data_dir={data_dir}" if data_dir else ""
        raise DatasetError(
            f"Dataset {name} has not been built in {root}. Build it with "
            f"`tfds build {base} --manual_dir=FOLDER_OF_ITS_FILES{flag}`, or "
            "name the folder that holds it by --data_dir."
        )
    return tfds.builder_from_directory(prepared[max(prepared)])
