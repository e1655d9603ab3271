r"""What `predict` costs a frame, stage by stage, and that memory stays bounded.

    python -m benchmarks.predict --flagfile=RUN/experiment.flags \
        [--video=FILE] [--frames=40]
    python -m benchmarks.predict --memory [--minutes=30]
    python -m benchmarks.predict --write [--video=FILE] [--frames=40]
    python -m benchmarks.predict --flagfile=RUN/experiment.flags --program \
        [--video=FILE] [--frames=40] [-- --dtype=int8]

The first runs the stages one after the other over the same frames, each a
second time when everything is compiled, and then the program as a whole. A run
without a model gets a random decoder and, with `--rgb_weights=random`, random
I3D weights: the cost is the same. Without --video the clip is a drifting
texture of 640x360.

The second predicts a clip of 320x180, ten seconds of black and ten of noise in
turns, and prints the peak resident memory of each minute. Its model is a
stand-in that costs next to nothing, so that half an hour of video takes
minutes; --nostand_in takes the run's.

The third writes each output alone, of frames and maps that are there already,
blobs that drift: no network runs. It prints the processor's milliseconds a
frame, after a short first run of each.

The fourth starts the program `predict` and prints the seconds from its start to
its first map, those of each further one, and its peak resident memory. What
stands behind `--` are flags of the program. The starter is
`--flagfile=lsts_tf/starter/experiment.flags --run_dir=lsts_tf/starter`.
"""

import collections
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
import itertools
import json
import os
import pathlib
import re
import resource
import subprocess
import sys
import tempfile
import time
from typing import Any

from absl import app, flags
import cv2
import keras
import numpy as np
import tensorflow as tf

from lsts_tf import experiment, predict
from lsts_tf import predictor as predictor_lib
from lsts_tf.features import extractor as extractor_lib
from lsts_tf.features import front_end
from lsts_tf.media import sources
from lsts_tf.media import video as video_lib
from lsts_tf.media import writer as writer_lib
from lsts_tf.networks import decoder
from lsts_tf.outputs import run

VIDEO = flags.DEFINE_string("video", "", "A video file.")
FRAMES = flags.DEFINE_integer("frames", 40, "Frames of it that are used.")
OUTPUTS = flags.DEFINE_list(
    "outputs", list(run.DEFAULT), "Outputs that are written."
)
MEMORY = flags.DEFINE_boolean("memory", False, "Measure memory instead.")
MINUTES = flags.DEFINE_integer("minutes", 30, "Length of the memory's clip.")
STAND_IN = flags.DEFINE_boolean(
    "stand_in", True, "Measure memory with a model that costs nothing."
)
WRITE = flags.DEFINE_boolean("write", False, "Measure each output instead.")
PROGRAM = flags.DEFINE_boolean("program", False, "Measure the program itself.")

# Of the memory's clip.
_SIZE = (320, 180)
_FPS = 30


# === Stages ===


def load(
    settings: experiment.Experiment,
) -> tuple[predictor_lib.Predictor, str]:
    """The run's model, or one with a random decoder; and what it is."""
    path = pathlib.Path(settings.run_dir) / experiment.MODELS["last"]
    if path.is_file():
        return predictor_lib.Predictor.load(settings.run_dir), str(path)
    extractor = extractor_lib.Extractor(**settings.front_end_arguments())
    model = decoder.build(
        settings.streams,
        head=settings.head,
        feature_shape=extractor.feature_shape,
        seed=settings.seed,
    )
    return predictor_lib.Predictor(model, extractor), "a random decoder"


class Stopwatch:
    """Seconds, by the clock and of the processor, that stages take."""

    def __init__(self) -> None:
        self.found: dict[str, tuple[float, float]] = {}

    def __call__(self, stage: str, work: Callable[[], Any]) -> Any:
        """What `work` returns, timed."""
        clock, cpu = time.perf_counter(), time.process_time()
        result = work()
        self.found[stage] = (
            time.perf_counter() - clock,
            time.process_time() - cpu,
        )
        return result


