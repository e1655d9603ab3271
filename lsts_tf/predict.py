r"""Where people look in any video: an overlay to watch, maps, and more.

    python -m lsts_tf.predict --video=in.mp4 --output=out
    python -m lsts_tf.predict --flagfile=RUN/experiment.flags \
        --video=in.mp4 --output=out

predicts by the starter, the trained model that comes with the package, or by
the model of a run. It reads a video file, pictures (`--video=FOLDER`, or
several names behind the flags), a camera (`--video=camera:0`), a pipe
(`--video=-`) or a video of the run's dataset (`--video=dataset:601`), and
writes what `--outputs` names, all in one pass, and `prediction.json`, which
says what it was made with. See docs/predict.md. The program leaves with 0; with
1 when nothing could be done; with 3 when frames of the video are missing, after
writing all that could be decoded.
"""

from collections.abc import Collection
from collections.abc import Mapping
from collections.abc import Sequence
import dataclasses
import hashlib
import sys

from absl import app
from absl import flags
from absl import logging

from lsts_tf import experiment
from lsts_tf import predictor as predictor_lib
from lsts_tf import program
from lsts_tf import windows
from lsts_tf.media import sources
from lsts_tf.outputs import encoding
from lsts_tf.outputs import one_pass
from lsts_tf.outputs import pictures
from lsts_tf.outputs import reframe

INCOMPLETE = 3
DATASET = "dataset:"
# What the program does, for Python.
predict = one_pass.predict
Options = one_pass.Options
KINDS = one_pass.KINDS
RECORD = one_pass.RECORD
DEFAULT = one_pass.DEFAULT
STDOUT = one_pass.STDOUT


def define_flags() -> None:
    """Flags of this program."""
    flags.DEFINE_multi_string(
        "video",
        [],
        "Video file, folder of pictures, camera:0, - for standard input, or "
        "dataset:601, a video of the run's dataset. Several pictures may also "
        "stand behind the flags.",
    )
    flags.DEFINE_string("output", None, "Folder to write to.")
    flags.DEFINE_list(
        "outputs",
        list(DEFAULT),
        f"What is written: {', '.join(KINDS)}; maps is png8.",
    )
    flags.DEFINE_enum(
        "first_frames",
        "mirror",
        list(windows.FIRST_FRAMES),
        "What the frames before the first whole window are predicted from.",
    )
    flags.DEFINE_enum(
        "model",
        "last",
        list(predictor_lib.MODELS),
        "Model after the last epoch, or the best in validation.",
    )
    flags.DEFINE_enum(
        "view", "heat", list(pictures.VIEWS), "How overlays are drawn."
    )
    flags.DEFINE_float("alpha", 0.6, "Strength of the overlay, 0 … 1.")
    flags.DEFINE_enum(
        "normalize",
        "none",
        list(pictures.NORMALIZE),
        "How maps are normalised (overlays always show each over its range).",
    )
    flags.DEFINE_enum(
        "map_size",
        "source",
        list(pictures.MAP_SIZES),
        "Size of maps: the video's, or the model's 640x360.",
    )
    flags.DEFINE_string(
        "report",
        "",
        "The report, in another place than --output; without --output and "
        "--outputs it is all that is written.",
    )
    flags.DEFINE_string("areas", "", "Areas of interest, for json and report.")
    flags.DEFINE_integer("regions", 3, "Regions of a frame in json.")
    flags.DEFINE_integer("block", encoding.BLOCK, "Pixels of a block's side.")
    flags.DEFINE_float(
        "strength",
        encoding.STRENGTH,
        "QP steps between the least and the most salient block, 0 … 24.",
    )
    flags.DEFINE_float(
        "floor", encoding.FLOOR, "Most steps by which QP of a block is raised."
    )
    flags.DEFINE_enum(
        "codec", "h264", list(encoding.CODECS), "Of the encoded video."
    )
    flags.DEFINE_float("crf", 23.0, "Rate factor of the encoded video.")
    flags.DEFINE_string("aspect", "9:16", "Aspect of the reframed video.")
    flags.DEFINE_float(
        "stiffness",
        reframe.STIFFNESS,
        "Seconds of all attention that a move of the crop by its length costs.",
    )
    flags.DEFINE_float(
        "lookahead", reframe.LOOKAHEAD, "Seconds seen ahead by the crop."
    )
    flags.DEFINE_float("ease", reframe.EASE, "Seconds that ease a move.")
    flags.DEFINE_float(
        "cut", reframe.CUT, "Difference of frames that is a cut, 0 … 1."
    )
    flags.DEFINE_string("start", "", "First moment: 12.5 (s), or frame 300f.")
    flags.DEFINE_string("end", "", "Moment behind the last, as --start.")
    flags.DEFINE_integer("every", 1, "Each so-manieth frame gets a map.")
    flags.DEFINE_integer("batch", predictor_lib.BATCH, "Maps at a time.")
    flags.DEFINE_string("size", "", "Of raw video: WIDTHxHEIGHT.")
    flags.DEFINE_float("rate", None, "Frames a second of raw video, pictures.")
    flags.DEFINE_enum(
        "pixel_format", "rgb24", list(sources.PIXEL_FORMATS), "Of raw video."
    )


