"""One pass over a clip: from frames to all that is made of their maps.

`KINDS` names the outputs, `Options` is what they are told, and `predict` makes
them. It refuses first what cannot be done, goes on where an interrupted pass
stopped if it can, and writes a record beside the files. docs/predict.md says
what a user sees of it.
"""

from collections.abc import Callable
from collections.abc import Collection
from collections.abc import Iterable
from collections.abc import Iterator
from collections.abc import Mapping
from collections.abc import Sequence
import contextlib
import dataclasses
import datetime
import functools
import itertools
import json
import os
import pathlib
import sys
import time as clock
from typing import Any
from typing import BinaryIO
from typing import NamedTuple

from absl import logging
import numpy as np
import tqdm

from lsts_tf import predictor as predictor_lib
from lsts_tf import windows
from lsts_tf.features import extractor as extractor_lib
from lsts_tf.media import files
from lsts_tf.media import sink
from lsts_tf.media import sources
from lsts_tf.media import video as video_lib
from lsts_tf.outputs import attention
from lsts_tf.outputs import encoding
from lsts_tf.outputs import pictures
from lsts_tf.outputs import reframe
from lsts_tf.outputs import report

RECORD = "prediction.json"
DEFAULT = ("overlay", "maps")
STDOUT = "stdout"
_PIPE = "standard output"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options:
    """What outputs may be told; each takes what it knows.

    Attributes:
        view: "heat" or "fog", of what is drawn.
        alpha: Strength of what is drawn, 0 … 1.
        normalize: Of maps, not of what is drawn: "none", "frame", "clip" or
            "sum"; see `outputs.Scale` and `outputs.OverClip`.
        map_size: Size of maps: "source" or "model".
        stream: Where `stdout` writes.
        areas: File of areas of interest, or "" (json, report).
        regions: Regions of a line (json).
        block: Side of a block (roi, encoded); see `encoding.offsets`.
        strength: Steps of QP; see there.
        floor: Most that QP is raised; see there.
        codec: One of `encoding.CODECS` (encoded).
        crf: Rate factor (encoded).
        aspect: Such as "9:16" (reframed).
        stiffness: See `reframe` for this and the next three.
        lookahead: Seconds.
        ease: Seconds.
        cut: Difference of two frames at which a scene begins.
        report: Where the page is written, or "" for report.html in the folder
            (report).
    """

    view: str = "heat"
    alpha: float = 0.6
    normalize: str = "none"
    map_size: str = "source"
    stream: BinaryIO | None = None
    areas: str = ""
    regions: int = 3
    block: int = encoding.BLOCK
    strength: float = encoding.STRENGTH
    floor: float = encoding.FLOOR
    codec: str = "h264"
    crf: float = 23.0
    aspect: str = "9:16"
    stiffness: float = reframe.STIFFNESS
    lookahead: float = reframe.LOOKAHEAD
    ease: float = reframe.EASE
    cut: float = reframe.CUT
    report: str = ""


class Kind(NamedTuple):
    """One name of --outputs.

    Attributes:
        file: Its name in the output folder; {video} is the video's.
        make: Its class.
        options: Fields of `Options`, and "numbers", "first", "about", "job"
            and "pixel_aspect", that it takes.
        beside: Names of the other files that it writes in the same folder.
    """

    file: str
    make: Callable[..., Any]
    options: tuple[str, ...] = ()
    beside: tuple[str, ...] = ()


_DRAWN = ("view", "alpha", "pixel_aspect")
_MAPS = ("normalize", "map_size")
_BLOCKS = ("block", "strength", "floor")
KINDS: Mapping[str, Kind] = {
    "overlay": Kind("overlay.mp4", pictures.Overlay, _DRAWN),
    "side_by_side": Kind("side_by_side.mp4", pictures.SideBySide, _DRAWN),
    "saliency": Kind(
        "saliency.mp4", pictures.Saliency, (*_MAPS, "pixel_aspect")
    ),
    "saliency16": Kind(
        "saliency16.mkv",
        functools.partial(pictures.Saliency, bits=16),
        _MAPS,
    ),
    "npy": Kind("maps.npy", pictures.Array, (*_MAPS, "job")),
    "png8": Kind("maps", pictures.Pictures, (*_MAPS, "numbers", "job")),
    "png16": Kind(
        "maps16",
        functools.partial(pictures.Pictures, bits=16),
        (*_MAPS, "numbers", "job"),
    ),
    "dhf1k": Kind("{video}", pictures.Pictures, (*_MAPS, "numbers", "job")),
    STDOUT: Kind("", pictures.Raw, (*_MAPS, "stream")),
    "json": Kind(
        "attention.jsonl",
        attention.JsonLines,
        ("areas", "regions"),
        beside=("summary.json",),
    ),
    "roi": Kind(
        "roi.npy",
        encoding.Offsets,
        _BLOCKS,
        beside=("roi.json", "roi.txt", "roi.addroi"),
    ),
    "encoded": Kind(
        "encoded.mp4",
        encoding.Encoder,
        (*_BLOCKS, "codec", "crf", "pixel_aspect"),
    ),
    "reframed": Kind(
        "reframed.mp4",
        reframe.Reframe,
        (
            *("aspect", "stiffness", "lookahead", "ease", "cut", "first"),
            "pixel_aspect",
        ),
        beside=("reframed.json", "reframed.csv", "reframed.sendcmd"),
    ),
    "report": Kind("report.html", report.Report, ("areas", "alpha", "about")),
}
ALIASES = {"maps": "png8"}


