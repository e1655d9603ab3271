"""One pass over a clip: from frames to all that is made of their maps.

`KINDS` names the outputs, and `predict` makes them: it refuses first what
cannot be done, goes on where an interrupted pass stopped if it can, and writes
a record beside the files. docs/predict.md says what a user sees of it.
"""

from collections.abc import Iterable
from collections.abc import Iterator
from collections.abc import Mapping
from collections.abc import Sequence
import contextlib
import datetime
import itertools
import json
import os
import pathlib
import time as clock
from typing import Any
from typing import NamedTuple

from absl import logging
import numpy as np
import tqdm

from lsts_tf import predictor as predictor_lib
from lsts_tf import windows
from lsts_tf.features import front_end as front_end_lib
from lsts_tf.media import files
from lsts_tf.media import sources
from lsts_tf.media import video as video_lib
from lsts_tf.outputs import attention
from lsts_tf.outputs import encoding
from lsts_tf.outputs import pictures
from lsts_tf.outputs import reframe
from lsts_tf.outputs import report as report_lib
from lsts_tf.outputs import sink

RECORD = "prediction.json"
DEFAULT = ("overlay", "maps")
STDOUT = "stdout"
REPORT = "report"
ALIASES = {"maps": "png8"}


class Kind(NamedTuple):
    """A name of --outputs.

    Attributes:
        file: Its name in the output folder; {video} is the video's.
        make: Its class.
        fixed: Arguments that make it this one of several.
    """

    file: str
    make: type[sink.Sink]
    fixed: Mapping[str, Any] = {}


KINDS: Mapping[str, Kind] = {
    "overlay": Kind("overlay.mp4", pictures.Overlay),
    "side_by_side": Kind("side_by_side.mp4", pictures.SideBySide),
    "saliency": Kind("saliency.mp4", pictures.Saliency),
    "saliency16": Kind("saliency16.mkv", pictures.Saliency, {"bits": 16}),
    "npy": Kind("maps.npy", pictures.Array),
    "png8": Kind("maps", pictures.Pictures),
    "png16": Kind("maps16", pictures.Pictures, {"bits": 16}),
    "dhf1k": Kind("{video}", pictures.Pictures),
    STDOUT: Kind("", pictures.Raw),
    "json": Kind("attention.jsonl", attention.JsonLines),
    "roi": Kind("roi.npy", encoding.Offsets),
    "encoded": Kind("encoded.mp4", encoding.Encoder),
    "reframed": Kind("reframed.mp4", reframe.Reframe),
    REPORT: Kind("report.html", report_lib.Report),
}


def users(option: str) -> list[str]:
    """Names of the outputs that have an option."""
    return [
        name
        for name, kind in KINDS.items()
        if option in {field.name for field in kind.make.options()}
    ]


