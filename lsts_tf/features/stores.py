"""Flows, features and truth on disk: one file a video, whole or absent.

A store is a folder: `0007.npy` holds video 7 (truth: `0007.bin`), and
`manifest.json` says what its numbers were made with. A record belongs to a
frame of the video, its target; frames are numbered from 0, flow k is the
motion from frame k-1 to frame k.

A file is written under a temporary name, brought to disk and renamed, so that
a process that is killed leaves temporary files only, which the next start
removes. A file that is not as long as its header says counts as absent, and
is made again. Two processes may make the same video: its file is the same.
"""

from collections.abc import Iterator
from collections.abc import Mapping
from collections.abc import Sequence
import contextlib
import dataclasses
import fcntl
import json
import os
import pathlib
import re
import shutil
from typing import Any
from typing import BinaryIO
from typing import ClassVar
from typing import NamedTuple
from typing import Self

from absl import logging
import numpy as np

from lsts_tf.media import files
from lsts_tf.media import images as maps_lib

KINDS = ("flow", "features", "truth")
# Raised whenever the layout, or the numbers that the same settings give,
# change: older stores are then refused.
FORMAT = 2
# Named in messages by a store that was not told what makes it.
COMMAND = "python -m lsts_tf.extract --flagfile=..."

_MANIFEST = "manifest.json"


class StoreError(ValueError):
    """A store is missing, damaged, or was made with something else."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Manifest:
    """What the numbers of a store were made with.

    Attributes:
        kind: One of `KINDS`.
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

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise ValueError(
                f"`kind` must be one of {KINDS}. Received: {self.kind!r}"
            )

    def text(self) -> str:
        """The manifest as JSON, the same for equal manifests."""
        fields = dataclasses.asdict(self)
        return json.dumps(fields, indent=2, sort_keys=True) + "\n"

    @classmethod
    def parse(cls, text: str) -> Self:
        """The manifest that `text` came from.

        Raises:
            ValueError: It is none.
        """
        try:
            fields = json.loads(text)
            return cls(**{**fields, "shape": tuple(fields["shape"])})
        except (TypeError, KeyError) as error:
            raise ValueError(f"Not a manifest: {error}") from error

    def differences(self, wanted: "Manifest") -> list[str]:
        """Fields in which this manifest is not `wanted`, one line each."""
        # As they are read again: tuples become lists.
        this, other = (json.loads(each.text()) for each in (self, wanted))
        return [
            f"{key}: {have!r} there, {want!r} wanted"
            for key, (have, want) in differing(this, other).items()
        ]


def differing(
    one: dict[str, Any], other: dict[str, Any]
) -> dict[str, tuple[Any, Any]]:
    """Where two nested descriptions differ; "absent" for what one lacks.

    >>> differing({"a": {"b": 1}, "c": 2}, {"a": {"b": 3}, "c": 2})
    {'a.b': (1, 3)}
    """
    flat, its = _flat(one, ""), _flat(other, "")
    return {
        key: (flat.get(key, "absent"), its.get(key, "absent"))
        for key in sorted(flat.keys() | its.keys())
        if flat.get(key, _ABSENT) != its.get(key, _ABSENT)
    }


_ABSENT = object()


def _flat(value: Any, name: str) -> dict[str, Any]:
    """{"a": {"b": 1}} -> {"a.b": 1}."""
    if not isinstance(value, dict) or (name and not value):
        return {name: value}
    found: dict[str, Any] = {}
    for key, inner in value.items():
        found |= _flat(inner, f"{name}.{key}" if name else key)
    return found


