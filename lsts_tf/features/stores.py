"""Flows, features and truth on disk: a file a video, whole or absent.

A store is a folder: `manifest.json` says what its numbers were made with, and
each video n has a data file (`0007.npy`, or `0007.bin` for truth) and a commit
mark beside it, `0007.json`. The mark is written last; a video without one is
not there. Record i of a video belongs to frame first + i * step, its target;
frames are numbered from 0, flow k is the motion from frame k-1 to frame k.

How nothing is lost or half there:

* A file is written under a temporary name in the same folder, synced and
  renamed; then its mark likewise. A process that is killed leaves `*.tmp-*`
  files only, which the next start removes. Writers hold a lock on theirs while
  they live, so that it removes nobody's work.
* Two processes may do the same video: the first to commit wins, and the other
  drops its copy. Commits take the folder's lock.
* A mark holds the length of the file, a checksum (CRC-32) of each record and
  of itself, and the manifest's checksum. Length and mark are checked whenever
  a file is opened, records on demand.
"""

from collections import OrderedDict
from collections.abc import Iterator
from collections.abc import Sequence
import contextlib
import dataclasses
import errno
import fcntl
import hashlib
import io
import json
import os
import pathlib
import re
import secrets
import shutil
import sys
import threading
from typing import Any
from typing import BinaryIO
from typing import NamedTuple
from typing import Self
import zlib

from absl import logging
import numpy as np

from lsts_tf.media import files
from lsts_tf.media import images as maps_lib

KINDS = ("flow", "features", "truth")
# Raised whenever the layout, or the numbers that the same settings give,
# change: older stores are then refused.
FORMAT = 1
# Named in messages by a store that was not told what makes it.
COMMAND = "python -m lsts_tf.extract --flagfile=..."
# Open files of one store; systems commonly allow 1,024 a process.
OPEN_FILES = 256

_MANIFEST = "manifest.json"
_LOCK = ".lock"
_TEMPORARY = ".tmp-"


class StoreError(ValueError):
    """A store is missing, damaged, or was made with something else."""