def run_stages(
    predictor: predictor_lib.Predictor, path: pathlib.Path, count: int
) -> Mapping[str, tuple[float, float]]:
    """Seconds (clock, processor) of each stage, for `count` frames."""
    watch, extractor = Stopwatch(), predictor.extractor
    frames = watch(
        "decode",
        lambda: list(itertools.islice(video_lib.frames(path), count)),
    )
    if len(frames) < count:
        raise app.UsageError(f"{path} has {len(frames)} frames; --frames.")
    signals: dict[str, Any] = {}
    if "flow" in extractor.streams:
        signals["flow"] = watch(
            "flow", lambda: list(extractor.flows([frames[0], *frames]))
        )
    if "rgb" in extractor.streams:
        signals["rgb"] = watch(
            "shrink", lambda: [extractor.prepare(f)["rgb"] for f in frames]
        )
    found = {}
    for stream in extractor.streams:
        found[stream] = watch(
            f"I3D, {stream}",
            lambda s=stream: [
                f[s]
                for f in extractor.features(s, signals[s], starts_still=True)
            ],
        )
    features = [
        dict(zip(found, each, strict=True))
        for each in zip(*found.values(), strict=True)
    ]
    maps = watch("decoder", lambda: list(predictor.of_features(features)))
    with tempfile.TemporaryDirectory() as folder:
        watch(
            "write",
            lambda: write(predictor, frames, maps, folder, OUTPUTS.value),
        )
    return watch.found


class _Ready:
    """A predictor whose maps are there already."""

    def __init__(
        self,
        predictor: predictor_lib.Predictor,
        maps: Sequence[np.ndarray],
    ) -> None:
        self.note = predictor.note
        self.geometry = predictor.geometry
        self.first_map = predictor.first_map
        self.hop = predictor.hop
        self.extractor = predictor.extractor
        self._maps = maps

    def maps(
        self, frames: Iterable[np.ndarray], **_: Any
    ) -> Iterator[np.ndarray]:
        for _, map_ in zip(frames, self._maps, strict=True):
            yield map_


def write(
    predictor: predictor_lib.Predictor,
    frames: Sequence[np.ndarray],
    maps: Sequence[np.ndarray],
    folder: str,
    outputs: Sequence[str],
) -> None:
    """All that `predict` does with maps."""
    ready: Any = _Ready(predictor, maps)
    with pathlib.Path(os.devnull).open("wb") as stream:
        predict.predict(
            ready,
            sources.Frames(
                lambda: iter(frames),
                name="memory",
                stem="memory",
                fps=25,
                num_frames=len(frames),
            ),
            folder,
            outputs=outputs,
            options={"stream": stream},
        )


def texture(path: pathlib.Path, count: int) -> None:
    """A clip of 640x360 in which things move."""
    rng = np.random.default_rng(0)
    ground = cv2.resize(
        rng.integers(0, 256, (90, 160, 3), np.uint8), (960, 540)
    )
    with writer_lib.Writer(path, fps=25, size=(640, 360)) as writer:
        for k in range(count):
            x, y = 2 * k % 300, k % 170
            writer.write(ground[y : y + 360, x : x + 640])


def print_stages(settings: experiment.Experiment) -> None:
    """The table of stages."""
    predictor, what = load(settings)
    count = FRAMES.value
    with tempfile.TemporaryDirectory() as folder:
        path = pathlib.Path(VIDEO.value or f"{folder}/texture.mp4")
        if not VIDEO.value:
            texture(path, count)
        run_stages(predictor, path, count)
        found = dict(run_stages(predictor, path, count))
        watch = Stopwatch()
        watch(
            "end to end",
            lambda: predict.predict(
                predictor,
                path,
                f"{folder}/out",
                outputs=OUTPUTS.value,
                end=f"{count}f",
            ),
        )
    width, height = video_lib.Video(path).size if VIDEO.value else (640, 360)
    print(f"{count} frames of {width}x{height}; {what}")
    print(
        f"{'+'.join(predictor.extractor.streams)}, windows of "
        f"{predictor.extractor.window}, {predictor.extractor.name}; "
        f"outputs {','.join(OUTPUTS.value)}; {os.cpu_count()} cores, "
        f"{len(tf.config.list_physical_devices('GPU'))} GPUs, load "
        f"{os.getloadavg()[0]:.1f}"
    )
    print(predictor.note.upper() or "published I3D weights")
    total = sum(clock for clock, _ in found.values())
    print(f"{'':14}{'s a frame':>12}{'CPU s a frame':>16}{'share':>8}")
    for stage, (clock, cpu) in (found | watch.found).items():
        share = f"{clock / total:8.1%}" if stage in found else ""
        print(f"{stage:14}{clock / count:12.4f}{cpu / count:16.4f}{share}")


