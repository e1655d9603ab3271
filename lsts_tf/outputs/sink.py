"""The base of all outputs: frames and maps go in, files come out whole.

An output is one class, and all that is known of it stands there:

    @sink.output("overlay", "overlay.mp4")
    class Overlay(sink.Sink):
        view: str = option.field("heat", "How overlays are drawn", choices=...)

`output` gives it a name for --outputs, and a file. The base makes the class a
dataclass, so that an option is a field and also a flag of the same name, and
checks its range. `run` finds the classes of every module of this package.
"""

from collections.abc import Callable, Iterator, Mapping
import contextlib
import dataclasses
import fractions
import glob
import json
import os
import pathlib
import typing
from typing import IO, Any, BinaryIO, ClassVar, NamedTuple, Self, TypeVar

import numpy as np

from lsts_tf import option
from lsts_tf.media import files, video, writer

# What an unfinished output belongs to.
_JOB = ".job"

_Made = TypeVar("_Made", bound=type)


class Kind(NamedTuple):
    """What a name of --outputs stands for."""

    # Name in the output folder; {video} is the video's. "" if it has no file.
    file: str
    make: type["Sink"]
    # Arguments that make it this one of several.
    fixed: Mapping[str, Any]


#: All outputs by name.
KINDS: dict[str, Kind] = {}


def output(name: str, file: str = "", **fixed: Any) -> Callable[[_Made], _Made]:
    """Makes a class an output; see `Kind`."""

    def named(make: _Made) -> _Made:
        KINDS[name] = Kind(file, make, fixed)
        return make

    return named