class _Folder:
    """What all stores share: the manifest, and which videos are there."""

    suffix: ClassVar[str]

    def __init__(
        self, root: pathlib.Path, manifest: Manifest, command: str
    ) -> None:
        self.root = root
        self.manifest = manifest
        self.command = command
        # Of each video that was looked at, what its file's head says.
        self._heads: dict[int, Any] = {}

    @classmethod
    def create(
        cls,
        root: str | os.PathLike[str],
        manifest: Manifest,
        *,
        command: str = COMMAND,
    ) -> Self:
        """Opens a store, or makes an empty one.

        Also removes what processes that died have left behind.

        Args:
            root: Its folder.
            manifest: What its numbers are made with.
            command: What makes the store, for messages: `lsts_tf.extract`
                on an experiment.

        Raises:
            StoreError: The store there was made with something else.
            OSError: The folder cannot be made or written.
        """
        root = pathlib.Path(root)
        if not (root / _MANIFEST).exists():
            root.mkdir(parents=True, exist_ok=True)
            files.write_text(root / _MANIFEST, manifest.text())
        store = cls.open(root, command=command)
        if differences := store.manifest.differences(manifest):
            raise StoreError(
                f"The {manifest.kind} store at {root} was made with something "
                f"else ({'; '.join(differences)}). Remove that folder or "
                f"choose another --store_dir, then run `{command}`."
            )
        _remove_leftovers(root, cls.suffix)
        return store

    @classmethod
    def open(
        cls, root: str | os.PathLike[str], *, command: str = COMMAND
    ) -> Self:
        """Opens a store that exists; arguments as for `create`.

        Raises:
            StoreError: There is none, or its manifest is damaged.
        """
        root = pathlib.Path(root)
        path = root / _MANIFEST
        try:
            manifest = Manifest.parse(path.read_text("utf-8"))
        except (FileNotFoundError, NotADirectoryError):
            raise StoreError(
                f"No store at {root}. Make one with `{command}`."
            ) from None
        except ValueError as error:
            raise StoreError(
                f"{path} is damaged ({error}). Remove {root}, then run "
                f"`{command}`."
            ) from error
        return cls(root, manifest, command)

    def path(self, video: int) -> pathlib.Path:
        """File of a video."""
        return self.root / f"{video:04d}{self.suffix}"

    def __contains__(self, video: int) -> bool:
        """Whether a video is there, whole; of a damaged one there is a log."""
        if not self.path(video).exists():
            return False
        try:
            self._head(video)
        except StoreError as error:
            logging.warning("%s", error)
            return False
        return True

    def videos(self) -> tuple[int, ...]:
        """Numbers of the videos that are there, in order."""
        found = self.root.glob(f"[0-9]*{self.suffix}")
        return tuple(sorted(int(path.stem) for path in found))

    def _head(self, video: int) -> Any:
        head = self._heads.get(video)
        if head is None:
            try:
                head = self._read_head(self.path(video))
            except FileNotFoundError:
                raise StoreError(
                    f"Video {video} is not in the {self.manifest.kind} store "
                    f"{self.root}. Make it with `{self.command}`."
                ) from None
            except (ValueError, EOFError) as error:
                raise self._damaged(video, str(error)) from error
            self._heads[video] = head
        return head

    def _read_head(self, path: pathlib.Path) -> Any:
        """What the head of a file says; ValueError if it is not sound."""
        raise NotImplementedError

    def _damaged(self, video: int, why: str) -> StoreError:
        return StoreError(
            f"Video {video} in the {self.manifest.kind} store {self.root} is "
            f"damaged: {self.path(video).name} {why}. Remove the file, then "
            f"make it again with `{self.command}`."
        )

    @contextlib.contextmanager
    def _writing(self, video: int) -> Iterator[BinaryIO]:
        """A file that becomes the video's if the block ends without error."""
        path = self.path(video)
        with (
            files.naming(path),
            # Closed last: the lock holds until the file has its name.
            contextlib.ExitStack() as opened,
            files.replacing(path, lasting=True) as temporary,
        ):
            file = opened.enter_context(_claimed(temporary))
            yield file
            file.flush()
        self._heads.pop(video, None)


class _Records(NamedTuple):
    """What the head of a file of records says."""

    targets: range
    start: int  # byte of the first record


