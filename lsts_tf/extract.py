"""Make the flows and features of an experiment's videos.

    python -m lsts_tf.extract --flagfile=experiments/rgb_flow.flags

`train` and `evaluate` do the same on their way; this program does it alone.
Killed at any moment and started again, it does only what is missing.
"""

from collections.abc import Sequence
import pathlib
import sys

from absl import app
from absl import flags
from absl import logging

from lsts_tf import dataset
from lsts_tf import experiment
from lsts_tf import extractor as extractor_lib
from lsts_tf import windows

SPLITS = ("train", "val", "test")


def extract(settings: experiment.Experiment, splits: Sequence[str]) -> None:
    """Fill the stores of `splits`, some of "train", "val", "test"."""
    data = dataset.Dataset(settings.dataset, settings.data_dir)
    extractor = extractor_lib.Extractor(**settings.front_end_arguments())
    plan = {
        "train": (settings.train_videos, settings.train_stride),
        "val": (settings.val_videos, settings.val_stride),
        "test": (settings.test_videos, 1),
    }
    for split in splits:
        ranges, stride = plan[split]
        extractor_lib.ready_stores(
            pathlib.Path(settings.store_dir),
            data,
            data.choose(windows.parse_ranges(ranges), split),
            extractor,
            stride=stride,
            purpose=split,
        )


def define_flags() -> None:
    """Flags of this program."""
    flags.DEFINE_multi_enum(
        "split", list(SPLITS), SPLITS, "Split to extract; repeat for several."
    )


def main(_: Sequence[str]) -> None:
    """Extract as the flags say."""
    try:
        extract(experiment.from_flags(flags.FLAGS), flags.FLAGS.split)
    except (ValueError, OSError, RuntimeError) as error:
        logging.error("%s", error)
        sys.exit(1)


if __name__ == "__main__":
    experiment.define_flags()
    define_flags()
    app.run(main)
