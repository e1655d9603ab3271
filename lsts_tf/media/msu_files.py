"""The files of AViMoS, NTIRE 2026 and CrowdSAL, unpacked or in their archives.

Somewhere below one folder, each clip has

    Videos…/NAME.mp4                  the film
    Saliency…/NAME.mp4                where people looked, in 10-bit grey
    Fixations…/NAME/fixations.json    the same as points, or …/NAME.json

with any folders between. An archive counts as a folder called as it is without
".zip"; where a file is there twice, the unpacked one is read.
`TrainTestSplit.json` tells the names of each split. CrowdSAL has none, and
numbers for names.
"""

from collections.abc import Iterator, Mapping, Sequence
import dataclasses
import functools
import io
import json
import os
import pathlib
from typing import NamedTuple
import zipfile

import numpy as np

from lsts_tf.media import files
from lsts_tf.media import video as video_lib

SPLITS = "TrainTestSplit.json"
_ORDER = ("train", "public_test", "private_test")
_FIXATIONS = "fixations.json"


class File(NamedTuple):
    """A file, or a member of an archive."""

    path: str
    member: str = ""

    def __str__(self) -> str:
        return f"{self.path}:{self.member}" if self.member else self.path

    def read(self) -> bytes:
        """All that it holds."""
        if self.member:
            return _archive(self.path).read(self.member)
        return pathlib.Path(self.path).read_bytes()

    def film(self, *, grey: bool = False) -> video_lib.Video:
        """The film that it is, which can be read once."""
        if not self.member:
            return video_lib.Video(self.path, grey=grey)
        # In memory, because the index of a film may stand at its end.
        return video_lib.Video(
            str(self), pipe=io.BytesIO(self.read()), grey=grey
        )


@functools.lru_cache(maxsize=8)
def _archive(path: str) -> zipfile.ZipFile:
    """An archive, opened once by each process."""
    return zipfile.ZipFile(path)


@dataclasses.dataclass(kw_only=True)
class Clip:
    """What there is of a clip.

    Predictions are found by its name. Its number is the name, if that is one;
    otherwise the place in `TrainTestSplit.json`, from 1: the names of "train",
    those of "public_test" and those of "private_test", each in order.
    """

    name: str
    number: int = 0
    videos: File | None = None
    saliency: File | None = None
    fixations: File | None = None

    def points(self) -> list[np.ndarray]:
        """Where people looked: int64 [N, 2] a frame, (row, column).

        Raises:
            files.FileError: The file is not a list for each frame.
        """
        assert self.fixations is not None  # noqa: S101 - the caller looked
        try:
            found = [
                np.array(frame or np.zeros((0, 2)), None if frame else int)
                for frame in json.loads(self.fixations.read())
            ]
        except (ValueError, TypeError) as error:
            received = str(error)
        else:
            wrong = [
                f"frame {number}: {points.dtype} {list(points.shape)}"
                for number, points in enumerate(found)
                if points.shape[1:] != (2,) or points.dtype.kind != "i"
            ]
            if not wrong:
                return found
            received = wrong[0]
        raise files.FileError(
            str(self.fixations),
            "fixations must be a list for each frame, of [row, column] in "
            f"whole pixels. Received: {received}",
        )


@dataclasses.dataclass(frozen=True)
class Files:
    """What a folder holds.

    Attributes:
        clips: {name: clip}, in the order of their numbers.
        splits: {split: its names}, of `TrainTestSplit.json`; empty without it.
    """

    clips: Mapping[str, Clip]
    splits: Mapping[str, Sequence[str]]


def find(root: str | os.PathLike) -> Files:
    """Looks for the files of a dataset; opens no film.

    Args:
        root: The folder that holds them.

    Raises:
        files.FileError: There is no clip, or names are no numbers and
            `TrainTestSplit.json` does not list them.
    """
    clips: dict[str, Clip] = {}
    splits: dict[str, list[str]] = {}
    for place, file in _walk(pathlib.Path(root)):
        if place.name == SPLITS:
            splits = {
                split: [name.removesuffix(".mp4") for name in names]
                for split, names in json.loads(file.read()).items()
            }
        name = _name(place)
        for kind in ("videos", "saliency", "fixations"):
            is_kind = any(p.lower().startswith(kind) for p in place.parts[:-1])
            is_json = place.suffix == ".json"
            if name and is_kind and is_json == (kind == "fixations"):
                clip = clips.setdefault(name, Clip(name=name))
                if getattr(clip, kind) is None:
                    setattr(clip, kind, file)
                break
    if not clips:
        raise files.FileError(
            root,
            "holds no clip: neither Videos/NAME.mp4 nor Saliency…/NAME.mp4 nor "
            "Fixations…/NAME.json. Name the folder of the dataset's archives, "
            "or one where they are unpacked.",
        )
    _number(root, clips, [n for s in _ORDER for n in sorted(splits.get(s, ()))])
    ordered = sorted(clips.values(), key=lambda clip: clip.number)
    return Files({clip.name: clip for clip in ordered}, splits)


def _walk(root: pathlib.Path) -> Iterator[tuple[pathlib.PurePosixPath, File]]:
    """Files with their places below a folder; those in archives come last."""
    archives = []
    for folder, folders, names in os.walk(root):
        if _FIXATIONS in names:
            # The same as hundreds of pictures.
            folders.clear()
        for name in sorted(names):
            path = pathlib.Path(folder, name)
            place = pathlib.PurePosixPath(path.relative_to(root).as_posix())
            if name.lower().endswith(".zip"):
                archives.append((place.with_suffix(""), path))
            elif not name.startswith("."):
                yield place, File(str(path))
    for place, path in archives:
        with zipfile.ZipFile(path) as archive:
            for member in archive.namelist():
                yield place / member, File(str(path), member)


def _name(place: pathlib.PurePosixPath) -> str:
    """Name of the clip that a file is of, or ""."""
    if place.name == _FIXATIONS:
        return place.parent.name
    fits = place.suffix.lower() in (".mp4", ".json")
    return place.stem if fits and not place.name.startswith(".") else ""


def _number(
    root: str | os.PathLike, clips: Mapping[str, Clip], listed: Sequence[str]
) -> None:
    """Gives clips their numbers."""
    places = {name: number for number, name in enumerate(listed, 1)}
    if all(name.isdecimal() for name in clips):
        places = {name: int(name) for name in clips}
    if unknown := sorted(clips.keys() - places.keys()):
        raise files.FileError(
            root,
            f"clips whose names are not numbers must be listed in {SPLITS}. "
            f"Received: {len(listed)} listed clips, without "
            f"{files.named(unknown)}.",
        )
    for name, clip in clips.items():
        clip.number = places[name]