def predict(
    predictor: predictor_lib.Predictor,
    source: sources.Source | str | os.PathLike,
    output: str | os.PathLike | None,
    *,
    outputs: Sequence[str] = DEFAULT,
    options: Mapping[str, Any] | None = None,
    report: str | os.PathLike = "",
    first_frames: str = "repeat",
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
            place `report` tells.
        outputs: Names of `KINDS`, or "maps" for "png8".
        options: What outputs are told, by the names of the fields of their
            classes; each takes what it knows.
        report: The report's file, where it is not to lie in `output`.
        first_frames: See `Predictor.maps`. With "skip" the outputs begin with
            the first frame that has a whole window.
        start: Where the clip begins; see `sources.Clip`.
        end: Where it ends.
        every: Only every Nth frame gets a map and is written; the model sees
            all of them.
        about: What the model is, for the record. With it an interrupted
            prediction can be resumed.

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
    job = _Pass(
        predictor, source, output, report, first_frames, every, about or {}
    )
    job.make(outputs, options or {})
    started = datetime.datetime.now(datetime.UTC)
    begin = clock.perf_counter()
    with contextlib.ExitStack() as stack:
        record = job.open(stack, start, end)
        clip, done, last = job.write(start, end)
        for made in job.made.values():
            made.damage = source.damage
            with made.naming():
                made.complete()
        if record is not None:
            text = job.record(clip, done, last) | {
                "started": started.isoformat(timespec="seconds"),
                "seconds": round(clock.perf_counter() - begin, 3),
            }
            with files.naming(job.record_path):
                record.write_text(
                    json.dumps(text, indent=2, ensure_ascii=False, default=str)
                    + "\n",
                    encoding="utf-8",
                )
    return source.damage


class _Pass:
    """One call of `predict`.

    Attributes:
        made: The outputs, by name.
        record_path: Where the record goes; without an output folder nowhere.
    """

    def __init__(
        self,
        predictor: predictor_lib.Predictor,
        source: sources.Source,
        output: str | os.PathLike | None,
        report: str | os.PathLike,
        first_frames: str,
        every: int,
        about: Mapping[str, Any],
    ) -> None:
        self._predictor = predictor
        self._source = source
        self._folder = None if output is None else pathlib.Path(output)
        self._report = report
        self._first_frames = first_frames
        self._every = every
        self._about = about
        self._missing = predictor.first_map
        self._first = windows.first_map(self._missing, first_frames, every)
        self.made: dict[str, sink.Sink] = {}
        self.record_path = pathlib.Path()

    def make(self, outputs: Sequence[str], options: Mapping[str, Any]) -> None:
        """Makes the outputs; refuses what cannot be done."""
        names = list(dict.fromkeys(ALIASES.get(n, n) for n in outputs))
        if not names:
            raise ValueError(
                f"Name at least one output: {', '.join(KINDS)}. Received: none"
            )
        if unknown := [n for n in names if n not in KINDS]:
            raise ValueError(
                f"Outputs are {', '.join(KINDS)}. "
                f"Received: {', '.join(unknown)}"
            )
        if unknown := [n for n in options if not users(n)]:
            raise ValueError(
                "Options are the fields of the outputs' classes. "
                f"Received: {', '.join(unknown)}"
            )
        for name in names:
            kind = KINDS[name]
            known = {field.name for field in kind.make.options()}
            self.made[name] = kind.make(
                path=self._place(name),
                fps=self._source.fps / self._every,
                size=self._source.size,
                note=self._predictor.note,
                pixel_aspect=self._source.pixel_aspect,
                first=self._first,
                step=self._every,
                title=pathlib.PurePath(self._source.name).name,
                about={
                    **self._about,
                    "front_end": self._predictor.extractor.describe(),
                    "first_frames": self._first_frames,
                },
                **kind.fixed,
                **{n: v for n, v in options.items() if n in known},
            )
        if self._folder is not None:
            # A submission holds one video beside the other, and nothing else
            # that is not hidden.
            alone = names == ["dhf1k"]
            self.record_path = self._folder / (
                f".{self._video_name}.json" if alone else RECORD
            )
        self._refuse_overlaps(options.get("areas", ""))

    def _place(self, name: str) -> pathlib.Path:
        if name == STDOUT:
            return pathlib.Path("standard output")
        if name == REPORT and self._report:
            return pathlib.Path(self._report)
        if self._folder is None:
            raise ValueError("--output is needed: a folder to write to.")
        return self._folder / KINDS[name].file.format(video=self._video_name)

    @property
    def _video_name(self) -> str:
        """As DHF1K's folders are called: four digits where it is a number."""
        stem = self._source.stem
        return f"{int(stem):04d}" if stem.isdecimal() else stem

    def _refuse_overlaps(self, areas: str) -> None:
        """No output takes the place of what is read, or of another one."""
        read = dict.fromkeys(self._source.paths, "the video that is")
        if areas:
            read[pathlib.Path(areas)] = "the areas of interest that are"
        inputs = {
            place: what
            for path, what in read.items()
            for place in (path.resolve(), *path.resolve().parents)
        }
        written = {name: made.paths() for name, made in self.made.items()}
        if self._folder is not None:
            written = {"the record": [self.record_path], **written}
        taken: dict[pathlib.Path, str] = {}
        for name, paths in written.items():
            places = [path.resolve() for path in paths]
            for place in places:
                if place in inputs:
                    raise ValueError(
                        f"{name} would replace {inputs[place]} "
                        "read, or the folder it lies in: choose another "
                        f"--output. Received: {place}"
                    )
                for other, owner in taken.items():
                    if place.is_relative_to(other) or other.is_relative_to(
                        place
                    ):
                        raise ValueError(
                            f"{owner} and {name} cannot both be written: they "
                            "have one place. Leave one out, or give the video "
                            "or the report another name. "
                            f"Received: {other}, {place}"
                        )
            taken |= dict.fromkeys(places, name)

    def open(
        self, stack: contextlib.ExitStack, start: str, end: str
    ) -> pathlib.Path | None:
        """Opens the outputs; returns where to write the record, if at all."""
        job = self._identity(start, end)
        for made in self.made.values():
            made.job = job
            if made.paths():
                made.path.parent.mkdir(parents=True, exist_ok=True)
        record = None
        if self._folder is not None:
            self._folder.mkdir(parents=True, exist_ok=True)
            record = stack.enter_context(files.replacing(self.record_path))
        for made in self.made.values():
            with made.naming():
                stack.enter_context(made)
        return record

    def _identity(self, start: str, end: str) -> str:
        """A text that says what is made; "" if it cannot be resumed.

        Only where every output can, and where a map needs no frames but those
        of its window.
        """
        front_end = self._predictor.extractor.describe()
        if not (
            self._about
            and self._source.identity
            and front_end.get("front_end") == "window"
            # Of several maps a window, hops would begin at another frame.
            and self._predictor.hop == 1
            and all(made.resumes for made in self.made.values())
        ):
            return ""
        what = {
            "source": self._source.identity,
            "clip": [start, end, self._every, self._first_frames],
            "outputs": {n: made.settings() for n, made in self.made.items()},
            "front_end": front_end_lib.deciding(front_end),
            "about": dict(self._about),
        }
        return json.dumps(what, indent=1, sort_keys=True)

    def write(self, start: str, end: str) -> tuple[sources.Clip, int, float]:
        """Predicts and writes; the clip, maps written, time of the last."""
        done = self._agree()
        first = self._first + done * self._every
        # What is read again is the window of the first map to come.
        skip = first - self._missing if done else 0
        if done:
            logging.info("Going on at frame %d.", first)
        clip = sources.Clip(self._source, start=start, end=end, skip=skip)
        frames, shown = sources.two_readers(clip)
        total = clip.num_frames
        if total is not None:
            total = max(0, -(-(total - self._first) // self._every))
        bar = tqdm.tqdm(
            self._maps(frames, "skip" if done else self._first_frames),
            total=total,
            initial=done,
            desc="predicting",
            unit="frame",
        )
        last = 0.0
        shown = itertools.islice(shown, first - skip, None, self._every)
        for map_, (frame, time) in zip(bar, shown, strict=False):
            for made in self.made.values():
                made.start = clip.first_frame or 0, clip.first_time or 0.0
                with made.naming():
                    made.write(frame, map_, time)
            done, last = done + 1, time
        if not done:
            raise video_lib.VideoError(
                self._source.name, self._nothing(start, end)
            )
        return clip, done, last

    def _agree(self) -> int:
        """How many maps all outputs have from before; they keep no more.

        One less than they have, so that there is always something to predict.
        """
        done = max(0, min(made.count for made in self.made.values()) - 1)
        if self._first + done * self._every < self._missing:
            done = 0
        for made in self.made.values():
            made.keep(done)
        return done

    def _maps(
        self, frames: Iterable[np.ndarray], mode: str
    ) -> Iterator[np.ndarray]:
        if mode != "skip":
            return self._predictor.maps(
                frames, first_frames=mode, stride=self._every
            )
        # All maps but the copies.
        copied = self._predictor.maps(
            frames, first_frames="copy", stride=self._every
        )
        return itertools.islice(copied, self._missing // self._every, None)

    def _nothing(self, start: str, end: str) -> str:
        if self._source.damage:
            # The error names the video itself.
            return self._source.damage.removeprefix(f"{self._source.name}: ")
        return f"no frame from --start={start} to --end={end}."

    def record(
        self, clip: sources.Clip, done: int, last: float
    ) -> dict[str, Any]:
        """What the maps were made with, and where they are."""
        outputs = {}
        options: dict[str, Any] = {}
        for name, made in self.made.items():
            place = made.path
            if self._folder and place.is_relative_to(self._folder):
                place = place.relative_to(self._folder)
            outputs[name] = str(place) if made.paths() else "-"
            options |= made.settings()
        return {
            "video": self._source.name,
            "frames": done,
            "fps": self._source.fps / self._every,
            "size": list(self._source.size),
            "pixel_aspect": list(self._source.pixel_aspect.as_integer_ratio()),
            "start": {"frame": clip.first_frame, "seconds": clip.first_time},
            "last_map_seconds": last,
            "first_map": self._first,
            "every": self._every,
            "first_frames": self._first_frames,
            "outputs": outputs,
            "options": options,
            "model": dict(self._about),
            "front_end": self._predictor.extractor.describe(),
            "note": self._predictor.note,
            "damage": self._source.damage,
        }
