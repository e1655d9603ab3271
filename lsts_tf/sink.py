"""Outputs of a clip: a frame and its map go in, files come out whole.

An output is a context manager. What it writes has hidden names until its
block ends; an exception in the block leaves nothing behind, and what stood
under the final names stays:

    with attention.JsonLines(path=..., fps=25, size=(640, 360)) as output:
        for frame, map_, time in ...:
            output.write(frame, map_, time)

Several files of one output lie beside each other and differ in their endings.
"""

from collections.abc import Mapping
import contextlib
import json
import os
import pathlib
import types
from typing import IO
from typing import Any
from typing import Self

import numpy as np

from lsts_tf import files


class Sink:
    """The part that all outputs share.

    A subclass says what happens in `open`, `write` and `finish`.

    Attributes:
        path: The main file.
        fps: Frames a second.
        size: (width, height) of the frames.
        note: What has to be said of the weights, or "".
        count: How many frames came.
    """

    def __init__(
        self,
        *,
        path: str | os.PathLike,
        fps: float,
        size: tuple[int, int],
        note: str = "",
    ) -> None:
        self.path = pathlib.Path(path)
        self.fps = fps
        self.size = size
        self.note = note
        self.count = 0
        self._files = contextlib.ExitStack()

    def open(self) -> None:
        """Called when the block begins."""

    def write(self, frame: np.ndarray, map_: np.ndarray, time: float) -> None:
        """Takes the next frame.

        Args:
            frame: uint8 RGB [H, W, 3], as the video has it.
            map_: float32 [h, w] in [0, 1], as the network gave it.
            time: Seconds from the start of the clip.
        """
        raise NotImplementedError

    def finish(self) -> None:
        """Called when the block ends well, before files get their names."""

    def hidden(self, path: pathlib.Path) -> pathlib.Path:
        """A name to write under until the block ends; see `files`."""
        return self._files.enter_context(files.replacing(path))

    def text(self, path: pathlib.Path) -> IO[str]:
        """A text file to write to, which becomes `path` at the end."""
        stream = self.hidden(path).open("w", encoding="utf-8", newline="\n")
        return self._files.enter_context(stream)

    def enter(self, context: contextlib.AbstractContextManager) -> Any:
        """Enters a context that ends with the block."""
        return self._files.enter_context(context)

    def __enter__(self) -> Self:
        with contextlib.ExitStack() as stack:
            self._files = stack
            self.open()
            self._files = stack.pop_all()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: types.TracebackType | None,
    ) -> None:
        if kind is not None:
            self._files.__exit__(kind, error, trace)
            return
        with self._files:
            self.finish()


def to_json(value: Mapping[str, Any], *, indent: int | None = None) -> str:
    """JSON that every reader takes: no NaN, no infinity.

    Raises:
        ValueError: There is one.
    """
    return json.dumps(value, ensure_ascii=False, allow_nan=False, indent=indent)
