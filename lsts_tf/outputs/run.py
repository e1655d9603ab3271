"""One pass over a clip: from frames to all that is made of their maps.

`predict` refuses first what cannot be done, goes on where an interrupted pass
stopped if it can, and writes a record beside the files. docs/predict.md says
what a user sees of it.
"""

from collections.abc import Mapping, Sequence
import contextlib
import dataclasses
import datetime
import importlib
import itertools
import json
import multiprocessing
import os
import pathlib
import pkgutil
import time as clock
from typing import TYPE_CHECKING, Any

from absl import logging
import tqdm

from lsts_tf import option, windows
from lsts_tf import outputs as outputs_package
from lsts_tf.media import files, sources, video
from lsts_tf.outputs import sink

if TYPE_CHECKING:
    from lsts_tf import predictor as predictor_lib

# An output is a class in any module of this package; nothing else names it.
for _module in pkgutil.iter_modules(outputs_package.__path__):
    importlib.import_module(f"{outputs_package.__name__}.{_module.name}")

KINDS = sink.KINDS
RECORD = "prediction.json"
DEFAULT = ("overlay", "maps")
STDOUT = "stdout"
REPORT = "report"
ALIASES = {"maps": "png8"}


def numbered(stem: str) -> str:
    """A film's name as DHF1K's folders have it: numbers have four digits."""
    return f"{int(stem):04d}" if stem.isdecimal() else stem


def users(name: str) -> list[str]:
    """Names of the outputs that have an option."""
    return [n for n, kind in KINDS.items() if name in kind.make.options()]


def predict(
    predictor: "predictor_lib.Predictor",
    source: sources.Source | str | os.PathLike,
    output: str | os.PathLike | None,
    **settings: Any,
) -> str:
    """Write what is wanted of one video.

    Args:
        predictor: The model.
        source: The video; a path is that of a file.
        output: Folder to write to; earlier results of the same names in it
            are replaced. None if only `stdout` is wanted, or a report whose
            place `report` tells.
        **settings: What is wanted; see `Pass`.

    Returns:
        What is wrong with the video, or "".

    Raises:
        ValueError: Something that cannot be done; nothing was written.
        OSError: It cannot be written.
    """
    if not isinstance(source, sources.Source):
        source = sources.File(source)
    folder = None if output is None else pathlib.Path(output)
    Pass(predictor, source, folder, **settings).run()
    return source.damage