def _about(run: experiment.Run, model: str) -> dict[str, str]:
    with (run.folder / predictor_lib.MODELS[model]).open("rb") as file:
        checksum = hashlib.file_digest(file, "sha256").hexdigest()
    return {"run": run.name, "model": model, "sha256": checksum}


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
    digest = hashlib.sha256()
    for jpeg in video.jpegs:
        digest.update(jpeg)
    return sources.Frames(
        video.frames,
        name=f"{DATASET}{text}",
        stem=str(local),
        fps=video.fps,
        num_frames=video.num_frames,
        identity=f"{data.name} {number} {digest.hexdigest()}",
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
    given: Collection[str], outputs: Sequence[str], source: sources.Source
) -> list[str]:
    """Which flags nothing uses, and what would: "--view (overlay)".

    Args:
        given: Names of the flags that somebody gave.
        outputs: What is written.
        source: What is read.
    """
    found = []
    for field in dataclasses.fields(Options):
        users = [n for n, kind in KINDS.items() if field.name in kind.options]
        written = {one_pass.ALIASES.get(n, n) for n in outputs}
        if users and field.name in given and not written & set(users):
            found.append(f"--{field.name} ({', '.join(users)})")
    for name, (kinds, words) in _OF_SOURCES.items():
        if name in given and not isinstance(source, kinds):
            found.append(f"--{name} ({words})")
    return found


def _run(names: Sequence[str]) -> str:
    """As the flags say; what is wrong with the video, or ""."""
    values = flags.FLAGS
    if values.batch < 1:
        raise ValueError(f"--batch is at least 1. Received: {values.batch}")
    run = experiment.chosen_run()
    outputs = list(values.outputs)
    if values.report:
        alone = not values.output and values["outputs"].using_default_value
        outputs = ["report"] if alone else [*outputs, "report"]
    stream = None
    if STDOUT in outputs:
        stream = pictures.claim_stdout()
    names = [*values.video, *names]
    source: sources.Source
    if len(names) == 1 and names[0].startswith(DATASET):
        source = of_dataset(run.settings, names[0].removeprefix(DATASET))
    else:
        source = sources.open_source(
            names,
            size=values.size,
            rate=values.rate,
            pixel_format=values.pixel_format,
        )
    given = {n for n in values if not values[n].using_default_value}
    if unused := unused_flags(given, outputs, source):
        logging.warning(
            "Nothing that is read or written uses %s.", ", ".join(unused)
        )
    model = predictor_lib.Predictor.load(
        run.folder, model=values.model, sources=run.sources
    )
    model.batch = values.batch
    return predict(
        model,
        source,
        values.output,
        outputs=outputs,
        options=Options(
            view=values.view,
            alpha=values.alpha,
            normalize=values.normalize,
            map_size=values.map_size,
            stream=stream,
            areas=values.areas,
            regions=values.regions,
            block=values.block,
            strength=values.strength,
            floor=values.floor,
            codec=values.codec,
            crf=values.crf,
            aspect=values.aspect,
            stiffness=values.stiffness,
            lookahead=values.lookahead,
            ease=values.ease,
            cut=values.cut,
            report=values.report,
        ),
        first_frames=values.first_frames,
        start=values.start,
        end=values.end,
        every=values.every,
        about=_about(run, values.model),
    )


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
