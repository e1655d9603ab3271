"""Flows, features and truth on disk: one file a video, whole or absent.

A store is a folder: `0007.npy` holds video 7 (truth: `0007.bin`), and
`manifest.json` says what its numbers were made with. A record belongs to a
frame of the video, its target; frames are numbered from 0, flow k is the
motion from frame k-1 to frame k.

A file is written under a temporary name, brought to disk and renamed, so that
a process that is killed leaves temporary files only; whoever stores that video
next removes them. A file that is not as long as its header says counts as
absent, and is made again. Two processes may make the same video: its file is
the same.

Stores of several datasets lie side by side. Any of those that one front end
made reads the others' videos too, by (name and version of the dataset, number).
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
import contextlib
import dataclasses
import json
import os
import pathlib
from typing import Any, BinaryIO, ClassVar, Self

from absl import logging
import numpy as np

from lsts_tf.media import files
from lsts_tf.media import images as maps_lib

# Raised whenever the layout, or the numbers that the same settings give,
# change: older stores are then refused.
FORMAT = 2
# Named in messages by a store that was not told what makes it.
COMMAND = "python -m lsts_tf.extract --flagfile=..."

_MANIFEST = "manifest.json"


class StoreError(ValueError):
    """A store is damaged, lacks a video, or was made with something else."""


@dataclasses.dataclass(frozen=True)
class Manifest:
    """What the numbers of a store were made with.

    Attributes:
        kind: "flow", "features" or "truth".
        dataset: Name and version, such as "dhf1k:1.0.0".
        shape: Shape of one record; () for truth.
        dtype: Of the records.
        details: Whatever else decides the numbers (checksum of the weights,
            preprocessing, window, stride, flow method …), as JSON has it.
        format: Version of the code's numbers and of the layout.
    """

    kind: str
    dataset: str
    shape: tuple[int, ...]
    dtype: str
    details: dict[str, Any] = dataclasses.field(default_factory=dict)
    format: int = FORMAT

    def text(self) -> str:
        """The manifest as JSON, the same for equal manifests."""
        fields = dataclasses.asdict(self)
        return json.dumps(fields, indent=2, sort_keys=True) + "\n"


def folder_name(dataset: str) -> str:
    """Folder of the stores of a dataset, by its name and version."""
    return dataset.replace(":", "-")


def differing(one: Any, other: Any, name: str = "") -> dict[str, Any]:
    """Where two nested descriptions differ; "absent" for what one lacks.

    >>> differing({"a": {"b": 1}, "c": 2}, {"a": {"b": 3}, "c": 2})
    {'a.b': (1, 3)}
    """
    if not (isinstance(one, dict) and isinstance(other, dict)):
        return {} if one == other else {name: (one, other)}
    found: dict[str, Any] = {}
    for key in sorted(one.keys() | other.keys()):
        a, b = (each.get(key, "absent") for each in (one, other))
        found |= differing(a, b, f"{name}.{key}" if name else key)
    return found


@dataclasses.dataclass(eq=False)
class _Folder:
    """What all stores share: the manifest, and which videos are there."""

    suffix: ClassVar[str]
    root: pathlib.Path
    manifest: Manifest
    command: str
    # Of each video that was looked at, what its file's head says.
    _heads: dict[Any, Any] = dataclasses.field(default_factory=dict)

    @classmethod
    def create(
        cls,
        root: str | os.PathLike[str],
        manifest: Manifest,
        *,
        command: str = COMMAND,
    ) -> Self:
        """Opens a store, or makes an empty one.

        `command` is what makes the store, for messages: `lsts_tf.extract` on
        an experiment.

        Raises:
            StoreError: The store there was made with something else, or its
                manifest is damaged.
            OSError: The folder cannot be made or written.
        """
        root = pathlib.Path(root)
        path = root / _MANIFEST
        if not path.exists():
            root.mkdir(parents=True, exist_ok=True)
            with _writing(path) as file:
                file.write(manifest.text().encode())
        # As it is read again: tuples become lists.
        wanted = json.loads(manifest.text())
        try:
            found = json.loads(path.read_text("utf-8"))
            there = {key: found[key] for key in wanted}
        except (ValueError, TypeError, KeyError) as error:
            raise StoreError(
                f"{path} is damaged ({error!r}). Remove {root}, then run "
                f"`{command}`."
            ) from error
        if differences := differing(there, wanted):
            said = "; ".join(
                f"{key}: {have!r} there, {want!r} wanted"
                for key, (have, want) in differences.items()
            )
            raise StoreError(
                f"The {manifest.kind} store at {root} was made with something "
                f"else ({said}). Remove that folder or "
                f"choose another --store_dir, then run `{command}`."
            )
        return cls(root, manifest, command)

    def path(self, video: Any) -> pathlib.Path:
        """File of a video."""
        root, number = self.root, video
        if isinstance(video, tuple):
            name, number = video
            root = root.parents[1] / folder_name(name) / root.name
        return root / f"{number:04d}{self.suffix}"

    def _said(self, video: Any) -> str:
        """How messages call a video of this store."""
        path = self.path(video)
        return (
            f"Video {int(path.stem)} in the {self.manifest.kind} store "
            f"{path.parent}"
        )

    def __contains__(self, video: Any) -> bool:
        """Whether a video is there, whole; of a damaged one there is a log."""
        if not self.path(video).exists():
            return False
        try:
            self._head(video)
        except StoreError as error:
            logging.warning("%s", error)
            return False
        return True

    def _head(self, video: Any) -> Any:
        if video not in self._heads:
            try:
                self._heads[video] = self._read_head(self.path(video))
            except FileNotFoundError:
                raise StoreError(
                    f"{self._said(video)} is missing. Make it with "
                    f"`{self.command}`."
                ) from None
            except (ValueError, EOFError) as error:
                raise self._damaged(video, str(error)) from error
        return self._heads[video]

    def _read_head(self, path: pathlib.Path) -> Any:
        """What the head of a file says; ValueError if it is not sound."""
        raise NotImplementedError

    def _damaged(self, video: Any, why: str) -> StoreError:
        return StoreError(
            f"{self._said(video)} is damaged ({self.path(video).name}: {why}). "
            f"Remove the file, then make it again with `{self.command}`."
        )

    @contextlib.contextmanager
    def _writing(self, video: int) -> Iterator[BinaryIO]:
        """A file that becomes the video's if the block ends without error."""
        with _writing(self.path(video)) as file:
            yield file
        self._heads.pop(video, None)


