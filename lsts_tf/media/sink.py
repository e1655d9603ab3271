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
from typing import TypeVar

import numpy as np

from lsts_tf.media import files

_Stream = TypeVar("_Stream", bound=IO)


class Sink:
    """The part that all outputs share.

    A subclass says what happens in `open`, `write` and `finish`.

    Attributes:
        path: The main file.
        fps: Frames a second.
        size: (width, height) of the frames.
        note: What has to be said of the weights, or "".
        count: How many frames came.
        start: Where the clip begins in the source: number of the frame, and
            its seconds. Set before the first frame comes, if it is not 0.
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
        self.start = (0, 0.0)
        self._files = contextlib.ExitStack()
        self._streams = contextlib.ExitStack()
        self._complete = False

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
        """Called once when all frames came, before files get their names.

        What it makes is to be whole then: videos are closed and checked.
        """

    def hidden(self, path: pathlib.Path) -> pathlib.Path:
        """A name to write under until the block ends; see `files`."""
        return self._files.enter_context(files.replacing(path))

    def text(self, path: pathlib.Path) -> IO[str]:
        """A text file to write to, which becomes `path` at the end."""
        stream = self.hidden(path).open("w", encoding="utf-8", newline="\n")
        return self.stream(stream)

    def stream(self, stream: _Stream) -> _Stream:
        """An open file, closed after `finish` and before any gets its name."""
        self._streams.callback(stream.close)
        return stream

    def enter(self, context: contextlib.AbstractContextManager) -> Any:
        """Enters a context that ends with the block."""
        return self._files.enter_context(context)

    def __enter__(self) -> Self:
        with contextlib.ExitStack() as stack:
            self._files = stack
            self._streams = stack.enter_context(contextlib.ExitStack())
            self.open()
            self._files = stack.pop_all()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: types.TracebackType | None,
    ) -> None:
        if kind is None:
            with self._files:
                self.complete()
            return
        # What went wrong first is what the caller has to see.
        with contextlib.suppress(OSError):
            self._streams.close()
        self._files.__exit__(kind, error, trace)

    def complete(self) -> None:
        """Makes all files whole; after it they only lack their names.

        The end of the block does so itself. Before, it is for those who have
        several outputs that are to appear together.
        """
        if self._complete:
            return
        self._complete = True
        with self._streams:
            self.finish()


def to_json(value: Mapping[str, Any], *, indent: int | None = None) -> str:
    """JSON that every reader takes: no NaN, no infinity.

    Raises:
        ValueError: There is one.
    """
    return json.dumps(value, ensure_ascii=False, allow_nan=False, indent=indent)
