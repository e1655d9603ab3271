"""Files that appear whole or not at all, and errors that name their file."""

from collections.abc import Iterator
import contextlib
import os
import pathlib


class FileError(ValueError):
    """A file that is not what it has to be.

    Attributes:
        path: The file.
        reason: What is wrong with it, without the path.
    """

    def __init__(self, path: str | os.PathLike, reason: str):
        super().__init__(path, reason)
        self.path = pathlib.Path(path)
        self.reason = reason

    def __str__(self) -> str:
        return f"{self.path}: {self.reason}"


@contextlib.contextmanager
def replacing(path: pathlib.Path) -> Iterator[pathlib.Path]:
    """A name to write under; what stands there takes `path` at the end.

    Leaving by an exception removes it, and what `path` was stays. The suffix
    is kept, because writers choose the format by it.

    Args:
        path: The final name; its folder exists.

    Yields:
        A hidden name in the same folder, another one for each process.
    """
    temporary = path.with_name(f".{path.stem}.{os.getpid()}{path.suffix}")
    try:
        yield temporary
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def write_text(path: pathlib.Path, text: str) -> None:
    """Write a text file in UTF-8, whole or not at all."""
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8")