class Damage(NamedTuple):
    """What a scrub found: `record` is None where the whole file is meant."""

    video: int
    record: int | None
    reason: str


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
        about: What it may help to know later, such as versions and where the
            weights came from, as JSON has it. No store is refused for it, and
            no digest holds it.
    """

    kind: str
    dataset: str
    shape: tuple[int, ...]
    dtype: str
    details: dict[str, Any] = dataclasses.field(default_factory=dict)
    format: int = FORMAT
    about: dict[str, Any] = dataclasses.field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise ValueError(
                f"`kind` must be one of {KINDS}. Received: {self.kind!r}"
            )
        shape = tuple(int(n) for n in self.shape)
        if any(n < 1 for n in shape):
            raise ValueError(
                f"`shape` must be positive. Received: {self.shape}"
            )
        object.__setattr__(self, "shape", shape)
        object.__setattr__(self, "dtype", np.dtype(self.dtype).name)
        # As it will be read again: tuples become lists.
        for name in ("details", "about"):
            value = json.loads(_json(getattr(self, name)))
            object.__setattr__(self, name, value)

    def text(self) -> str:
        """The manifest as JSON, the same for equal manifests."""
        return _text(dataclasses.asdict(self))

    def digest(self) -> str:
        """SHA-256 of `text` without what it is `about`."""
        return hashlib.sha256(_text(self._deciding()).encode()).hexdigest()

    def _deciding(self) -> dict[str, Any]:
        fields = dataclasses.asdict(self)
        del fields["about"]
        # As it is read again.
        return json.loads(_json(fields))

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
        """Fields in which this manifest is not `wanted`, one line each.

        What they are `about` may differ.
        """
        found = differing(self._deciding(), wanted._deciding())
        return [
            f"{key}: {have!r} there, {want!r} wanted"
            for key, (have, want) in found.items()
            if key not in _NOT_COMPARED
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
# Where the weights came from stands here in earlier stores, beside their
# checksum, which decides.
_NOT_COMPARED = frozenset({"details.weights"})


def _json(value: Any, indent: int | None = None) -> str:
    return json.dumps(value, indent=indent, sort_keys=True)


def _text(fields: dict[str, Any]) -> str:
    return _json(fields, indent=2) + "\n"


def _flat(value: Any, name: str) -> dict[str, Any]:
    """{"a": {"b": 1}} -> {"a.b": 1}."""
    if not isinstance(value, dict) or (name and not value):
        return {name: value}
    found: dict[str, Any] = {}
    for key, inner in value.items():
        found |= _flat(inner, f"{name}.{key}" if name else key)
    return found


class _Mark(NamedTuple):
    """The commit mark of a video."""

    first: int
    step: int
    size: int  # bytes of the data file
    ends: np.ndarray  # int64 [records + 1]: where each record starts and ends
    crc32: np.ndarray  # uint32 [records]

    @property
    def targets(self) -> range:
        count = len(self.crc32)
        return range(self.first, self.first + count * self.step, self.step)


class _OpenFile:
    """A file descriptor that closes when its last user has let go of it.

    A cache may so forget a file that another thread is still reading.
    """

    def __init__(self, path: pathlib.Path) -> None:
        self.path = path
        self.fd = -1
        self.fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)

    def __del__(self) -> None:
        if self.fd >= 0:
            os.close(self.fd)


class _Folder:
    """What all stores share: the manifest, marks, commits and open files."""

    _suffix = ""

    def __init__(
        self,
        root: pathlib.Path,
        manifest: Manifest,
        *,
        verify: bool,
        command: str = COMMAND,
    ) -> None:
        self.root = root
        self.command = command
        self.manifest = manifest
        self._verify = verify
        self._digest = manifest.digest()
        self._marks: dict[int, _Mark] = {}
        self._files: OrderedDict[int, _OpenFile] = OrderedDict()
        self._mutex = threading.Lock()

    @classmethod
    def create(
        cls,
        root: str | os.PathLike[str],
        manifest: Manifest,
        *,
        verify: bool = False,
        command: str = COMMAND,
    ) -> Self:
        """Opens a store, or makes an empty one.

        Also removes what processes that died have left behind.

        Args:
            root: Its folder.
            manifest: What its numbers are made with.
            verify: Whether each reading checks the records' checksums (0.06
                ms for 256 kB).
            command: What makes the store, for messages: `lsts_tf.extract`
                on an experiment.

        Raises:
            StoreError: The store there was made with something else.
            OSError: The folder cannot be made or written.
        """
        root = pathlib.Path(root)
        cls._check_kind(manifest, root)
        if not (root / _MANIFEST).exists():
            root.mkdir(parents=True, exist_ok=True)
            with _locked(root):
                # Another process may have been first.
                if not (root / _MANIFEST).exists():
                    _write(root / _MANIFEST, manifest.text().encode())
        store = cls.open(root, verify=verify, command=command)
        differences = store.manifest.differences(manifest)
        if differences:
            raise StoreError(
                f"The {manifest.kind} store at {root} was made with something "
                f"else ({'; '.join(differences)}). Remove that folder or "
                "choose another --store_dir, then run "
                f"`{command}`."
            )
        _remove_leftovers(root)
        return store

    @classmethod
    def open(
        cls,
        root: str | os.PathLike[str],
        *,
        verify: bool = False,
        command: str = COMMAND,
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
        cls._check_kind(manifest, root)
        return cls(root, manifest, verify=verify, command=command)

    @classmethod
    def _check_kind(cls, manifest: Manifest, root: pathlib.Path) -> None:
        if (manifest.kind == "truth") != (cls is TruthStore):
            raise StoreError(
                f"{cls.__name__} cannot hold {manifest.kind}. Received: {root}"
            )

    def __reduce__(self) -> tuple[Any, ...]:
        # Workers open their own files.
        return _reopen, (type(self), self.root, self._verify, self.command)

    def __contains__(self, video: int) -> bool:
        return self._mark_path(video).exists()

    def videos(self) -> tuple[int, ...]:
        """Numbers of the videos that are there, in order."""
        found = (
            re.fullmatch(r"(\d{4,})\.json", name)
            for name in os.listdir(self.root)  # noqa: PTH208, names suffice
        )
        return tuple(sorted(int(match[1]) for match in found if match))

    def begun(self) -> dict[int, int]:
        """Bytes written so far of each video that a process is writing.

        Those of the larger file where two processes write the same video. A
        process that died may have left its file behind (see `create`).
        """
        found: dict[int, int] = {}
        name = re.compile(
            rf"(\d{{4,}}){re.escape(self._suffix + _TEMPORARY)}.*"
        )
        with os.scandir(self.root) as entries:
            for entry in entries:
                match = name.fullmatch(entry.name)
                if not match:
                    continue
                # It may have been committed or dropped since.
                with contextlib.suppress(FileNotFoundError):
                    video, size = int(match[1]), entry.stat().st_size
                    found[video] = max(found.get(video, 0), size)
        return found

    def length(self, video: int) -> int:
        """Number of records of a video."""
        return len(self._mark(video).crc32)

    def targets(self, video: int) -> range:
        """Frame number of each record of a video."""
        return self._mark(video).targets

    def discard(self, video: int) -> None:
        """Removes a video, for instance a damaged one, to be made again."""
        with _locked(self.root):
            self._mark_path(video).unlink(missing_ok=True)
            self._data_path(video).unlink(missing_ok=True)
            files.sync(self.root)
        with self._mutex:
            self._marks.pop(video, None)
            self._files.pop(video, None)

    def verify(self, videos: Sequence[int] | None = None) -> list[Damage]:
        """Reads everything and compares it with its checksums.

        Args:
            videos: Which videos; None means all.

        Returns:
            What is damaged; empty if all is well.
        """
        found: list[Damage] = []
        for video in self.videos() if videos is None else videos:
            try:
                found.extend(self._scrub(video))
            except (StoreError, OSError) as error:
                found.append(Damage(video, None, str(error)))
        return found

    def _scrub(self, video: int) -> Iterator[Damage]:
        mark, file = self._mark(video), self._file(video)
        for record, crc32 in enumerate(mark.crc32):
            if _crc32(self._pread(file, mark, record)) != crc32:
                yield Damage(video, record, "its checksum is wrong")

    def _data_path(self, video: int) -> pathlib.Path:
        return self.root / f"{video:04d}{self._suffix}"

    def _mark_path(self, video: int) -> pathlib.Path:
        return self.root / f"{video:04d}.json"

    def _damaged(
        self, video: int, why: str, record: int | None = None
    ) -> StoreError:
        where = f"Video {video}"
        if record is not None:
            where += f", record {record},"
        return StoreError(
            f"{where} in the {self.manifest.kind} store {self.root} is "
            f"damaged: {why}. Make it anew with `{self.command} --verify "
            f"--repair`, which discards {self._data_path(video).name} and "
            f"{self._mark_path(video).name} there first."
        )

    def _mark(self, video: int) -> _Mark:
        mark = self._marks.get(video)
        if mark is None:
            mark = self._marks[video] = self._read_mark(video)
        return mark

    def _read_mark(self, video: int) -> _Mark:
        path = self._mark_path(video)
        try:
            fields = json.loads(path.read_bytes())
            seal = fields.pop("seal")
            sound = seal == _seal(fields)
        except FileNotFoundError:
            raise StoreError(
                f"Video {video} is not in the {self.manifest.kind} store "
                f"{self.root}. Make it with `{self.command}`."
            ) from None
        except (ValueError, KeyError, TypeError):
            sound = False
        if not sound:
            raise self._damaged(video, f"{path.name} is not what was written")
        if fields["manifest"] != self._digest:
            raise self._damaged(
                video, f"{path.name} belongs to a store of another manifest"
            )
        ends = np.cumsum([fields["header"], *fields["sizes"]], dtype=np.int64)
        return _Mark(
            first=fields["first"],
            step=fields["step"],
            size=int(ends[-1]),
            ends=ends,
            crc32=np.array(fields["crc32"], np.uint32),
        )

    def _file(self, video: int) -> _OpenFile:
        with self._mutex:
            file = self._files.pop(video, None)
            if file is None:
                file = self._open_file(video)
            self._files[video] = file
            while len(self._files) > OPEN_FILES:
                self._files.popitem(last=False)
        return file

    def _open_file(self, video: int) -> _OpenFile:
        mark = self._mark(video)
        path = self._data_path(video)
        try:
            file = _OpenFile(path)
        except FileNotFoundError:
            raise self._damaged(video, f"{path.name} is missing") from None
        size = os.fstat(file.fd).st_size
        if size != mark.size:
            raise self._damaged(
                video, f"{path.name} has {size} bytes instead of {mark.size}"
            )
        header = self._header(len(mark.crc32))
        if os.pread(file.fd, len(header), 0) != header:
            raise self._damaged(video, f"{path.name} has another header")
        return file

    def _pread(self, file: _OpenFile, mark: _Mark, record: int) -> np.ndarray:
        start, stop = (int(n) for n in mark.ends[record : record + 2])
        data = np.empty(stop - start, np.uint8)
        self._pread_into(file, start, data)
        return data

    def _pread_into(
        self, file: _OpenFile, offset: int, out: np.ndarray
    ) -> None:
        """Fills a contiguous array; a read may bring less than asked for."""
        view = out.data.cast("B")
        while view:
            got = os.preadv(file.fd, [view], offset)
            if not got:
                raise StoreError(
                    f"{file.path} was cut off while it was open. Make it anew "
                    f"with `{self.command} --verify --repair`."
                )
            view, offset = view[got:], offset + got

    def _header(self, count: int) -> bytes:
        """What stands before the records of a data file."""
        del count
        return b""

    def _check_record(self, video: int, record: int, data: Any) -> None:
        if self._verify and _crc32(data) != self._mark(video).crc32[record]:
            raise self._damaged(video, "its checksum is wrong", record)


def _reopen(
    cls: type[_Folder], root: pathlib.Path, verify: bool, command: str
) -> _Folder:
    return cls.open(root, verify=verify, command=command)


class _Writer:
    """Writes the data file of one video; see `Store.writer`."""

    def __init__(
        self, store: _Folder, video: int, *, count: int, first: int, step: int
    ) -> None:
        if video < 0 or count < 1 or first < 0 or step < 1:
            raise ValueError(
                "`video` and `first` must not be negative, `count` and `step` "
                f"be at least 1. Received: video {video}, first {first}, "
                f"count {count}, step {step}"
            )
        self._store = store
        self._video = video
        self._count = count
        self._fields = {"first": first, "step": step}
        self._sizes: list[int] = []
        self._crc32: list[int] = []

    def __enter__(self) -> Self:
        header = self._store._header(self._count)
        self._header_size = len(header)
        self._target = self._store._data_path(self._video)
        with _naming_full_disk(self._target):
            self._path, self._file = _temporary(self._target)
        try:
            self._write(header)
        except BaseException:
            self._drop()
            raise
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        try:
            if kind is None:
                self._commit()
        finally:
            self._drop()

    def put(self, record: Any) -> None:
        """Writes one record, a contiguous array or bytes."""
        self._write(record)
        self._sizes.append(memoryview(record).nbytes)
        self._crc32.append(_crc32(record))

    def _write(self, data: Any) -> None:
        with _naming_full_disk(self._target):
            self._file.write(data)

    def _commit(self) -> None:
        if len(self._sizes) != self._count:
            raise ValueError(
                f"Video {self._video} was to have {self._count} records. "
                f"Received: {len(self._sizes)}"
            )
        store = self._store
        fields = {
            **self._fields,
            "header": self._header_size,
            "sizes": self._sizes,
            "crc32": self._crc32,
            "manifest": store._digest,
        }
        mark = _json({**fields, "seal": _seal(fields)}).encode()
        with _naming_full_disk(self._target):
            self._file.flush()
            os.fsync(self._file.fileno())
            with _locked(store.root):
                if self._video in store:
                    logging.info(
                        "Another process stored video %d first.", self._video
                    )
                    return
                try:
                    self._path.replace(self._target)
                    files.sync(store.root)
                    _write(store._mark_path(self._video), mark)
                except BaseException:
                    store._mark_path(self._video).unlink(missing_ok=True)
                    self._target.unlink(missing_ok=True)
                    raise

    def _drop(self) -> None:
        """Removes the temporary file, unless it has become the real one."""
        # Closing may fail for the same reason as writing did, which is known.
        with contextlib.suppress(OSError):
            self._file.close()
        self._path.unlink(missing_ok=True)


class RecordWriter(_Writer):
    """Writes records of one size; see `Store.writer`."""

    _store: "Store"

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
        done = len(self._sizes)
        if done + len(records) > self._count:
            raise ValueError(
                f"Video {self._video} was to have {self._count} records. "
                f"Received: at least {done + len(records)}"
            )
        # What overflows becomes infinite, and is found below.
        with np.errstate(over="ignore"):
            rounded = np.ascontiguousarray(records, dtype)
        for place, record in enumerate(rounded):
            if not np.isfinite(record).all():
                largest = np.abs(records[place]).max()
                raise ValueError(
                    f"Record {done + place} of video {self._video} must be "
                    f"finite and at most {np.finfo(dtype).max:g} to be stored "
                    f"as {dtype}. Received: {largest:g}"
                )
            self.put(record)


class Store(_Folder):
    """Records of one size: flows, or features of windows.

    On disk `NNNN.npy`, which NumPy reads, [records, *shape]. In float16 (11
    bits of significand) a value is rounded by at most 2^-11 = 4.9e-4 of
    itself, below 6.1e-5 by at most 3e-8; values above 65,504 are refused.
    """

    _suffix = ".npy"

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of a record."""
        return self.manifest.shape

    @property
    def dtype(self) -> np.dtype:
        """Dtype of a record."""
        return np.dtype(self.manifest.dtype)

    @property
    def record_bytes(self) -> int:
        """Bytes of a record."""
        return int(np.prod(self.shape)) * self.dtype.itemsize

    def writer(
        self, video: int, *, count: int, first: int = 0, step: int = 1
    ) -> RecordWriter:
        """Stores a video, a few records at a time.

            with store.writer(7, count=300, first=78) as writer:
                for records in ...:
                    writer.append(records)

        Only if the block ends without an error is the video there, whole.

        Args:
            video: Its number.
            count: Records that will come.
            first: Target of the first.
            step: Distance between targets.

        Raises:
            ValueError: At the end, if another number of records came.
            OSError: The disk is full (named), or fails.
        """
        return RecordWriter(self, video, count=count, first=first, step=step)

    def read(self, video: int, indices: Sequence[int]) -> np.ndarray:
        """Reads records of one video.

        Args:
            video: Its number.
            indices: Which records, from 0; consecutive ones are read at once.

        Returns:
            [len(indices), *shape], in the store's dtype.

        Raises:
            StoreError: The video is missing or damaged.
            ValueError: It has no such record.
        """
        rows = self._rows(video, indices)
        out = np.empty((len(rows), *self.shape), self.dtype)
        mark, file = self._mark(video), self._file(video)
        start = 0
        while start < len(rows):
            stop = start + 1
            while stop < len(rows) and rows[stop] == rows[stop - 1] + 1:
                stop += 1
            self._into(file, mark, video, rows[start], out[start:stop])
            start = stop
        return out

    def read_batch(self, pairs: Sequence[tuple[int, int]]) -> np.ndarray:
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
        places = []
        for video, index in pairs:
            (row,) = self._rows(video, [index])
            places.append((video, row, self._file(video), self._mark(video)))
        # Tell the system all that is needed, so that a disk with a queue
        # works on the whole batch at once.
        for _, row, file, mark in places if sys.platform == "linux" else ():
            os.posix_fadvise(
                file.fd,
                int(mark.ends[row]),
                self.record_bytes,
                os.POSIX_FADV_WILLNEED,
            )
        out = np.empty((len(places), *self.shape), self.dtype)
        for n, (video, row, file, mark) in enumerate(places):
            self._into(file, mark, video, row, out[n : n + 1])
        return out

    def _rows(self, video: int, indices: Sequence[int]) -> list[int]:
        count = self.length(video)
        rows = [int(i) for i in indices]
        if rows and not 0 <= min(rows) <= max(rows) < count:
            raise ValueError(
                f"Video {video} has records 0 to {count - 1} in the "
                f"{self.manifest.kind} store {self.root}. Received: "
                f"{min(rows)} to {max(rows)}"
            )
        return rows

    def _into(
        self,
        file: _OpenFile,
        mark: _Mark,
        video: int,
        row: int,
        out: np.ndarray,
    ) -> None:
        """Fills `out`, [k, *shape], with the records from `row` on."""
        self._pread_into(file, int(mark.ends[row]), out)
        for n, record in enumerate(out):
            self._check_record(video, row + n, record)

    def _header(self, count: int) -> bytes:
        header = io.BytesIO()
        np.lib.format.write_array_header_1_0(
            header,
            {
                "descr": np.lib.format.dtype_to_descr(self.dtype),
                "fortran_order": False,
                "shape": (count, *self.shape),
            },
        )
        return header.getvalue()