def predict(
    predictor: predictor_lib.Predictor,
    source: sources.Source | str | os.PathLike,
    output: str | os.PathLike | None,
    *,
    outputs: Sequence[str] = DEFAULT,
    options: Options = Options(),
    first_frames: str = "mirror",
    start: str = "",
    end: str = "",
    every: int = 1,
    about: Mapping[str, Any] | None = None,
) -> str:
    """Write what is wanted of one video.

    Args:
        predictor: The model.
        source: The video; a path is that of a file.
        output: Folder to write to; earlier results of the same names in it
            are replaced. None if only `stdout` is wanted, or a report whose
            place `options` tells.
        outputs: Names of `KINDS`, or "maps" for "png8".
        options: What outputs are told.
        first_frames: See `Predictor.maps`. With "skip" the outputs begin with
            the first frame that has a whole window.
        start: Where the clip begins; see `sources.Clip`.
        end: Where it ends.
        every: Each so-manieth frame gets a map and is written; the model sees
            all of them.
        about: What the model is, for the record. With it an interrupted
            prediction can be gone on with; see `outputs`.

    Returns:
        What is wrong with the video, or "".

    Raises:
        ValueError: Something that cannot be done; nothing was written.
        OSError: It cannot be written.
    """
    if not isinstance(source, sources.Source):
        source = sources.File(source)
    if every < 1:
        raise ValueError(f"--every is at least 1. Received: {every}")
    names = list(dict.fromkeys(ALIASES.get(n, n) for n in outputs))
    if not names:
        raise ValueError(
            f"Name at least one output: {', '.join(KINDS)}. Received: none"
        )
    if unknown := [n for n in names if n not in KINDS]:
        raise ValueError(
            f"Outputs are {', '.join(KINDS)}. Received: {', '.join(unknown)}"
        )
    job = _Job(
        predictor=predictor,
        source=source,
        folder=None if output is None else pathlib.Path(output),
        names=names,
        options=options,
        first_frames=first_frames,
        start=start,
        end=end,
        every=every,
        about=about or {},
    )
    return job.run()


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Job:
    """One call of `predict`."""

    predictor: predictor_lib.Predictor
    source: sources.Source
    folder: pathlib.Path | None
    names: Sequence[str]
    options: Options
    first_frames: str
    start: str
    end: str
    every: int
    about: Mapping[str, Any]

    def run(self) -> str:
        made = self._make()
        self._refuse_overlaps()
        if self.folder is not None:
            self.folder.mkdir(parents=True, exist_ok=True)
        if "report" in self.names and self.options.report:
            page = pathlib.Path(self.options.report)
            page.parent.mkdir(parents=True, exist_ok=True)
        started = datetime.datetime.now(datetime.UTC)
        begin = clock.perf_counter()
        with contextlib.ExitStack() as stack:
            record = None
            if self.folder is not None:
                path = self.folder / self._record_name
                record = stack.enter_context(files.replacing(path))
            for where, output in made.items():
                with files.naming(where):
                    stack.enter_context(output)
            clip, done, last = self._write(made)
            for where, output in made.items():
                if isinstance(output, report.Report):
                    output.damage = self.source.damage
                with files.naming(where):
                    pictures.complete([output])
            if record is not None:
                about = self._record(clip, done, last) | {
                    "started": started.isoformat(timespec="seconds"),
                    "seconds": round(clock.perf_counter() - begin, 3),
                }
                text = json.dumps(about, indent=2, ensure_ascii=False)
                with files.naming(path):
                    record.write_text(text + "\n", encoding="utf-8")
        return self.source.damage

    def _make(self) -> dict[str, pictures.Output]:
        """The outputs by the file that errors are to name.

        Those that need the clip's range are together in one.
        """
        plain: dict[str, pictures.Output] = {}
        ranged: list[pictures.Output] = []
        for name in self.names:
            waits = (
                self.options.normalize == "clip"
                and "normalize" in KINDS[name].options
            )
            output = self._output(name, waits=waits)
            if waits:
                ranged.append(output)
            else:
                place = str(self._place(name))
                plain[_PIPE if name == STDOUT else place] = output
        if ranged:
            plain["maps that wait for the clip's end"] = pictures.OverClip(
                folder=self.folder, wrapped=ranged, size=self.source.size
            )
        return plain

    def _output(self, name: str, *, waits: bool) -> pictures.Output:
        kind = KINDS[name]
        values = {n: getattr(self.options, n, None) for n in kind.options}
        if waits:
            values["normalize"] = "none"
        if "first" in values:
            values["first"] = self._first
        if "numbers" in values:
            del values["numbers"]
            values |= {"first": self._first, "step": self.every}
        if "pixel_aspect" in values:
            values["pixel_aspect"] = self.source.pixel_aspect
        if "job" in values:
            values["job"] = self._identity()
        if "about" in values:
            values["title"] = pathlib.PurePath(self.source.name).name
            values["about"] = {
                **self.about,
                "front_end": self.predictor.extractor.describe(),
                "first_frames": self.first_frames,
            }
        return kind.make(
            path=self._place(name),
            fps=self.source.fps / self.every,
            size=self.source.size,
            note=self.predictor.note,
            **values,
        )

    def _place(self, name: str) -> pathlib.Path:
        if name == "report" and self.options.report:
            return pathlib.Path(self.options.report)
        file = KINDS[name].file.format(video=self._video_name)
        if self.folder is None and file:
            raise ValueError("--output is needed: a folder to write to.")
        return (self.folder or pathlib.Path()) / file

    def _places(self, name: str) -> list[pathlib.Path]:
        """All files, or the folder, that an output writes; resolved."""
        if name == STDOUT:
            return []
        main = self._place(name)
        beside = [main.with_name(other) for other in KINDS[name].beside]
        return [path.resolve() for path in (main, *beside)]

    def _refuse_overlaps(self) -> None:
        """No output takes the place of what is read, or of another one."""
        read = {
            path.resolve(): "the video that is" for path in self.source.paths
        }
        if self.options.areas:
            areas = pathlib.Path(self.options.areas).resolve()
            read[areas] = "the areas of interest that are"
        inputs = {
            place: what
            for at, what in read.items()
            for place in (at, *at.parents)
        }
        written = {name: self._places(name) for name in self.names}
        if self.folder is not None:
            record = self.folder / self._record_name
            written = {"the record": [record.resolve()], **written}
        taken: dict[pathlib.Path, str] = {}
        for name, places in written.items():
            for place in places:
                if place in inputs:
                    raise ValueError(
                        f"{name} would replace {inputs[place]} "
                        "read, or the folder it lies in: choose another "
                        f"--output. Received: {place}"
                    )
                for other, owner in taken.items():
                    if (
                        place in (other, *other.parents)
                        or other in place.parents
                    ):
                        raise ValueError(
                            f"{owner} and {name} cannot both be written: they "
                            "have one place. Leave one out, or give the video "
                            "or the report another name. "
                            f"Received: {other}, {place}"
                        )
            taken |= dict.fromkeys(places, name)

    def _written(self, name: str) -> str:
        """Where it lies, as seen from the folder if it is in it."""
        place = self._place(name)
        if self.folder and place.is_relative_to(self.folder):
            place = place.relative_to(self.folder)
        return str(place)

    @property
    def _missing(self) -> int:
        return self.predictor.first_map

    @property
    def _first(self) -> int:
        return windows.first_map(self._missing, self.first_frames, self.every)

    @property
    def _video_name(self) -> str:
        """As DHF1K's folders are called: four digits where it is a number."""
        stem = self.source.stem
        return f"{int(stem):04d}" if stem.isdecimal() else stem

    @property
    def _record_name(self) -> str:
        # A submission holds one video beside the other, and nothing else
        # that is not hidden.
        alone = list(self.names) == ["dhf1k"]
        return f".{self._video_name}.json" if alone else RECORD

    def _identity(self) -> str:
        """A text that says what is made; "" if it cannot be gone on with.

        Only where every output can, and where a map needs no frames but those
        of its window.
        """
        together = all("job" in KINDS[name].options for name in self.names)
        alone = self.predictor.extractor.describe().get("front_end") == "window"
        # Of several maps a window, hops would begin at another frame.
        alone = alone and self.predictor.hop == 1
        if not (
            together
            and alone
            and self.about
            and self.source.identity
            and self.options.normalize != "clip"
        ):
            return ""
        what = {
            "source": self.source.identity,
            "clip": [self.start, self.end, self.every, self.first_frames],
            "maps": [self.options.normalize, self.options.map_size],
            "front_end": extractor_lib.deciding(
                self.predictor.extractor.describe()
            ),
            "about": dict(self.about),
        }
        return json.dumps(what, indent=1, sort_keys=True)

    def _write(
        self, made: Mapping[str, pictures.Output]
    ) -> tuple[sources.Clip, int, float]:
        """Predict and write; the clip, maps written, time of the last."""
        done = _agree(made.values())
        if self._first + done * self.every < self._missing:
            done = _agree(made.values(), most=0)
        first = self._first + done * self.every
        # What is read again is the window of the first map to come.
        skip = first - self._missing if done else 0
        mode = "skip" if done else self.first_frames
        if done:
            logging.info("Going on at frame %d.", first)
        clip = sources.Clip(
            self.source, start=self.start, end=self.end, skip=skip
        )
        frames, drawn = sources.two_readers(clip)
        saliency = self._maps(frames, mode)
        shown = itertools.islice(drawn, first - skip, None, self.every)
        total = clip.num_frames
        if total is not None:
            total = max(0, -(-(total - self._first) // self.every))
        last = 0.0
        bar = tqdm.tqdm(
            saliency,
            total=total,
            initial=done,
            desc="predicting",
            unit="frame",
        )
        for map_, (frame, time) in zip(bar, shown, strict=False):
            if not last:
                _tell_start(made.values(), clip)
            for where, output in made.items():
                with files.naming(where):
                    output.write(frame, map_, time)
            done, last = done + 1, time
        if not done:
            raise video_lib.VideoError(self.source.name, self._nothing())
        return clip, done, last

    def _maps(
        self, frames: Iterable[np.ndarray], mode: str
    ) -> Iterator[np.ndarray]:
        if mode != "skip":
            return self.predictor.maps(
                frames, first_frames=mode, stride=self.every
            )
        # All maps but the copies.
        copied = self.predictor.maps(
            frames, first_frames="copy", stride=self.every
        )
        return itertools.islice(copied, self._missing // self.every, None)

    def _nothing(self) -> str:
        if self.source.damage:
            # The error names the video itself.
            return self.source.damage.removeprefix(f"{self.source.name}: ")
        return f"no frame from --start={self.start} to --end={self.end}."

    def _record(
        self, clip: sources.Clip, done: int, last: float
    ) -> dict[str, Any]:
        about = self.predictor.extractor.describe()
        return {
            "video": self.source.name,
            "frames": done,
            "fps": self.source.fps / self.every,
            "size": list(self.source.size),
            "pixel_aspect": list(self.source.pixel_aspect.as_integer_ratio()),
            "start": {"frame": clip.first_frame, "seconds": clip.first_time},
            "last_map_seconds": last,
            "first_map": self._first,
            "every": self.every,
            "first_frames": self.first_frames,
            "outputs": {
                name: "-" if name == STDOUT else self._written(name)
                for name in self.names
            },
            "normalize": self.options.normalize,
            "map_size": self.options.map_size,
            "view": self.options.view,
            "view_normalize": "frame",
            "model": dict(self.about),
            "front_end": about,
            "note": self.predictor.note,
            "damage": self.source.damage,
        }


def _tell_start(made: Collection[pictures.Output], clip: sources.Clip) -> None:
    """What is known once the first frame has been read."""
    for output in made:
        if isinstance(output, sink.Sink):
            output.start = clip.first_frame or 0, clip.first_time or 0.0


def _agree(made: Collection[pictures.Output], most: int = sys.maxsize) -> int:
    """How many maps all outputs have from before; they keep no more.

    One less than they have, so that there is always something to predict.
    """
    able = [m for m in made if isinstance(m, pictures.Resumable)]
    if len(able) < len(made):
        most = 0
    done = max(0, min([most, *(output.done - 1 for output in able)]))
    for output in able:
        output.go_on(done)
    return done