class RecordWriter:
    """Writes the records of one video; see `Store.writer`."""

    def __init__(
        self, store: "Store", video: int, file: BinaryIO, targets: range
    ) -> None:
        self._store = store
        self._video = video
        self._file = file
        self._targets = targets
        self._done = 0

    def append(self, records: np.ndarray) -> None:
        """Writes the next records.

        Args:
            records: [k, *shape] of any float dtype; rounded to the store's.

        Raises:
            ValueError: Another shape, too many records, or a value that is
                not finite or too large for the store's dtype.
        """
        records = np.asarray(records)
        shape, dtype = self._store.shape, self._store.dtype
        if records.shape[1:] != shape or records.ndim != len(shape) + 1:
            raise ValueError(
                f"Records of video {self._video} must be [k, "
                f"{', '.join(map(str, shape))}]. Received: {records.shape}"
            )
        targets = self._targets[self._done : self._done + len(records)]
        self._done += len(records)
        if self._done > len(self._targets):
            self.check()
        found = np.empty(len(records), self._store.file_dtype)
        found["target"] = targets
        # What overflows becomes infinite, and is found below.
        with np.errstate(over="ignore"):
            found["values"] = records
        if not np.isfinite(found["values"]).all():
            raise ValueError(
                f"Features and flows of video {self._video} must be finite "
                f"and at most {np.finfo(dtype).max:g} to be stored as {dtype}. "
                f"Received: {np.abs(records).max():g} at frames "
                f"{targets[0]} to {targets[-1]}"
            )
        self._file.write(found.tobytes())

    def check(self) -> None:
        """Raises ValueError unless all records came, and no more."""
        if self._done != len(self._targets):
            raise ValueError(
                f"Video {self._video} must have {len(self._targets)} records. "
                f"Received: {self._done}"
            )


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
        """Dtype of a record with its target."""
        return np.dtype([("target", "<i8"), ("values", self.dtype, self.shape)])

    @property
    def record_bytes(self) -> int:
        """Bytes of a record on disk."""
        return self.file_dtype.itemsize

    def length(self, video: int) -> int:
        """Number of records of a video."""
        return len(self.targets(video))

    def targets(self, video: int) -> range:
        """Frame number of each record of a video."""
        return self._head(video).targets

    @contextlib.contextmanager
    def writer(
        self, video: int, *, count: int, first: int = 0, step: int = 1
    ) -> Iterator[RecordWriter]:
        """Stores a video, a few records at a time.

            with store.writer(7, count=300, first=78) as writer:
                for records in ...:
                    writer.append(records)

        Only if the block ends without an error is the video there, whole.

        Args:
            video: Its number.
            count: Records that will come, at least 1.
            first: Target of the first.
            step: Distance between targets.

        Raises:
            ValueError: No record, or at the end, another number of them.
            OSError: The disk is full (named), or fails.
        """
        if count < 1:
            raise ValueError(
                f"Video {video} must have at least one record. "
                f"Received: {count=}"
            )
        targets = range(first, first + count * step, step)
        with self._writing(video) as file:
            np.lib.format.write_array_header_1_0(
                file,
                {
                    "descr": np.lib.format.dtype_to_descr(self.file_dtype),
                    "fortran_order": False,
                    "shape": (count,),
                },
            )
            writer = RecordWriter(self, video, file, targets)
            yield writer
            writer.check()

    def read(self, video: int, indices: Sequence[int]) -> np.ndarray:
        """Reads records of one video: [len(indices), *shape]; as `read_batch`.

        Args:
            video: Its number.
            indices: Which records, from 0.
        """
        return self.read_batch([(video, int(index)) for index in indices])

    def read_batch(self, pairs: Sequence[tuple[Any, int]]) -> np.ndarray:
        """Reads records of many videos; safe in several threads.

        Args:
            pairs: (video, index) of each record.

        Returns:
            [len(pairs), *shape], in the store's dtype and the order of
            `pairs`.

        Raises:
            StoreError: A video is missing or damaged.
            ValueError: A video has no such record.
        """
        out = np.empty((len(pairs), *self.shape), self.dtype)
        for n, (video, index) in enumerate(pairs):
            # No map of the file: systems allow some 1,000 open ones.
            self._read_into(out[n], video, index)
        return out

    def _read_into(self, out: np.ndarray, video: int, index: int) -> None:
        head = self._head(video)
        if not 0 <= index < len(head.targets):
            raise ValueError(
                f"Video {video} has records 0 to {len(head.targets) - 1} in "
                f"the {self.manifest.kind} store {self.root}. "
                f"Received: {index}"
            )
        skipped = self.record_bytes - out.nbytes
        with self.path(video).open("rb", buffering=0) as file:
            file.seek(head.start + index * self.record_bytes + skipped)
            if file.readinto(out.data.cast("B")) != out.nbytes:
                raise self._damaged(video, "was cut off while it was open")

    def _read_head(self, path: pathlib.Path) -> _Records:
        with path.open("rb") as file:
            np.lib.format.read_magic(file)
            shape, _, dtype = np.lib.format.read_array_header_1_0(file)
            if dtype != self.file_dtype or len(shape) != 1:
                raise ValueError(f"holds {dtype} {shape}")
            (count,), start = shape, file.tell()
            _require_size(path, start + count * dtype.itemsize)
            first = int.from_bytes(file.read(8), "little")
            step = 1
            if count > 1:
                file.seek(start + dtype.itemsize)
                step = int.from_bytes(file.read(8), "little") - first
        return _Records(range(first, first + count * step, step), start)