class TruthStore(_Folder):
    """Where people looked, in every frame: PNG bytes, decoded on reading.

    On disk `NNNN.bin`: map 0, fixations 0, map 1, fixations 1 and so on, PNG
    files one after the other, as the dataset has them.
    """

    _suffix = ".bin"

    def length(self, video: int) -> int:
        """Number of frames of a video."""
        return super().length(video) // 2

    def targets(self, video: int) -> range:
        """Frame numbers of a video."""
        return range(self.length(video))

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
        with _Writer(
            self, video, count=2 * len(maps), first=0, step=1
        ) as writer:
            for pair in zip(maps, fixations, strict=True):
                for png in pair:
                    writer.put(png)

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
        rows = [2 * int(frame) + which for frame in frames]
        if rows and not 0 <= min(rows) <= max(rows) < 2 * self.length(video):
            raise ValueError(
                f"Video {video} has frames 0 to {self.length(video) - 1}. "
                f"Received: {min(rows) // 2} to {max(rows) // 2}"
            )
        mark, file = self._mark(video), self._file(video)
        out = None
        for n, row in enumerate(rows):
            data = self._pread(file, mark, row)
            self._check_record(video, row, data)
            image = maps_lib.decode(data.tobytes())
            if image is None:
                raise self._damaged(
                    video, f"frame {row // 2} is no PNG image", row
                )
            if out is None:
                out = np.empty((len(rows), *image.shape), np.uint8)
            if image.shape != out.shape[1:]:
                raise self._damaged(
                    video,
                    f"frame {row // 2} has size {image.shape}, others "
                    f"{out.shape[1:]}",
                    row,
                )
            out[n] = image
        if out is None:
            raise ValueError("`frames` must not be empty.")
        return out


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


