"""How far the continuous front end is from that of the paper.

    python -m benchmarks.front_end --flagfile=RUN/experiment.flags --video=FILE

Computes the features of the same frames by `--front_end=window` and by
`--front_end=continuous`, gives both to the decoder of the run, and prints the
difference. A run without a trained decoder gets a random one, and says so. No
decoder was trained on both, so maps say how far a decoder that was trained on
one front end goes astray on the other.

With `--lookaheads=0,8,16,24,32` also continuous with so many frames beyond a
window, as for live use, beside continuous with all that it sees. With
`--annotations=DIR --number=N` (DHF1K's folders) the maps of each are scored
against gaze: means over the frames that have a whole window.
"""

from collections.abc import Mapping, Sequence
import itertools
import pathlib
import time

from absl import app, flags
import keras
import numpy as np

from lsts_tf import experiment
from lsts_tf import predictor as predictor_lib
from lsts_tf.features import extractor as extractor_lib
from lsts_tf.media import images
from lsts_tf.media import video as video_lib
from lsts_tf.networks import decoder
from lsts_tf.scoring import metrics, truth

VIDEO = flags.DEFINE_string("video", None, "A video file.", required=True)
FRAMES = flags.DEFINE_integer("frames", 100, "Frames of it that are used.")
STRIDE = flags.DEFINE_integer("stride", 1, "Distance between windows.")

LOOKAHEADS = flags.DEFINE_list(
    "lookaheads", [], "Frames of lookahead; in whole --stride."
)
ANNOTATIONS = flags.DEFINE_string("annotations", "", "Folder with 0601/maps.")
NUMBER = flags.DEFINE_integer("number", 0, "The video's number in it.")

FRONT_ENDS = ("window", "continuous")

Features = list[Mapping[str, np.ndarray]]


def extractors(
    settings: experiment.Experiment,
) -> dict[str, extractor_lib.Extractor]:
    """An extractor of each kind, with the same weights."""
    arguments = settings.front_end_arguments()
    found = {
        name: extractor_lib.Extractor(**{**arguments, "name": name})
        for name in FRONT_ENDS
    }
    arguments["name"] = "continuous"
    for number in map(int, LOOKAHEADS.value):
        found[f"lookahead {number}"] = extractor_lib.Extractor(
            **arguments, lookahead=number
        )
    return found


def load_decoder(
    settings: experiment.Experiment, feature_shape: Sequence[int]
) -> tuple[keras.Model, str]:
    """The run's decoder, or a random one; and what it is."""
    path = pathlib.Path(settings.run_dir) / experiment.MODELS["last"]
    if path.is_file():
        trained_on = f"trained on --front_end={settings.front_end}"
        return keras.models.load_model(path, compile=False), trained_on
    model = decoder.build(
        settings.streams,
        head=settings.head,
        feature_shape=feature_shape,
        seed=settings.seed,
    )
    return model, f"RANDOM, because there is none at {path}"


def compare_features(window: np.ndarray, continuous: np.ndarray) -> str:
    """The relative differences of one stream's features, [windows, ...]."""
    difference = (continuous - window).reshape(len(window), -1)
    norms = np.linalg.norm(window.reshape(len(window), -1), axis=1)
    relative = np.linalg.norm(difference, axis=1) / norms
    largest = np.abs(difference).max() / np.abs(window).max()
    return (
        f"norm of the difference / norm: mean {relative.mean():.4f}, most "
        f"{relative.max():.4f}; largest difference / largest value "
        f"{largest:.4f}"
    )


def compare_maps(window: np.ndarray, continuous: np.ndarray) -> str:
    """CC, largest difference and shift of the strongest point, [n, H, W]."""
    cc = np.array(
        [
            metrics.score(a, b, metrics=["cc"])["cc"]
            for a, b in zip(continuous, window, strict=True)
        ]
    )
    largest = np.abs(continuous - window).max()
    peaks = [
        np.stack(np.unravel_index(m.reshape(len(m), -1).argmax(1), m.shape[1:]))
        for m in (window, continuous)
    ]
    shift = np.hypot(*(peaks[1] - peaks[0]))
    return (
        f"CC: mean {cc.mean():.4f}, least {cc.min():.4f}; largest difference "
        f"{largest:.4f} (maps reach from {window.min():.3f} to "
        f"{window.max():.3f}); strongest point shifts by {shift.mean():.1f} "
        f"pixels in the mean, {np.median(shift):.1f} in the median, "
        f"{shift.max():.1f} at most, of {window.shape[2]} x {window.shape[1]}"
    )


def against_gaze(
    clip: truth.AnnotatedFiles, targets: Sequence[int], maps: np.ndarray
) -> str:
    """Mean CC and NSS of the targets' maps, as `evaluate` scores them."""
    each = [
        metrics.score(
            map_,
            clip.density(target),
            clip.fixations(target)[0],
            metrics=("cc", "nss"),
        )
        for target, map_ in zip(targets, images.to_uint8(maps), strict=True)
    ]
    cc, nss = (np.nanmean([s[name] for s in each]) for name in ("cc", "nss"))
    return f"CC {cc:.4f}, NSS {nss:.4f}"


def main(_: Sequence[str]) -> None:
    """Print the comparison."""
    settings = experiment.from_flags()
    frames = itertools.islice(video_lib.Video(VIDEO.value), FRAMES.value)
    each = extractors(settings)
    prepared = [each["window"].prepare(frame) for frame in frames]
    found: dict[str, Features] = {}
    for name, extractor in each.items():
        cpu = time.process_time()
        of_clip = list(extractor.of_clip(prepared, stride=STRIDE.value))
        targets = [target for target, _ in of_clip]
        found[name] = [features for _, features in of_clip]
        cpu = time.process_time() - cpu
        print(f"{name}: {cpu:.0f} CPU seconds, tracing included")
    count = len(found["window"])
    if not count:
        raise app.UsageError(
            f"{len(prepared)} frames have no window of {settings.window}. Give "
            "a longer video, or more --frames."
        )
    print(
        f"{len(prepared)} frames of {VIDEO.value}, {count} windows of "
        f"{settings.window} frames."
    )
    note = each["window"].note
    print(f"I3D: {note.upper() if note else 'published weights'}")
    model, what = load_decoder(settings, each["window"].feature_shape)
    print(f"decoder: {what}")
    predictor = predictor_lib.Predictor(model, each["window"])
    maps = {
        n: np.stack(list(predictor.of_features(f))) for n, f in found.items()
    }
    fewer = list(found)[len(FRONT_ENDS) :]
    for pair in (FRONT_ENDS, *(("continuous", name) for name in fewer)):
        print(f"{pair[1]} against {pair[0]}:")
        for stream in settings.streams:
            both = (np.stack([f[stream] for f in found[n]]) for n in pair)
            print(f"  features, {stream}: {compare_features(*both)}")
        print(f"  maps: {compare_maps(*(maps[name] for name in pair))}")
    if ANNOTATIONS.value:
        clip = truth.of_folder(
            ANNOTATIONS.value, videos=frozenset({NUMBER.value})
        ).clips[NUMBER.value]
        for name, found_maps in maps.items():
            print(f"gaze, {name}: {against_gaze(clip, targets, found_maps)}")


if __name__ == "__main__":
    experiment.define_flags()
    app.run(main)
