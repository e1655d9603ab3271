"""The door to TFDS: what a dataset offers, read by video number.

A dataset is a folder in `data/` whose builder writes one example a video:

* `video`: int64, its number, 1 … 1000 in DHF1K.
* `fps`: float32; `num_frames`: int64, T.
* `frames`: T JPEG images [360, 640, 3].
* `maps`, `fixations`: T PNG images [360, 640, 1], or none where annotations
  are withheld.

Those names are the contract; builder and reader never import each other.
Videos are chosen by number and not by slices of a split, because TFDS hashes
the order: `train[:500]` would not be DHF1K's videos 1 to 500.
"""

from collections.abc import Collection
from collections.abc import Iterator
import dataclasses
import functools
import pathlib
import re

import cv2
import numpy as np
import tensorflow_datasets as tfds

FEATURES = ("video", "fps", "num_frames", "frames", "maps", "fixations")

# Numbers that a split can hold; other splits are always read.
_OFFICIAL = {
    "train": range(1, 601),
    "validation": range(601, 701),
    "test": range(701, 1001),
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
    def frame_counts(self) -> dict[int, int]:
        """Frames of each video, by number, in the order of reading."""
        counts = {}
        for split in self._builder.info.splits:
            examples = self._builder.as_dataset(
                split=split,
                decoders=tfds.decode.PartialDecoding(
                    {"video": True, "num_frames": True}
                ),
            )
            for example in tfds.as_numpy(examples):
                counts[int(example["video"])] = int(example["num_frames"])
        return counts

    def choose(self, numbers: Collection[int], purpose: str) -> list[int]:
        """Videos of the dataset whose number is in `numbers`.

        Args:
            numbers: Wanted numbers; those that the dataset lacks are left
                out, because any part of DHF1K is a dataset.
            purpose: What they are for, in the error.

        Returns:
            Numbers in the order of reading.

        Raises:
            DatasetError: Not one of them is there.
        """
        chosen = [n for n in self.frame_counts if n in numbers]
        if not chosen:
            have = sorted(self.frame_counts)
            raise DatasetError(
                f"Dataset {self.name} has none of the videos for {purpose}. "
                f"It has {len(have)}, from {have[0]} to {have[-1]}; choose "
                "some of these by --train_videos, --val_videos or "
                "--test_videos."
            )
        return chosen

    def videos(self, numbers: Collection[int]) -> Iterator[Video]:
        """Stream the videos whose number is in `numbers`, in a fixed order."""
        wanted = frozenset(numbers)
        for split in self._builder.info.splits:
            if wanted.isdisjoint(_OFFICIAL.get(split, wanted)):
                continue
            examples = self._builder.as_dataset(
                split=split,
                decoders={name: tfds.decode.SkipDecoding() for name in _IMAGES},
                # Whole videos: read ahead as little as possible.
                read_config=tfds.ReadConfig(
                    interleave_cycle_length=1, try_autocache=False
                ),
            )
            for example in tfds.as_numpy(examples):
                if int(example["video"]) in wanted:
                    yield Video(
                        number=int(example["video"]),
                        fps=float(example["fps"]),
                        jpegs=tuple(example["frames"]),
                        maps=tuple(example["maps"]),
                        fixations=tuple(example["fixations"]),
                    )


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
            f"`tfds build {base} --manual_dir=FOLDER_WITH_video_AND_annotation"
            f"{flag}`, or name the folder that holds it by --data_dir."
        )
    return tfds.builder_from_directory(prepared[max(prepared)])