def _crc32(data: Any) -> int:
    return zlib.crc32(data)


def _seal(fields: dict[str, Any]) -> int:
    """Checksum of a mark's fields."""
    return _crc32(_json(fields).encode())


@contextlib.contextmanager
def _locked(root: pathlib.Path) -> Iterator[None]:
    """Holds the folder's lock, against threads and other processes."""
    with (root / _LOCK).open("ab") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


@contextlib.contextmanager
def _naming_full_disk(path: pathlib.Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise OSError(
                error.errno,
                "disk full, and nothing of this video was kept; free some "
                "space and run the same command again",
                str(path),
            ) from error
        raise


def _temporary(target: pathlib.Path) -> tuple[pathlib.Path, BinaryIO]:
    """A new file beside `target`, locked as long as it is open."""
    name = f"{target.name}{_TEMPORARY}{os.getpid()}-{secrets.token_hex(4)}"
    path = target.with_name(name)
    # Under the folder's lock, because a file without an owner is removed.
    with _locked(target.parent):
        file = path.open("xb")
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    return path, file


def _remove_leftovers(root: pathlib.Path) -> None:
    """Removes temporary files whose writers are no more."""
    if not any(root.glob(f"*{_TEMPORARY}*")):
        return  # also where the folder is read-only
    with _locked(root):
        for path in root.glob(f"*{_TEMPORARY}*"):
            try:
                with path.open("rb") as file:
                    fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    path.unlink()
                logging.info("Removed %s, left by a process that died.", path)
            except (BlockingIOError, FileNotFoundError):
                continue


def _write(target: pathlib.Path, data: bytes) -> None:
    """Writes a small file, whole or not at all; the folder must be locked."""
    name = f"{target.name}{_TEMPORARY}{os.getpid()}"
    path = target.with_name(name)
    try:
        with path.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        path.replace(target)
    finally:
        path.unlink(missing_ok=True)
    files.sync(target.parent)
