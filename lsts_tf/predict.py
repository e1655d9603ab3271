r"""Where people look in any video: an overlay to watch, maps, and more.

    python -m lsts_tf.predict --video=in.mp4 --output=out
    python -m lsts_tf.predict --flagfile=RUN/experiment.flags \
        --video=in.mp4 --output=out

predicts by the starter, the trained model that comes with the package, or by
the model of a run. It reads a video file, a folder of films or of pictures
(`--video=FOLDER`), several pictures behind the flags, a camera
(`--video=camera:0`), a pipe (`--video=-`) or a video of the run's dataset
(`--video=dataset:601`), and writes what `--outputs` names, all in one pass, and
`prediction.json`, which says what it was made with. See docs/predict.md. The
program leaves with 0; with 1 when nothing could be done; with 3 when frames of
the video are missing, after writing all that could be decoded.
"""

from collections.abc import Collection, Mapping, Sequence
import functools
import hashlib
import sys

from absl import app, flags, logging

from lsts_tf import experiment, program, windows
from lsts_tf.media import sources
from lsts_tf.outputs import films, pictures, run, sink

INCOMPLETE = 3
DATASET = "dataset:"
# What the program does, for Python.
predict = run.predict
KINDS = run.KINDS
RECORD = run.RECORD
DEFAULT = run.DEFAULT
STDOUT = run.STDOUT
_OPTIONS = sink.flags_of(KINDS.values())


def define_flags() -> None:
    """Flags of this program; those of an output stand in its class."""
    flags.DEFINE_multi_string(
        "video",
        [],
        "Video file, folder of films or of pictures, camera:0, - for standard "
        "input, or "
        "dataset:601, a video of the run's dataset. Several pictures may also "
        "stand behind the flags",
    )
    flags.DEFINE_string("output", None, "Folder to write to")
    flags.DEFINE_list(
        "outputs",
        list(DEFAULT),
        f"What is written: {', '.join(KINDS)}; maps is png8",
    )
    flags.DEFINE_string(
        "report",
        "",
        "File of the report, where it is not to lie in --output; without "
        "--output and --outputs it is all that is written",
    )
    flags.DEFINE_enum(
        "first_frames",
        "repeat",
        list(windows.FIRST_FRAMES),
        "What the frames before the first whole window are predicted from",
    )
    flags.DEFINE_enum(
        "model",
        "last",
        list(experiment.MODELS),
        "Model after the last epoch, or the best in validation",
    )
    flags.DEFINE_string("start", "", "Where the clip begins: 12.5 (s), or 300f")
    flags.DEFINE_string("end", "", "Where the clip ends, given as --start is")
    flags.DEFINE_integer("every", 1, "Predict every Nth frame")
    flags.DEFINE_integer("batch", 8, "Maps decoded at a time")
    flags.DEFINE_integer(
        "workers",
        1,
        "Processes that share a folder's films, each with its own model",
        lower_bound=1,
    )
    flags.DEFINE_string("size", "", "Size of raw video: WIDTHxHEIGHT")
    flags.DEFINE_float("rate", None, "Frames a second of pictures or raw video")
    flags.DEFINE_enum(
        "pixel_format",
        "rgb24",
        list(sources.PIXEL_FORMATS),
        "Pixel format of raw video",
    )
    sink.define_flags(KINDS.values())


def _about(chosen: experiment.Run, model: str) -> dict[str, str]:
    with (chosen.folder / experiment.MODELS[model]).open("rb") as file:
        checksum = hashlib.file_digest(file, "sha256").hexdigest()
    return {"run": chosen.name, "model": model, "sha256": checksum}