@dataclasses.dataclass
class Pass:
    """One call of `predict`, and what may be wanted.

    Attributes:
        outputs: Names of `KINDS`, or "maps" for "png8".
        options: What outputs are told, by the names of the fields of their
            classes; each takes what it knows.
        first_frames: See `Predictor.maps`. With "skip" the outputs begin with
            the first frame that has a whole window.
        every: Only every Nth frame gets a map and is written; the model sees
            all of them.
        about: What the model is, for the record. With it an interrupted
            prediction can be resumed.
    """

    predictor: "predictor_lib.Predictor"
    source: sources.Source
    folder: pathlib.Path | None
    _: dataclasses.KW_ONLY
    outputs: Sequence[str] = DEFAULT
    options: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    report: str | os.PathLike = option.field(
        "",
        "File for the report, if not in --output; without --output and "
        "--outputs, only the report is written",
    )
    first_frames: str = option.field(
        windows.FIRST_FRAMES[0],
        "How frames before the first complete window are predicted",
        choices=windows.FIRST_FRAMES,
    )
    start: str = option.field(
        "", "Start of the clip: seconds (12.5) or a frame number (300f)"
    )
    end: str = option.field("", "End of the clip, in the same form as --start")
    every: int = option.field(1, "Predict every Nth frame", least=1)
    about: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    def __post_init__(self) -> None:
        option.check(self)
        names = list(dict.fromkeys(ALIASES.get(n, n) for n in self.outputs))
        unknown = [name for name in names if name not in KINDS]
        if unknown or not names:
            raise ValueError(
                f"Outputs are one or more of {', '.join(KINDS)}. "
                f"Received: {', '.join(unknown) or 'none'}"
            )
        if unknown := [name for name in self.options if not users(name)]:
            raise ValueError(
                "Options are the fields of the outputs' classes. "
                f"Received: {', '.join(unknown)}"
            )
        self._front_end = self.predictor.extractor.describe()
        # Frames without a window, and the first one that gets a map.
        self._missing = self.predictor.first_map
        self._first = windows.first_map(
            self._missing, self.first_frames, self.every
        )
        self._made = {name: self._make(name) for name in names}
        # A submission holds one video beside the other, and nothing else that
        # is not hidden.
        alone = names in (["dhf1k"], ["msu"])
        record = f".{numbered(self.source.stem)}.json" if alone else RECORD
        self._record = self.folder and self.folder / record
        self._refuse_overlaps()

    def _make(self, name: str) -> sink.Sink:
        """Makes an output."""
        kind = KINDS[name]
        known = kind.make.options()
        return kind.make(
            path=self._place(name),
            fps=self.source.fps / self.every,
            size=self.source.size,
            note=self.predictor.note,
            pixel_aspect=self.source.pixel_aspect,
            first=self._first,
            step=self.every,
            title=pathlib.PurePath(self.source.name).name,
            about={
                **self.about,
                "front_end": self._front_end,
                "first_frames": self.first_frames,
            },
            **kind.fixed,
            **{n: v for n, v in self.options.items() if n in known},
        )

    def _place(self, name: str) -> pathlib.Path:
        if not KINDS[name].file:
            return pathlib.Path("standard output")
        if name == REPORT and self.report:
            return pathlib.Path(self.report)
        if self.folder is None:
            raise ValueError("--output is needed: a folder to write to.")
        stem = self.source.stem
        stem = numbered(stem) if name == "dhf1k" else stem
        return self.folder / KINDS[name].file.format(video=stem)

    def _refuse_overlaps(self) -> None:
        """No output takes the place of what is read, or of another one."""
        read = dict.fromkeys(self.source.paths, "the video")
        for made in self._made.values():
            read |= made.reads
        read = {path.resolve(): what for path, what in read.items()}
        written = [
            (name, path.resolve())
            for name, made in self._made.items()
            for path in made.paths()
        ]
        if self._record:
            written.insert(0, ("the record", self._record.resolve()))
        for (name, place), path in itertools.product(written, read):
            if path.is_relative_to(place):
                raise ValueError(
                    f"{name} would replace {read[path]} that is read, or its "
                    f"folder: choose another --output. Received: {place}"
                )
        for (name, place), (other, taken) in itertools.combinations(written, 2):
            if name != other and (
                place.is_relative_to(taken) or taken.is_relative_to(place)
            ):
                raise ValueError(
                    f"{name} and {other} cannot both be written: they have the "
                    "same path. Leave one out, or give the video or the "
                    f"report another name. Received: {place}, {taken}"
                )

    def run(self) -> None:
        """Predicts and writes; all files appear together at the end."""
        record = self._described()
        job = self._job(record)
        begin = clock.perf_counter()
        started = datetime.datetime.now(datetime.UTC)
        with contextlib.ExitStack() as stack:
            if self._record:
                self._record.parent.mkdir(parents=True, exist_ok=True)
                file = stack.enter_context(files.replacing(self._record))
            for made in self._made.values():
                made.job = job
                if made.paths():
                    made.path.parent.mkdir(parents=True, exist_ok=True)
                stack.enter_context(made)
            record |= self._write()
            for made in self._made.values():
                made.damage = self.source.damage
                made.complete()
            if self._record:
                record |= {
                    "damage": self.source.damage,
                    "started": started.isoformat(timespec="seconds"),
                    "seconds": round(clock.perf_counter() - begin, 3),
                }
                text = json.dumps(
                    record, indent=2, ensure_ascii=False, default=str
                )
                with files.naming(self._record):
                    # JSON writes what is no UTF-8 in a name as Python does.
                    file.write_text(
                        text + "\n", encoding="utf-8", errors="backslashreplace"
                    )

    def _described(self) -> dict[str, Any]:
        """What is made, of what and how, before any frame is read."""
        outputs = {}
        options: dict[str, Any] = {}
        for name, made in self._made.items():
            place = made.path
            if self.folder and place.is_relative_to(self.folder):
                place = place.relative_to(self.folder)
            outputs[name] = str(place) if made.paths() else "-"
            options |= made.settings()
        return {
            "video": self.source.name,
            "fps": self.source.fps / self.every,
            "size": list(self.source.size),
            "pixel_aspect": list(self.source.pixel_aspect.as_integer_ratio()),
            "first_map": self._first,
            "every": self.every,
            "first_frames": self.first_frames,
            "clip": [self.start, self.end],
            "outputs": outputs,
            "options": options,
            "model": self.about,
            "front_end": self._front_end,
            "note": self.predictor.note,
        }

    def _job(self, record: Mapping[str, Any]) -> str:
        """A text that says what is made; "" if it cannot be resumed.

        Only where every output can, and where a map needs no frames but those
        of its window.
        """
        if not (
            self.about
            and self.source.paths
            and self._front_end.get("front_end") == "window"
            # Of several maps a window, hops would begin at another frame.
            and self.predictor.hop == 1
            and all(made.resumes for made in self._made.values())
        ):
            return ""
        read = [
            (path.resolve(), found.st_size, found.st_mtime_ns)
            for path in self.source.paths
            for found in [path.stat()]
        ]
        return json.dumps([record, read], indent=1, default=str)

    def _write(self) -> dict[str, Any]:
        """Predicts and writes; returns what the record says of the frames."""
        # All outputs have more than that from before, so that there is always
        # something to predict.
        done = max(0, min(made.count for made in self._made.values()) - 1)
        if self._first + done * self.every < self._missing:
            done = 0
        first = self._first + done * self.every
        mode, skip = self.first_frames, 0
        if done:
            logging.info("Resuming at frame %d.", first)
            # What is read again is the window of the first map to come.
            mode, skip = "skip", first - self._missing
        clip = sources.Clip(
            self.source, start=self.start, end=self.end, skip=skip
        )
        frames, shown = sources.two_readers(
            clip, draws=any(made.DRAWS for made in self._made.values())
        )
        maps = self.predictor.maps(frames, first_frames=mode, stride=self.every)
        total = clip.num_frames
        if total is not None:
            total = len(range(self._first, total, self.every))
        bar = tqdm.tqdm(
            maps,
            total=total,
            initial=done,
            desc="predicting",
            unit="frame",
            # Bars of several processes would overwrite one another.
            disable=multiprocessing.parent_process() is not None,
        )
        for made in self._made.values():
            made.count = done
        last = 0.0
        shown = itertools.islice(shown, first - skip, None, self.every)
        for map_, (frame, time) in zip(bar, shown, strict=False):
            for made in self._made.values():
                made.start = clip.first_frame or 0, clip.first_time or 0.0
                made.write(frame, map_, time)
            done, last = done + 1, time
        if not done:
            # The error names the video itself.
            reason = self.source.damage.removeprefix(f"{self.source.name}: ")
            raise video.VideoError(
                self.source.name,
                reason
                or f"no frame from --start={self.start} to --end={self.end}.",
            )
        return {
            "frames": done,
            "start": {"frame": clip.first_frame, "seconds": clip.first_time},
            "last_map_seconds": last,
        }