class TruthStore(_Folder):
    """Where people looked, in every frame: PNG bytes, decoded on reading.

    On disk `NNNN.bin`: where each picture begins and the last one ends, int64
    [2 T + 1] in bytes behind this array, as `numpy.save` writes it; then the
    PNG files of map 0, fixations 0, map 1, fixations 1 and so on, as the
    dataset has them.
    """

    suffix = ".bin"

    def length(self, video: int) -> int:
        """Number of frames of a video."""
        starts, _ = self._head(video)
        return (len(starts) - 1) // 2

    def write(
        self,
        video: int,
        *,
        maps: Sequence[bytes],
        fixations: Sequence[bytes],
    ) -> None:
        """Stores a video.

        Args:
            video: Its number.
            maps: PNG bytes of each frame's density map.
            fixations: PNG bytes of each frame's fixation map.

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

    def maps(self, video: int, frames: Sequence[int]) -> np.ndarray:
        """Density maps: uint8 [len(frames), H, W].

        Raises:
            StoreError: The video is missing or damaged.
            ValueError: It has no such frame.
        """
        return self._images(video, frames, 0)

    def fixations(self, video: int, frames: Sequence[int]) -> np.ndarray:
        """Fixation maps, not 0 where somebody looked; otherwise as `maps`."""
        return self._images(video, frames, 1)

    def _images(
        self, video: int, frames: Sequence[int], which: int
    ) -> np.ndarray:
        starts, behind = self._head(video)
        last = (len(starts) - 1) // 2 - 1
        found: list[np.ndarray] = []
        with self.path(video).open("rb") as file:
            for frame in map(int, frames):
                if not 0 <= frame <= last:
                    raise ValueError(
                        f"Video {video} has frames 0 to {last}. "
                        f"Received: {frame}"
                    )
                start, stop = starts[2 * frame + which :][:2]
                file.seek(behind + start)
                image = maps_lib.decode(file.read(stop - start))
                if image is None:
                    raise self._damaged(
                        video, f"has no PNG image at frame {frame}"
                    )
                if found and image.shape != found[0].shape:
                    raise self._damaged(
                        video,
                        f"has size {image.shape} at frame {frame}, elsewhere "
                        f"{found[0].shape}",
                    )
                found.append(image)
        return np.stack(found)

    def _read_head(self, path: pathlib.Path) -> tuple[np.ndarray, int]:
        with path.open("rb") as file:
            starts = np.load(file)
            behind = file.tell()
        if starts.dtype != np.int64 or starts.ndim != 1 or len(starts) % 2 != 1:
            raise ValueError(f"begins with {starts.dtype} {starts.shape}")
        _require_size(path, behind + int(starts[-1]))
        return starts, behind


class _Joint:
    """Stores of several datasets, read as one by (dataset, number).

    Args:
        stores: {dataset without version: its store}.
    """

    def __init__(self, stores: Mapping[str, Any]) -> None:
        self._stores = dict(stores)
        # One front end made all of them, so shape and dtype are the same.
        self.manifest = next(iter(stores.values())).manifest
        self.command = next(iter(stores.values())).command


class JointStore(_Joint, Store):
    """Stores of records; see `_Joint`."""

    def _head(self, video: Any) -> _Records:
        name, number = video
        return self._stores[name]._head(number)

    def _read_into(self, out: np.ndarray, video: Any, index: int) -> None:
        name, number = video
        self._stores[name]._read_into(out, number, index)


class JointTruthStore(_Joint, TruthStore):
    """Stores of density and fixation maps; see `_Joint`."""

    def _head(self, video: Any) -> tuple[np.ndarray, int]:
        name, number = video
        return self._stores[name]._head(number)

    def _images(
        self, video: Any, frames: Sequence[int], which: int
    ) -> np.ndarray:
        name, number = video
        return self._stores[name]._images(number, frames, which)


def require_free(path: str | os.PathLike[str], needed: int, what: str) -> None:
    """Makes sure that a disk has room, before work starts.

    Args:
        path: A file or folder on that disk; need not exist.
        needed: Bytes.
        what: What needs them, for the message; in the plural.

    Raises:
        OSError: There is less; the message has both numbers.
    """
    folder = pathlib.Path(path).absolute()
    while not folder.exists():
        folder = folder.parent
    free = shutil.disk_usage(folder).free
    if free < needed:
        raise OSError(
            f"The disk of {path} is too small: {what} need "
            f"{needed / 1e9:.2f} GB, and {free / 1e9:.2f} GB are free. Free "
            "some, or choose a folder on another disk by --store_dir."
        )


def _require_size(path: pathlib.Path, wanted: int) -> None:
    size = path.stat().st_size
    if size != wanted:
        raise ValueError(f"has {size} bytes instead of {wanted}")


def _claimed(path: pathlib.Path) -> BinaryIO:
    """A new file whose lock tells `_remove_leftovers` that its writer lives.

    Without locks in a file system, nothing is removed there.
    """
    while True:
        file = path.open("wb")
        with contextlib.suppress(OSError):
            fcntl.flock(file, fcntl.LOCK_EX)
        # Another process may have removed it before it was locked.
        if path.exists() and os.path.samestat(
            path.stat(), os.fstat(file.fileno())
        ):
            return file
        file.close()


def _remove_leftovers(root: pathlib.Path, suffix: str) -> None:
    """Removes temporary files whose writers are no more."""
    for path in root.glob(f".*{suffix}"):
        if re.fullmatch(rf"\.\d+\.\d+{re.escape(suffix)}", path.name):
            # Locked by its writer, or gone, or in a folder to be read alone.
            with contextlib.suppress(OSError), path.open("rb") as file:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                path.unlink()
                logging.info("Removed %s, left by a process that died.", path)