def of_dataset(settings: experiment.Experiment, text: str) -> sources.Frames:
    """A video of the run's dataset: the frames that `evaluate` scores.

    Args:
        settings: The run's.
        text: The number of one video, as `--test_videos` names it: "601", or
            "ucf_sports:601" where there are several datasets.

    Raises:
        ValueError: Not one number, a dataset that has not been built or lacks
            the video, or frames that cannot be decoded.
    """
    # Its library takes seconds to import.
    from lsts_tf.features import dataset

    named = windows.parse_videos(text, settings.dataset_names)
    if sum(map(len, named.values())) != 1:
        raise ValueError(
            f"{DATASET} takes the number of one video. Received: {text!r}"
        )
    data = dataset.open_datasets(settings.dataset_names, settings.data_dir)
    (local,) = (n for numbers in named.values() for n in numbers)
    (number,) = data.numbers(named)
    video = next(data.videos([number]), None)
    if video is None:
        have = sorted(data.frame_counts)
        raise dataset.DatasetError(
            f"Dataset {data.name} has no video {text}. It has {len(have)}, "
            f"from {have[0]} to {have[-1]}."
        )
    return sources.Frames(
        video.frames,
        name=f"{DATASET}{text}",
        stem=str(local),
        fps=video.fps,
        num_frames=video.num_frames,
    )


# Flags of which sources; the words are for a message.
_OF_SOURCES: Mapping[str, tuple[tuple[type, ...], str]] = {
    "rate": (
        (sources.Images, sources.Camera, sources.Stream),
        "pictures, a camera, raw video",
    ),
    "size": ((sources.Stream,), "raw video"),
    "pixel_format": ((sources.Stream,), "raw video"),
}


def unused_flags(
    given: Collection[str],
    outputs: Sequence[str],
    source: sources.Source | None,
) -> list[str]:
    """Which flags nothing uses, and what would: "--view (overlay)".

    Args:
        given: Names of the flags that somebody gave.
        outputs: What is written.
        source: What is read; None of several films.
    """
    written = {run.ALIASES.get(n, n) for n in outputs}
    found = [
        f"--{name} ({', '.join(run.users(name))})"
        for name in _OPTIONS
        if name in given and not written & set(run.users(name))
    ]
    for name, (kinds, words) in _OF_SOURCES.items():
        if name in given and not isinstance(source, kinds):
            found.append(f"--{name} ({words})")
    return found


def _run(names: Sequence[str]) -> str:
    """As the flags say; what is wrong with the video, or ""."""
    values = flags.FLAGS
    if values.batch < 1:
        raise ValueError(f"--batch is at least 1. Received: {values.batch}")
    chosen = experiment.chosen_run()
    outputs = list(values.outputs)
    if values.report:
        alone = not values.output and values["outputs"].using_default_value
        outputs = ["report"] if alone else [*outputs, "report"]
    options = {name: values[name].value for name in _OPTIONS}
    if STDOUT in outputs:
        options["stream"] = pictures.claim_stdout()
    names = [*values.video, *names]
    source: sources.Source | None = None
    paths = films.found(names)
    if len(names) == 1 and names[0].startswith(DATASET):
        source = of_dataset(chosen.settings, names[0].removeprefix(DATASET))
    elif not paths:
        source = sources.open_source(
            names,
            size=values.size,
            rate=values.rate,
            pixel_format=values.pixel_format,
        )
    if values.workers > 1 and len(paths) < 2:
        raise ValueError(
            "--workers is for a folder of several films; one film is predicted "
            f"in one process. Received: --workers={values.workers}"
        )
    given = {n for n in values if not values[n].using_default_value}
    if unused := unused_flags(given, outputs, source):
        logging.warning(
            "Nothing that is read or written uses %s.", ", ".join(unused)
        )
    # TensorFlow takes seconds: help and errors above do not wait for it.
    from lsts_tf import predictor

    load = functools.partial(
        predictor.Predictor.load,
        chosen.folder,
        model=values.model,
        sources=chosen.sources,
        batch=values.batch,
    )
    settings = {
        "outputs": outputs,
        "options": options,
        "report": values.report,
        "first_frames": values.first_frames,
        "start": values.start,
        "end": values.end,
        "every": values.every,
        "about": _about(chosen, values.model),
    }
    if source is None:
        return films.predict(
            load, paths, values.output, workers=values.workers, **settings
        )
    return predict(load(), source, values.output, **settings)


def main(arguments: Sequence[str]) -> None:
    """Predict as the flags say."""
    with program.terminable(), program.exit_codes():
        damage = _run(arguments[1:])
    if damage:
        logging.error("%s What was decoded is written.", damage)
        sys.exit(INCOMPLETE)
    if written := flags.FLAGS.output or flags.FLAGS.report:
        logging.info("Written: %s", written)


if __name__ == "__main__":
    experiment.define_flags()
    define_flags()
    app.run(main)