# === Outputs ===


def blobs(count: int) -> list[np.ndarray]:
    """Maps with two places that people look at, which move."""
    rows, columns = np.indices((360, 640), np.float32)
    maps = []
    for k in range(count):
        map_ = np.zeros((360, 640), np.float32)
        for x, y, sigma in ((100 + 4 * k % 440, 120, 40), (420, 200, 60)):
            squares = (columns - x) ** 2 + (rows - y) ** 2
            map_ = np.maximum(map_, np.exp(-squares / (2 * sigma**2)))
        maps.append(map_)
    return maps


def print_outputs() -> None:
    """The table of outputs."""
    predictor, count = stand_in(), FRAMES.value
    with tempfile.TemporaryDirectory() as folder:
        path = pathlib.Path(VIDEO.value or f"{folder}/texture.mp4")
        if not VIDEO.value:
            texture(path, count)
        frames = list(itertools.islice(video_lib.frames(path), count))
    count = len(frames)
    maps = blobs(count)
    watch = Stopwatch()
    for name in run.KINDS:
        with tempfile.TemporaryDirectory() as folder:
            write(predictor, frames[:3], maps[:3], folder, [name])
            watch(
                name,
                lambda n=name, f=folder: write(predictor, frames, maps, f, [n]),
            )
    height, width = frames[0].shape[:2]
    print(
        f"{count} frames of {width}x{height}, {os.cpu_count()} cores, load "
        f"{os.getloadavg()[0]:.1f}"
    )
    print(f"{'output':14}{'ms a frame':>12}{'CPU ms a frame':>16}")
    for name, (clock, cpu) in watch.found.items():
        print(f"{name:14}{1e3 * clock / count:12.2f}{1e3 * cpu / count:16.2f}")


# === Memory ===


class StandIn:
    """As `extractor.Extractor`; a feature is a small grey picture."""

    streams = ("rgb",)
    note = "stand-in model"
    window = 79
    skip_shapes: Mapping[str, Any] = {}

    def describe(self) -> dict[str, Any]:
        """What stands in the record."""
        return {"window": self.window, "front_end": "stand-in"}

    def prepare(self, frame: np.ndarray) -> dict[str, np.ndarray]:
        """Of the size that I3D sees."""
        return {"rgb": cv2.resize(frame, (224, 224))}

    def of_clip(
        self,
        prepared: Iterable[Mapping[str, np.ndarray]],
        *,
        stride: int = 1,
        starts_still: bool = False,
        **_: Any,
    ) -> Iterator[tuple[int, dict[str, np.ndarray]]]:
        """The mean light of each window's first and last frame."""
        recent: collections.deque[np.ndarray] = collections.deque(
            maxlen=self.window
        )
        if starts_still:
            prepared = front_end.held(prepared, self.window - 1)
        for target, frame in enumerate(prepared):
            recent.append(frame["rgb"])
            since = target - self.window + 1
            if since >= 0 and since % stride == 0:
                pair = np.stack([recent[0], recent[-1]])[:, ::28, ::28].mean(0)
                yield target, {"rgb": pair.astype(np.float32) / 255}


def stand_in() -> predictor_lib.Predictor:
    """A predictor that costs next to nothing."""
    small = keras.Input((8, 8, 3), name="rgb")
    x = keras.layers.Conv2D(1, 3, padding="same", activation="sigmoid")(small)
    maps = keras.layers.Resizing(360, 640)(x)
    model = keras.Model({"rgb": small}, maps)
    extractor: Any = StandIn()
    return predictor_lib.Predictor(model, extractor)


def loops(path: pathlib.Path, minutes: int) -> None:
    """Ten seconds of black and ten of noise, in turns."""
    rng = np.random.default_rng(0)
    width, height = _SIZE
    noise = rng.integers(0, 256, (50, height, width, 3), np.uint8)
    black = np.zeros((height, width, 3), np.uint8)
    with writer_lib.Writer(path, fps=_FPS, size=_SIZE) as writer:
        for number in range(minutes * 60 * _FPS):
            dark = number // (10 * _FPS) % 2 == 0
            writer.write(black if dark else noise[number % len(noise)])