@typing.dataclass_transform(
    kw_only_default=True, field_specifiers=(option.field,)
)
@dataclasses.dataclass(kw_only=True)
class Sink:
    """One output of a clip.

    It is a context manager. Its files are written into a hidden folder beside
    `path` and get their names when the block ends; an exception in the block
    leaves what stood there before:

        with attention.JsonLines(path=..., fps=25, size=(640, 360)) as output:
            for frame, map_, time in ...:
                output.write(frame, map_, time)

    A subclass says what happens in `_open`, `_write` and `_finish`. One that
    `resumes` counts in `_open` what an interrupted block of the same `job`
    left; frames that then come again replace it.

    Attributes:
        path: The main file, or the folder of pictures.
        fps: Frames a second.
        size: (width, height) of the frames.
        note: What has to be said of the weights, or "".
        pixel_aspect: Width of a pixel of the frames by its height.
        first: Number in the clip of the first frame that comes, from 0.
        step: Distance between the numbers of two frames that come.
        title: What the clip is called.
        about: What the maps were made with; may be nested.
        job: Text that says what is made, where it may be resumed; or "".
        count: How many frames were written.
        start: Where the clip begins in the source: number of the frame, and
            its seconds. Set before the first frame comes, if it is not 0.
        damage: What is wrong with the clip, or ""; set after the last frame.
        reads: Files that it reads beside the video, and what they hold.
        resumes: Whether it can go on where an interrupted block stopped.
    """

    #: Files beside the main one: their names, or endings in place of its own.
    BESIDE: ClassVar[tuple[str, ...]] = ()
    #: Whether it needs the frames themselves, which are large.
    DRAWS: ClassVar[bool] = True

    path: pathlib.Path
    fps: float
    size: tuple[int, int]
    note: str = ""
    pixel_aspect: fractions.Fraction = video.SQUARE
    first: int = 0
    step: int = 1
    title: str = ""
    about: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    job: str = ""
    count: int = dataclasses.field(default=0, init=False)
    start: tuple[int, float] = dataclasses.field(default=(0, 0.0), init=False)
    damage: str = dataclasses.field(default="", init=False)
    reads: Mapping[pathlib.Path, str] = dataclasses.field(
        default_factory=dict, init=False
    )
    resumes: bool = dataclasses.field(default=False, init=False)

    def __init_subclass__(cls) -> None:
        dataclasses.dataclass(kw_only=True)(cls)

    def __post_init__(self) -> None:
        option.check(self)
        self.path = pathlib.Path(self.path)
        self._hidden = self.path
        self._contexts = contextlib.ExitStack()
        self._complete = False

    # === What a subclass says ===

    def _open(self) -> None:
        """Called when the block begins."""

    def _write(self, frame: np.ndarray, map_: np.ndarray, time: float) -> None:
        """Takes the next frame; see `write`."""
        raise NotImplementedError

    def _finish(self) -> None:
        """Called once when all frames came, before files are closed."""

    # === What it may use ===

    def paths(self) -> list[pathlib.Path]:
        """All files that it makes, or the folder."""
        return [
            self.path,
            *(
                self.path.with_suffix(name)
                if name.startswith(".")
                else self.path.with_name(name)
                for name in self.BESIDE
            ),
        ]

    def hidden(self, path: pathlib.Path) -> pathlib.Path:
        """Where a file lies until the block ends."""
        return self._hidden / path.name

    def enter(self, context: contextlib.AbstractContextManager) -> Any:
        """Enters a context that ends after `finish`, before files appear."""
        return self._contexts.enter_context(context)

    def text(self, path: pathlib.Path) -> IO[str]:
        """A text file to write to, which becomes `path` at the end."""
        return self.enter(
            self.hidden(path).open(
                "w",
                encoding="utf-8",
                # Names of files need not be UTF-8.
                errors="backslashreplace",
                newline="\n",
            )
        )

    def array(
        self, path: pathlib.Path, shape: tuple[int, ...], dtype: str
    ) -> BinaryIO:
        """A file of NumPy for items of a shape and type, one a frame."""
        file = self.enter(self.hidden(path).open("wb"))
        about = {"descr": dtype, "fortran_order": False}

        def write_header() -> None:
            about["shape"] = self.count, *shape
            file.seek(0)
            np.lib.format.write_array_header_1_0(file, about)

        write_header()
        # There is room for the number of frames, which only the end knows.
        self._contexts.callback(write_header)
        return file

    def film(self, size: tuple[int, int], **how: Any) -> writer.Writer:
        """The main file as a film of frames of a size; see `writer.Writer`."""
        how = {"fps": self.fps, "pixel_aspect": self.pixel_aspect, **how}
        film = writer.Writer(self.hidden(self.path), size=size, **how)
        return self.enter(film)

    # === The block ===

    def __enter__(self) -> Self:
        with self.naming():
            if self.paths():
                self._begin()
            try:
                self._make_hidden()
                self._open()
            except BaseException as error:
                self.__exit__(type(error), error, None)
                raise
        return self

    def _begin(self) -> None:
        if not self.path.parent.is_dir():
            raise files.FileError(
                self.path, "cannot be written: no such folder."
            )
        self.refuse_others()
        part = self.path.with_name(f".{self.path.name}.part")
        alone = part.with_suffix(f".{os.getpid()}.part")
        self._hidden = part if self.job else alone
        job = part / _JOB
        if self.job and job.is_file() and job.read_text("utf-8") == self.job:
            return
        files.delete(part)
        others = f".{glob.escape(self.path.name)}.*.part"
        for left in filter(_is_left, list(self.path.parent.glob(others))):
            files.delete(left)
        files.delete(alone)

    def _make_hidden(self) -> None:
        if self.paths() and not self._hidden.is_dir():
            self._hidden.mkdir()
            if self.job:
                files.write_text(self._hidden / _JOB, self.job)

    def write(self, frame: np.ndarray, map_: np.ndarray, time: float) -> None:
        """Takes the next frame.

        Args:
            frame: uint8 RGB [H, W, 3], as the video has it; may be empty for
                an output that does not draw.
            map_: float32 [h, w] in [0, 1], as the network gave it.
            time: Seconds from the start of the clip.
        """
        with self.naming():
            self._write(frame, map_, time)
        self.count += 1

    def complete(self) -> None:
        """Makes all files whole; after it they only lack their names.

        For outputs that are to appear together; else the end of the block does.
        """
        if not self._complete:
            self._complete = True
            with self.naming(), self._contexts:
                self._finish()

    def __exit__(self, *error: Any) -> None:
        placed = False
        try:
            if error[0] is None:
                self.complete()
                self._place()
                placed = True
            else:
                # What went wrong first is what the caller has to see.
                with contextlib.suppress(OSError, ValueError):
                    self._contexts.__exit__(*error)
        finally:
            if self.paths() and (placed or not self.job):
                try:
                    files.delete(self._hidden)
                except KeyboardInterrupt:
                    files.delete(self._hidden)  # All that is left of it.
                    raise

    def _place(self) -> None:
        # Hours may have gone by.
        self.refuse_others()
        for path in self.paths():
            if path.is_dir():
                # A folder cannot take the place of another one in one step.
                path.rename(self._hidden / f".{path.name}.old")
            self.hidden(path).replace(path)

    def refuse_others(self) -> None:
        """Raises FileError where something else than an output would go."""
        for path in self.paths():
            files.refuse_folder(path)

    @contextlib.contextmanager
    def naming(self) -> Iterator[None]:
        """Errors in the block name the file that it becomes."""

        def shown(name: str | os.PathLike) -> pathlib.Path:
            path = pathlib.Path(name)
            if not path.is_relative_to(self._hidden):
                return path
            inside = path.relative_to(self._hidden)
            return self.path.parent / inside if inside.parts else self.path

        try:
            yield
        except files.FileError as error:
            error.path = shown(error.path)
            raise
        except OSError as error:
            if error.errno is not None:
                error.filename = str(shown(error.filename or self.path))
            raise

    # === Its options ===

    @classmethod
    def options(cls) -> dict[str, dataclasses.Field]:
        """Fields that no other output needs to have, by name."""
        common = {field.name for field in dataclasses.fields(Sink)}
        own = [f for f in dataclasses.fields(cls) if f.name not in common]
        return {field.name: field for field in own if field.init}

    def settings(self) -> dict[str, Any]:
        """What the options that are flags were set to."""
        return {name: getattr(self, name) for name in option.of(type(self))}


def _is_left(part: pathlib.Path) -> bool:
    """Whether the process that wrote there was killed."""
    try:
        os.kill(int(part.suffixes[-2][1:]), 0)
    except (ValueError, OverflowError, OSError) as error:
        return isinstance(error, ProcessLookupError)
    return False


def to_json(value: Mapping[str, Any], *, indent: int | None = None) -> str:
    """JSON that every reader takes: NaN and infinity raise ValueError."""
    return json.dumps(value, ensure_ascii=False, allow_nan=False, indent=indent)
