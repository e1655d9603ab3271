r"""Predict where people look in any video: an overlay, maps, and more.

    lsts predict in.mp4
    python -m lsts_tf.predict --flagfile=RUN/experiment.flags \
        --video=in.mp4 --output=out

uses the starter, the trained model that comes with the package, or the model of
a run. It reads a video file, a folder of films or of pictures, several
pictures, a camera (`camera:0`), a pipe (`--video=-`) or a video of the run's
dataset (`dataset:601`), after the flags or as `--video`, and writes what
`--outputs` names, all in one pass, and `prediction.json`, which says how it was
made, to `--output`, or else to `in_saliency`. See docs/predict.md. The program
exits with 0; with 1 if nothing could be done; with 3 if frames of the video are
missing, after writing all that could be decoded.
"""

from collections.abc import Collection, Mapping, Sequence
import functools
import sys
from typing import TYPE_CHECKING, Any

from absl import app, flags, logging

from lsts_tf import experiment, option, parts, program, windows
from lsts_tf.media import files, sources
from lsts_tf.outputs import films, pictures, run

if TYPE_CHECKING:
    from lsts_tf import predictor as predictor_lib

INCOMPLETE = 3
DATASET = "dataset:"
# What the program does, for Python.
predict = run.predict
_OPTIONS = option.of(*(kind.make for kind in run.KINDS.values()))
_SETTINGS = option.of(run.Pass)


def define_flags() -> None:
    """Flags of this program; others stand in `run.Pass` and in outputs."""
    flags.DEFINE_multi_string(
        "video",
        [],
        "Film, folder of films or of pictures, camera:0, - for standard input, "
        "or dataset:601; a film or several pictures may also follow the flags",
    )
    flags.DEFINE_string(
        "output",
        None,
        "Folder to write to; by default, for NAME.mp4, NAME_saliency in the "
        "current folder",
    )
    known = f"What is written: {', '.join(run.KINDS)}; maps is png8"
    flags.DEFINE_list("outputs", list(run.DEFAULT), known)
    flags.DEFINE_integer("batch", 4, "Number of maps computed together", 1)
    flags.DEFINE_enum(
        "dtype",
        None,
        parts.DTYPES,
        "Precision of I3D, if not that of its training; bfloat16 and int8 are "
        "faster on processors that have them, with slightly different maps",
    )
    flags.DEFINE_integer(
        "workers",
        1,
        "Processes that share a folder's films, each with its own model",
        1,
    )
    about = "Frames per second of pictures or raw video"
    flags.DEFINE_float("rate", None, about)
    flags.DEFINE_string("size", "", "Size of raw video: WIDTHxHEIGHT")
    formats = list(sources.PIXEL_FORMATS)
    about = "Pixel format of raw video"
    flags.DEFINE_enum("pixel_format", formats[0], formats, about)
    option.define_flags(experiment.MODEL_FLAG | _OPTIONS | _SETTINGS)


def of_dataset(settings: experiment.Experiment, text: str) -> sources.Frames:
    """A video of the run's dataset: the frames that `evaluate` scores.

    The text is the number of one video, as `--test_videos` names it: "601", or
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
        read=video.frames,
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
    """Which flags of those given nothing uses, and what would.

    "--view (overlay)", for instance. The source of several films is None.
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


def _load(*arguments: Any, **settings: Any) -> "predictor_lib.Predictor":
    """Does what `Predictor.load` does."""
    # TensorFlow takes seconds: help and errors do not wait for it.
    with program.importing_keras():
        from lsts_tf import predictor
    return predictor.Predictor.load(*arguments, **settings)


def _run(names: Sequence[str]) -> str:
    """As the flags say; what is wrong with the video, or ""."""
    values = flags.FLAGS
    chosen = experiment.chosen_run()
    outputs = list(values.outputs)
    if values.report:
        alone = not values.output and values["outputs"].using_default_value
        outputs = ["report"] if alone else [*outputs, "report"]
    options = {name: values[name].value for name in _OPTIONS}
    if run.STDOUT in outputs:
        options["stream"] = pictures.claim_stdout()
    names = [*values.video, *names]
    source: sources.Source | None = None
    paths = films.found(names)
    if len(names) == 1 and names[0].startswith(DATASET):
        source = of_dataset(chosen, names[0].removeprefix(DATASET))
    elif not paths:
        source = sources.open_source(
            names,
            size=values.size,
            rate=values.rate,
            pixel_format=values.pixel_format,
        )
    if values.workers > 1 and len(paths) < 2:
        raise ValueError(
            "--workers needs a folder of several films. Received: "
            f"--workers={values.workers}"
        )
    given = {n for n in values if not values[n].using_default_value}
    if unused := unused_flags(given, outputs, source):
        logging.warning("No input or output uses %s.", ", ".join(unused))
    # Standard output needs no folder, nor does a report that has a place.
    placed = {run.STDOUT, run.REPORT if values.report else run.STDOUT}
    if values.output is None and not placed.issuperset(outputs):
        stem = source.stem if source else paths[0].resolve().parent.name
        values.output = f"{stem}_saliency"
    faster = program.fast_dtype(chosen.front_end)
    if values.dtype is None and faster != "float32":
        logging.info("With --dtype=%s this processor predicts faster.", faster)
    load = functools.partial(
        _load,
        chosen.folder,
        model=values.model,
        sources=chosen.sources,
        batch=values.batch,
        dtype=values.dtype,
    )
    checksum = files.sha256(experiment.model_file(chosen.folder, values.model))
    about = {"run": chosen.run_name, "model": values.model, "sha256": checksum}
    settings: dict[str, Any] = {n: values[n].value for n in _SETTINGS}
    settings |= {"outputs": outputs, "options": options, "about": about}
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
        logging.error("%s What could be decoded is written.", damage)
        sys.exit(INCOMPLETE)
    if written := flags.FLAGS.output or flags.FLAGS.report:
        logging.info("Written: %s", written)


if __name__ == "__main__":
    experiment.define_flags()
    define_flags()
    app.run(main)