class Watched(sources.File):
    """A file that notes the peak resident memory of each minute, in MiB."""

    def __init__(self, path: pathlib.Path) -> None:
        super().__init__(path)
        self.peaks: dict[int, float] = {}

    def __iter__(self) -> Iterator[tuple[np.ndarray, float]]:
        minute = 0
        reset_peak()
        try:
            for frame, stamp in super().__iter__():
                if stamp >= 60 * (minute + 1):
                    minute += 1
                    self.peaks[minute] = peak()
                    reset_peak()
                yield frame, stamp
        finally:
            self.peaks[minute + 1] = peak()


def peak() -> float:
    """Peak resident memory since the last reset, in MiB."""
    status = pathlib.Path("/proc/self/status").read_text()
    found = re.search(r"VmHWM:\s+([0-9]+) kB", status)
    if not found:
        raise OSError("This system does not tell its peak memory.")
    return int(found[1]) / 1024


def reset_peak() -> None:
    """Let the kernel measure the peak anew (see proc(5), clear_refs)."""
    pathlib.Path("/proc/self/clear_refs").write_text("5")


def print_memory(settings: experiment.Experiment) -> None:
    """The peak of each minute."""
    if STAND_IN.value:
        predictor, what = stand_in(), "a stand-in for I3D and decoder"
    else:
        predictor, what = load(settings)
    with tempfile.TemporaryDirectory() as folder:
        path = pathlib.Path(folder) / "loops.mp4"
        loops(path, MINUTES.value)
        source = Watched(path)
        begin = time.perf_counter()
        predict.predict(
            predictor, source, f"{folder}/out", outputs=OUTPUTS.value
        )
        seconds = time.perf_counter() - begin
    width, height = _SIZE
    print(
        f"{MINUTES.value} minutes of {width}x{height} at {_FPS} frames a "
        f"second; {what}; outputs {','.join(OUTPUTS.value)}; {seconds:.0f} s"
    )
    for minute, found in source.peaks.items():
        if minute <= 2 or minute % 5 == 0 or minute == max(source.peaks):
            print(f"minute {minute:3}: peak resident {found:8.1f} MiB")
    last = source.peaks[max(source.peaks)]
    if 2 in source.peaks:
        print(f"last minute / minute 2: {last / source.peaks[2]:.4f}")


# === The program ===


def saved(settings: experiment.Experiment, folder: pathlib.Path) -> str:
    """The run's folder; without a model there, a new one with a random one."""
    if (pathlib.Path(settings.run_dir) / experiment.MODELS["last"]).is_file():
        return settings.run_dir
    predictor, _ = load(settings)
    settings.save(folder / experiment.FLAGFILE)
    (folder / front_end.DESCRIPTION).write_text(
        json.dumps(predictor.extractor.describe())
    )
    predictor.model.save(folder / experiment.MODELS["last"])
    return str(folder)


def print_program(
    settings: experiment.Experiment, arguments: Sequence[str]
) -> None:
    """What somebody waits for who starts the program."""
    with tempfile.TemporaryDirectory() as folder:
        path = pathlib.Path(VIDEO.value or f"{folder}/texture.mp4")
        if not VIDEO.value:
            texture(path, FRAMES.value)
        command = [
            *(sys.executable, "-m", "lsts_tf.predict", str(path)),
            f"--run_dir={saved(settings, pathlib.Path(folder))}",
            *("--outputs=stdout", "--map_size=model", f"--end={FRAMES.value}f"),
            *arguments,
        ]
        begin = time.perf_counter()
        with subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
        ) as process:
            assert process.stdout is not None
            count = len(process.stdout.read(1))
            first = time.perf_counter() - begin
            while some := process.stdout.read(1 << 20):
                count += len(some)
        seconds = time.perf_counter() - begin
    assert process.returncode == 0, process.returncode
    frames = count / (360 * 640)
    most = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1024
    each = (seconds - first) / (frames - 1)
    print(
        f"{frames:.0f} maps: the first after {first:.1f} s, then {each:.3f} s "
        f"a map; peak resident {most:.0f} MiB; load {os.getloadavg()[0]:.1f}"
    )


def main(arguments: Sequence[str]) -> None:
    """Print one of the four."""
    settings = experiment.from_flags()
    if PROGRAM.value:
        print_program(settings, arguments[1:])
    elif MEMORY.value:
        print_memory(settings)
    elif WRITE.value:
        print_outputs()
    else:
        print_stages(settings)


if __name__ == "__main__":
    experiment.define_flags()
    app.run(main)
