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

Several datasets are read as one (`Joint`), whose videos have keys in the place
of numbers: (dataset's name and version, number).
"""

from collections.abc import Collection, Iterator, Mapping, Sequence
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

# A video's number; of several datasets (name and version, number).
Key = Any

# Numbers that a split can hold. Of other datasets it is found out by reading.
_OFFICIAL: Mapping[str, Mapping[str, Collection[int]]] = {
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
        number: Number in the dataset; its key, if there are several.
        fps: Frames a second.
        jpegs: The frames, bytes each.
        maps: PNG bytes of each frame's density map; empty if withheld.
        fixations: PNG bytes of each frame's fixation map; empty if withheld.
    """

    number: Key
    fps: float
    jpegs: tuple[bytes, ...]
    maps: tuple[bytes, ...]
    fixations: tuple[bytes, ...]

    @property
    def num_frames(self) -> int:
        """Number of frames, T."""
        return len(self.jpegs)

    def after(self, lead: Sequence[int]) -> "Video":
        """Without annotation, with the frames of a `Geometry.lead` before it.

        It is this one if there are none.
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

        They are in `metadata.json` of datasets that take long to read.
        """
        known = (self._builder.info.metadata or {}).get("num_frames")
        if known:
            return {
                split: {int(number): frames for number, frames in of.items()}
                for split, of in known.items()
            }
        decoders = tfds.decode.PartialDecoding(
            {"video": True, "num_frames": True}
        )
        return {
            split: {
                int(example["video"]): int(example["num_frames"])
                for example in self._examples(split, decoders)
            }
            for split in self._builder.info.splits
        }

    def _examples(self, split: str, decoders: Any) -> Iterator[Any]:
        """Examples of a split, in order."""
        # One file after the other: whole videos are large to read ahead.
        order = tfds.ReadConfig(interleave_cycle_length=1, try_autocache=False)
        examples = self._builder.as_dataset(
            split=split, decoders=decoders, read_config=order
        )
        try:
            yield from map(tfds.as_numpy, examples)
        except tf.errors.OpError as error:
            why = re.sub(r"^{{.*?}} | \[Op:.*$", "", error.message)
            raise DatasetError(
                f"The split {split} of dataset {self.name} in "
                f"{self._builder.data_dir} is damaged ({why}). "
                "Remove that folder and build the dataset again."
            ) from error

    @functools.cached_property
    def frame_counts(self) -> dict[Key, int]:
        """Frames of each video, by number, in the order of reading."""
        return {
            number: frames
            for counts in self.splits.values()
            for number, frames in counts.items()
        }

    def numbers(
        self, named: Mapping[str, Collection[int]], otherwise: str = ""
    ) -> frozenset[Key]:
        """Numbers of videos that `windows.parse_videos` found.

        Where others are named and this dataset is not, these are all videos
        of the split `otherwise`; none if that is "".
        """
        base = self.name.partition(":")[0]
        if base in named or not named:
            return frozenset(named.get(base, ()))
        return frozenset(self.splits.get(otherwise, ()))

    def parts(self, keys: Collection[Key]) -> list[tuple["Dataset", list[int]]]:
        """Each dataset that has some of these videos, and their numbers."""
        return [(self, list(keys))]

    def choose(
        self,
        numbers: Collection[Key],
        purpose: str,
        geometry: windows.Geometry | None = None,
    ) -> list[Key]:
        """Those of `numbers` that the dataset has, in the order of reading.

        The others are left out, because any part of DHF1K is a dataset; and,
        with a `geometry`, videos that have no window. `purpose` is what they
        are for, in messages.

        Raises:
            DatasetError: Not one of them is there; the dataset is damaged; or
                `geometry` is one of flow, and some are stills.
        """
        there = [n for n in self.frame_counts if n in numbers]
        if not there:
            have = sorted(self.frame_counts)
            raise DatasetError(
                f"Dataset {self.name} has none of the videos for {purpose}. It "
                f"has {len(have)}, from {label(have[0])} to {label(have[-1])}; "
                "choose some of these with --train_videos, --val_videos or "
                "--test_videos."
            )
        if geometry is None:
            return there
        if geometry.first:
            for each, _ in self.parts(there):
                each._check_moving(purpose)
        chosen = [n for n in there if geometry.targets(self.frame_counts[n])]
        if len(chosen) < len(there):
            left_out = (
                f"{len(there) - len(chosen)} of {len(there)} videos for "
                f"{purpose} are shorter than a window"
            )
            if not chosen:
                raise DatasetError(
                    f"Dataset {self.name}: {left_out}. Lower --window, or play "
                    "them backwards before their start with "
                    "--short_clips=mirror."
                )
            logging.warning("%s: %s; left out.", self.name, left_out)
        return chosen

    def _check_moving(self, purpose: str) -> None:
        """Raises if it has stills, whose flow would be zero throughout.

        A shot of one frame among longer ones is a video nevertheless; a
        dataset where all are such holds stills.
        """
        if set(self.frame_counts.values()) == {1}:
            raise DatasetError(
                "A photograph has no motion, so there is no flow to learn or "
                f"predict from. Received: dataset {self.name}, where each "
                f"video has one frame, for {purpose} with the stream flow. "
                "Choose --streams=rgb, or take other datasets."
            )

    def videos(self, numbers: Collection[Key]) -> Iterator[Video]:
        """Stream the videos whose number is in `numbers`, in a fixed order.

        Raises:
            DatasetError: The dataset is damaged.
        """
        wanted = frozenset(numbers)
        decoders = {name: tfds.decode.SkipDecoding() for name in _IMAGES}
        for split in self._builder.info.splits:
            held = _OFFICIAL.get(self._builder.name, {}).get(split, wanted)
            if "splits" in self.__dict__:
                held = self.splits[split]
            if wanted.isdisjoint(held):
                continue
            for example in self._examples(split, decoders):
                if int(example["video"]) in wanted:
                    yield Video(
                        number=int(example["video"]),
                        fps=float(example["fps"]),
                        jpegs=tuple(example["frames"]),
                        maps=tuple(example["maps"]),
                        fixations=tuple(example["fixations"]),
                    )


class Joint(Dataset):
    """Several datasets as one, mixed in the order of reading.

    Args:
        datasets: At least one; no two of the same name.
    """

    def __init__(self, datasets: Sequence[Dataset]) -> None:
        self.datasets = {each.name: each for each in datasets}

    @property
    def name(self) -> str:
        """Names and versions, joined by a plus."""
        return "+".join(self.datasets)

    @functools.cached_property
    def frame_counts(self) -> dict[Key, int]:
        """As of one dataset; each one's videos are spread over the whole.

        The few videos that are open at a time are then of all datasets.
        """
        places = [
            ((place + 0.5) / len(each.frame_counts), index, name, number)
            for index, (name, each) in enumerate(self.datasets.items())
            for place, number in enumerate(each.frame_counts)
        ]
        return {
            (name, number): self.datasets[name].frame_counts[number]
            for _, _, name, number in sorted(places)
        }

    def numbers(
        self, named: Mapping[str, Collection[int]], otherwise: str = ""
    ) -> frozenset[Key]:
        """As of one dataset, of all of them."""
        return frozenset(
            (name, number)
            for name, each in self.datasets.items()
            for number in each.numbers(named, otherwise)
        )

    def parts(self, keys: Collection[Key]) -> list[tuple[Dataset, list[int]]]:
        """Each dataset that has some of these videos, and their numbers."""
        found: dict[str, list[int]] = {}
        for name, number in keys:
            found.setdefault(name, []).append(number)
        return [(self.datasets[name], own) for name, own in found.items()]

    def videos(self, numbers: Collection[Key]) -> Iterator[Video]:
        """As of one dataset."""
        streams = {
            each.name: each.videos(own) for each, own in self.parts(numbers)
        }
        wanted = frozenset(numbers)
        for key in self.frame_counts:
            if key in wanted:
                name, _ = key
                video = next(streams[name])
                yield dataclasses.replace(video, number=(name, video.number))


def number_of(key: Key) -> int:
    """The number that its own dataset gives a video."""
    return key[1] if isinstance(key, tuple) else key


def label(key: Key) -> str:
    """A video in a message: 7, or ucf_sports:7."""
    if not isinstance(key, tuple):
        return str(key)
    return f"{key[0].partition(':')[0]}:{key[1]}"


def open_datasets(names: Sequence[str], data_dir: str = "") -> Dataset:
    """One dataset, or several as one.

    Raises:
        DatasetError: One of them has not been built, or its features are
            others.
    """
    found = [Dataset(name, data_dir) for name in names]
    return found[0] if len(found) == 1 else Joint(found)


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
            f"Dataset {name} has not been built in {root}. Build it with `tfds "
            f"build {base} --manual_dir=FOLDER_OF_ITS_FILES{flag}` in a clone "
            "of this project, or name the folder that holds it with --data_dir."
        )
    return tfds.builder_from_directory(prepared[max(prepared)])
