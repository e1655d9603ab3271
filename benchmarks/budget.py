r"""Disk and time that DHF1K needs, by count: the figures in WORKSPACE.md.

    python -m benchmarks.budget
    python -m benchmarks.budget --rgb=0.932 --flow=0.958 --tvl1=0.0541
    python -m benchmarks.budget --experiment=experiments/crowdsal.flags \
        --videos=3000 --frames=552 --rgb=0.131

Hours follow from the seconds a frame that `benchmarks.extract` and
`benchmarks.flow` measured. The last command counts an experiment on a dataset
that has not been built, as `train --dry_run` does on one that has.
"""

import math
import pathlib

from absl import app, flags

from lsts_tf import experiment, parts, windows

SECONDS = {
    what: flags.DEFINE_float(what, None, f"Seconds for a frame: {meaning}.")
    for what, meaning in {
        "rgb": "I3D, RGB",
        "flow": "I3D, flow",
        "tvl1": "TV-L1",
    }.items()
}

TRAIN = flags.DEFINE_float("train", None, "Windows trained on in a second.")
EPOCHS = flags.DEFINE_integer("epochs", 10, "Epochs of training.")

EXPERIMENT = flags.DEFINE_string(
    "experiment", "", "Flagfile of an experiment to count instead."
)
VIDEOS = flags.DEFINE_integer("videos", 3000, "Its videos, from number 1 on.")
FRAMES = flags.DEFINE_integer("frames", 552, "Frames of each of them.")

COUNTS = pathlib.Path(__file__).parents[1] / "tests" / "dhf1k_n_frames.txt"
FLOW_BYTES = 112 * 112 * 2 * 2
FEATURE_BYTES = 5 * 5 * 5 * 1024 * 2


def of_experiment() -> None:
    """Print what a training takes."""
    # TensorFlow takes seconds to import.
    from lsts_tf.features import dataset
    from lsts_tf.training import dry_run

    settings = experiment.load(pathlib.Path(EXPERIMENT.value))

    class Counted(dataset.Dataset):
        """Only its name and its lengths are asked for."""

        name = f"{settings.dataset_names[0]}:1.0.0"

        def __init__(self) -> None:
            numbers = range(1, VIDEOS.value + 1)
            self.frame_counts = dict.fromkeys(numbers, FRAMES.value)

    for line in dry_run.lines(settings, Counted()):
        print(line)
    if SECONDS["rgb"].value is not None:
        # Arithmetic grows with the pixels of a frame.
        pixels = math.prod(parts.parse_size(settings.input_size)) / 224**2
        frames = VIDEOS.value * FRAMES.value
        hours = frames * SECONDS["rgb"].value * pixels / 3600
        print(f"rgb of {frames:,} frames: {hours:.1f} hours of CPU")


def main(argv: list[str]) -> None:
    """Print the figures."""
    del argv
    if EXPERIMENT.value:
        of_experiment()
        return
    counts = [int(line) for line in COUNTS.read_text().split()]
    annotated = counts[:700]
    print(f"frames, all videos              {sum(counts):>12,}")
    print(f"frames, annotated (1-700)       {sum(annotated):>12,}")
    pairs = sum(n - 1 for n in annotated)
    print(f"flows of 1-700                  {pairs * FLOW_BYTES / 1e9:9.1f} GB")
    for stream in ("rgb", "flow"):
        for name, first, last, stride in (
            ("train", 1, 500, 1),
            ("mini-validation", 501, 600, 10),
            ("test", 601, 700, 1),
        ):
            geometry = windows.Geometry.of((stream,), stride=stride)
            number = windows.num_windows(counts[first - 1 : last], geometry)
            print(
                f"{stream:<4} features, {name:<15} {number:>8,} windows "
                f"{number * FEATURE_BYTES / 1e9:6.1f} GB"
            )
    for what, flag in SECONDS.items():
        if flag.value is None:
            continue
        # The first frame of a video has no flow.
        frames = sum(counts) - (len(counts) if what == "tvl1" else 0)
        hours = frames * flag.value / 3600
        print(f"{what:<4} of all videos: {frames:,} frames {hours:12.1f} hours")
    if TRAIN.value is not None:
        of_rgb = windows.Geometry.of(("rgb",))
        number = EPOCHS.value * windows.num_windows(counts[:500], of_rgb)
        hours = number / TRAIN.value / 3600
        print(f"training of rgb: {number:,} windows {hours:16.1f} hours")


if __name__ == "__main__":
    app.run(main)
