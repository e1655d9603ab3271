"""Files that appear whole or not at all, and errors that name their file."""

from collections.abc import Iterator, Sequence
import contextlib
import errno
import fcntl
import hashlib
import os
import pathlib
import shutil
import socket
import zlib

from absl import logging

# Who works in a folder, see `alone`.
LOCK = ".lock"


class FileError(ValueError):
    """A file, at `path`, that is not what it has to be; `reason` says why."""

    def __init__(self, path: str | os.PathLike, reason: str):
        super().__init__(path, reason)
        self.path = pathlib.Path(path)
        self.reason = reason

    def __str__(self) -> str:
        return f"{self.path}: {self.reason}"


def named(things: Sequence[object], most: int = 3) -> str:
    """At most so many of some things, for a message: "4, 7, 8 and 2 more"."""
    more = f" and {len(things) - most} more" if len(things) > most else ""
    return ", ".join(map(str, things[:most])) + more


@contextlib.contextmanager
def replacing(
    path: pathlib.Path, *, lasting: bool = False
) -> Iterator[pathlib.Path]:
    """A name to write under; what stands there takes `path` at the end.

    Leaving by an exception removes it, and what `path` was stays. The suffix
    is kept, because writers choose the format by it.

    Args:
        path: The final name; its folder exists.
        lasting: Whether it also survives that the machine loses its power.
            It costs some milliseconds, which many small files need not have.

    Yields:
        A hidden name in the same folder, another one for each process.

    Raises:
        FileError: A folder stands at the final name.
    """
    refuse_folder(path)
    temporary = path.with_name(f".{path.stem}.{os.getpid()}{path.suffix}")
    try:
        yield temporary
        if lasting:
            # Otherwise the name may reach the disk before the content does.
            sync(temporary)
        temporary.replace(path)
        if lasting:
            sync(path.parent)
    finally:
        temporary.unlink(missing_ok=True)


def sync(path: pathlib.Path) -> None:
    """Bring to disk what a file holds, or which names a folder has."""
    number = os.open(path, os.O_RDONLY)
    try:
        os.fsync(number)
    except OSError as error:
        # Some network file systems cannot do it for a folder.
        if error.errno != errno.EINVAL:
            raise
    finally:
        os.close(number)


def sha256(path: pathlib.Path) -> str:
    """Checksum of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def delete(path: pathlib.Path) -> None:
    """Removes a file or a folder with all that it holds, if it is there."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def refuse_folder(path: pathlib.Path) -> None:
    """Raises FileError if a folder stands where a file is to be made."""
    if path.is_dir():
        raise FileError(
            path, "there is a folder of that name; choose another --output."
        )


@contextlib.contextmanager
def new_folder(path: pathlib.Path) -> Iterator[pathlib.Path]:
    """A folder to fill, which gets its name, `path`, when it is whole.

    Leaving by an exception removes it. Folders above it are made.

    Yields:
        A hidden folder beside it, another one for each process.

    Raises:
        FileExistsError: Something but an empty folder stands there.
    """
    is_empty = path.is_dir() and not any(path.iterdir())
    if path.exists() and not is_empty:
        raise FileExistsError(
            f"{path} already exists. Remove it, or choose another name."
        )
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    temporary.mkdir()
    try:
        yield temporary
        temporary.rename(path)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


@contextlib.contextmanager
def alone(folder: pathlib.Path) -> Iterator[None]:
    """Inside, no other process works in this folder; it is made.

    The system lets go of it when the process ends, also if it is killed. Its
    file stays, and names who was the last. Where the file system has no
    locks, there is a warning and no protection.

    Raises:
        RuntimeError: Another process does.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / LOCK).open("a+", encoding="utf-8") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            file.seek(0)
            raise RuntimeError(
                f"Only one process may work in {folder} at a time, and "
                f"{file.read().strip() or 'another one'} does. Wait for it to "
                "end, or stop it; or choose another folder."
            ) from error
        except OSError as error:
            logging.warning(
                "No lock on %s (%s): make sure that no second process works "
                "there.",
                folder,
                error.strerror,
            )
        else:
            file.truncate(0)
            file.write(f"process {os.getpid()} on {socket.gethostname()}\n")
            file.flush()
        yield


@contextlib.contextmanager
def claimed(
    folder: pathlib.Path, name: str, *, waits: bool = False
) -> Iterator[bool]:
    """Inside, no other process has claimed this name in this folder.

    As by `alone`, the folder is made, the system lets go of the name when the
    process ends, and without locks there is no protection. A process claims
    one name of a folder at a time.

    Yields:
        Whether it is claimed; False if another process has it, unless this one
        `waits` for it.
    """
    folder.mkdir(parents=True, exist_ok=True)
    how = fcntl.LOCK_EX | (0 if waits else fcntl.LOCK_NB)
    with (folder / LOCK).open("a", encoding="utf-8") as file:
        got = True
        try:
            # A byte for each name, so that thousands need one file.
            fcntl.lockf(file, how, 1, zlib.crc32(os.fsencode(name)))
        except OSError as error:
            # Others say that the file system has no locks.
            got = error.errno not in (errno.EAGAIN, errno.EACCES)
        yield got


@contextlib.contextmanager
def naming(what: str | os.PathLike) -> Iterator[None]:
    """Errors of the system in the block say which file they are about.

    Writing to an open file says "No space left on device", and not where.
    """
    try:
        yield
    except OSError as error:
        if error.errno is not None and error.filename is None:
            error.filename = os.fspath(what)
        raise


def write_text(path: pathlib.Path, text: str) -> None:
    """Write a text file in UTF-8, whole or not at all, and lastingly."""
    with replacing(path, lasting=True) as temporary, naming(path):
        temporary.write_text(text, encoding="utf-8")