@contextlib.contextmanager
def _writing(path: pathlib.Path) -> Iterator[BinaryIO]:
    """A file that gets its name if the block ends without error."""
    is_written = False
    try:
        with (
            files.naming(path),
            files.replacing(path, lasting=True) as temporary,
            temporary.open("wb") as file,
        ):
            yield file
            is_written = True
            for other in path.parent.glob(f".{path.stem}.*{path.suffix}"):
                if other != temporary:
                    # Its process is dead, or makes the same file.
                    other.unlink(missing_ok=True)
    except FileNotFoundError:
        # So did another process just now, with this one's.
        if not (is_written and path.exists()):
            raise


class Store(_Folder):
    """Records of one size: flows, or features of windows.

    On disk `NNNN.npy`, an array [records] with the fields "target", the
    record's frame, and "values", [*shape]. In float16 (11 bits of
    significand) a value is rounded by at most 2^-11 = 4.9e-4 of itself, below
    6.1e-5 by at most 3e-8; values above 65,504 are refused.
    """

    suffix = ".npy"

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of a record."""
        return self.manifest.shape

    @property
    def dtype(self) -> np.dtype:
        """Dtype of a record."""
        return np.dtype(self.manifest.dtype)

    @property
    def file_dtype(self) -> np.dtype:
        """Dtype of a record with its target, as on disk."""
        return np.dtype([("target", "<i8"), ("values", self.dtype, self.shape)])

    def targets(self, video: Any) -> range:
        """Frame number of each record of a video."""
        targets, _ = self._head(video)
        return targets

    def write(
        self, video: int, targets: range, records: Iterable[np.ndarray]
    ) -> None:
        """Stores a video in this store alone; see the function `write`."""
        write({"": self}, video, targets, ({"": each} for each in records))

    def _encoded(self, target: int, record: np.ndarray) -> bytes:
        """A record as it stands in a file."""
        if record.shape != self.shape:
            raise ValueError(
                f"A record must be {list(self.shape)}. Received: "
                f"{list(record.shape)} at frame {target}"
            )
        found = np.empty((), self.file_dtype)
        found["target"] = target
        # What overflows becomes infinite, and is found below.
        with np.errstate(over="ignore"):
            found["values"] = record
        if not np.isfinite(found["values"]).all():
            raise ValueError(
                "Features and flows must be finite and at most "
                f"{np.finfo(self.dtype).max:g} to be stored as {self.dtype}. "
                f"Received: {np.abs(record).max():g} at frame {target}"
            )
        return found.tobytes()

    def read(self, video: Any, indices: Sequence[int]) -> np.ndarray:
        """Reads some records of a video, from 0; safe in several threads.

        Returns:
            [len(indices), *shape], in the store's dtype.

        Raises:
            StoreError: The video is missing or damaged.
            ValueError: It has no such record.
        """
        targets, start = self._head(video)
        out = np.empty((len(indices), *self.shape), self.dtype)
        # No map of the file: systems allow some 1,000 open ones.
        with self.path(video).open("rb", buffering=0) as file:
            for values, index in zip(out, indices, strict=True):
                if not 0 <= index < len(targets):
                    raise ValueError(
                        f"{self._said(video)} has records 0 to "
                        f"{len(targets) - 1}. Received: {index}"
                    )
                # A record ends with its values.
                end = start + (int(index) + 1) * self.file_dtype.itemsize
                file.seek(end - values.nbytes)
                if file.readinto(values.data.cast("B")) != values.nbytes:
                    raise self._damaged(video, "cut off while it was open")
        return out

    def _read_head(self, path: pathlib.Path) -> tuple[range, int]:
        """Targets of the records, and the byte of the first record."""
        records = np.lib.format.open_memmap(path, mode="r")
        if records.dtype != self.file_dtype or records.ndim != 1:
            raise ValueError(f"holds {records.dtype} {records.shape}")
        _require_size(path, records.offset + records.nbytes)
        first, *more = map(int, records["target"][:2])
        step = more[0] - first if more else 1
        targets = range(first, first + len(records) * step, step)
        return targets, records.offset


def write(
    stores: Mapping[str, Store],
    video: int,
    targets: range,
    records: Iterable[Mapping[str, np.ndarray]],
) -> None:
    """Stores a video in several stores at a time, a record after the other.

    Only if all records come, and no error, is the video there, whole.

    Args:
        stores: {part: its store}.
        video: The video's number.
        targets: Frame of each record, one at least.
        records: {part: [*shape of its store], of any float dtype} each;
            rounded to the store's dtype.

    Raises:
        ValueError: Another number of records, or one of another shape or with
            a value that is not finite or too large for the store's dtype.
        OSError: The disk is full (named), or fails.
    """
    with contextlib.ExitStack() as stack:
        opened = {}
        for part, store in stores.items():
            opened[part] = stack.enter_context(store._writing(video))
            header = {
                "descr": np.lib.format.dtype_to_descr(store.file_dtype),
                "fortran_order": False,
                "shape": (len(targets),),
            }
            np.lib.format.write_array_header_1_0(opened[part], header)
        count = 0
        for count, record in enumerate(records, 1):
            if count > len(targets):
                break
            for part, file in opened.items():
                target = targets[count - 1]
                file.write(stores[part]._encoded(target, record[part]))
        if not count or count != len(targets):
            raise ValueError(
                f"Video {video} must have {len(targets)} records, one at "
                f"least. Received: {count}"
            )


class TruthStore(_Folder):
    """Where people looked, in every frame: PNG bytes, decoded on reading.

    On disk `NNNN.bin`: where each picture begins and the last one ends, int64
    [2 T + 1] in bytes behind this array, as `numpy.save` writes it; then the
    PNG files of map 0, fixations 0, map 1, fixations 1 and so on, as the
    dataset has them.
    """

    suffix = ".bin"

    def length(self, video: Any) -> int:
        """Number of frames of a video."""
        return len(self._head(video)) // 2

    def write(
        self,
        video: int,
        *,
        maps: Sequence[bytes],
        fixations: Sequence[bytes],
    ) -> None:
        """Stores a video: PNG bytes of each frame's density and fixation map.

        Raises:
            ValueError: The two differ in number, or there is none.
            OSError: The disk is full (named), or fails.
        """
        if len(maps) != len(fixations) or not maps:
            raise ValueError(
                f"Video {video} must have a map and fixations for each frame. "
                f"Received: {len(maps)} maps, {len(fixations)} fixations"
            )
        pngs = [
            png for pair in zip(maps, fixations, strict=True) for png in pair
        ]
        with self._writing(video) as file:
            np.save(file, np.cumsum([0, *map(len, pngs)], dtype=np.int64))
            file.writelines(pngs)

    def maps(self, video: Any, frames: Sequence[int]) -> np.ndarray:
        """Density maps: uint8 [len(frames), H, W].

        Raises:
            StoreError: The video is missing or damaged.
            ValueError: It has no such frame.
        """
        return self._images(video, frames, 0)

    def fixations(self, video: Any, frames: Sequence[int]) -> np.ndarray:
        """Fixation maps, not 0 where somebody looked; otherwise as `maps`."""
        return self._images(video, frames, 1)

    def _images(
        self, video: Any, frames: Sequence[int], which: int
    ) -> np.ndarray:
        places, length = self._head(video), self.length(video)
        found: list[np.ndarray] = []
        with self.path(video).open("rb") as file:
            for frame in map(int, frames):
                if not 0 <= frame < length:
                    raise ValueError(
                        f"{self._said(video)} has frames 0 to {length - 1}. "
                        f"Received: {frame}"
                    )
                start, stop = places[2 * frame + which :][:2]
                file.seek(start)
                image = maps_lib.decode(file.read(stop - start))
                if image is None or image.shape != (found or [image])[0].shape:
                    raise self._damaged(
                        video,
                        f"no PNG image at frame {frame}, or one of another "
                        "size than the others",
                    )
                found.append(image)
        return np.stack(found)

    def _read_head(self, path: pathlib.Path) -> np.ndarray:
        """Byte of the file where each picture begins and the last one ends."""
        with path.open("rb") as file:
            places = np.load(file)
            behind = file.tell()
        if places.dtype != np.int64 or places.ndim != 1 or len(places) % 2 != 1:
            raise ValueError(f"begins with {places.dtype} {places.shape}")
        _require_size(path, behind + int(places[-1]))
        return places + behind


def _require_size(path: pathlib.Path, wanted: int) -> None:
    size = path.stat().st_size
    if size != wanted:
        raise ValueError(f"{size} bytes instead of {wanted}")
