"""Make the flows and features of an experiment's videos.

    python -m lsts_tf.extract --flagfile=experiments/rgb_flow.flags
    python -m lsts_tf.extract --flagfile=... --workers=4
    python -m lsts_tf.extract --flagfile=... --verify --repair

`train` and `evaluate` do the same on their way; this program does it alone,
in several processes, or on a cluster (docs/extract.md). Killed at any moment
and started again, it does only what is missing.
"""

from collections.abc import Collection
from collections.abc import Sequence
import dataclasses
import pathlib
import shlex
import sys

from absl import app
from absl import flags
from absl import logging
import tensorflow as tf

from lsts_tf import experiment
from lsts_tf import program
from lsts_tf.features import dataset
from lsts_tf.features import extractor as extractor_lib
from lsts_tf.features import stores
from lsts_tf.features import views
from lsts_tf.features import workers as workers_lib

SPLITS = ("train", "val", "test")
RUNNERS = ("local", "beam")


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Part:
    """A split of a dataset in one view: its stores, and what they lack."""

    split: str
    data: dataset.Dataset
    stride: int
    kept: extractor_lib.Stores
    absent: list[int]


def extract(
    settings: experiment.Experiment,
    splits: Sequence[str],
    *,
    workers: int = 0,
    runner: str = "local",
    beam_args: Sequence[str] = (),
) -> None:
    """Fill the stores of `splits`.

    Args:
        settings: The experiment.
        splits: Some of "train", "val", "test".
        workers: Processes that extract; 0: this one does. Not for Beam, which
            has its own.
        runner: "local", or "beam".
        beam_args: Options for Beam.

    Raises:
        extractor.ExtractionError: After all that could be done, naming what
            failed.
        ValueError: Workers for Beam; or the stores were made with something
            else.
        OSError: The disk is too small, or cannot be written.
    """
    if workers and runner == "beam":
        raise ValueError(
            "--workers is for --runner=local; Beam's own are chosen by "
            f"--beam_args. Received: --workers={workers}"
        )
    if workers and tf.config.list_physical_devices("GPU"):
        # This process only describes the work, and must not take the memory.
        tf.config.set_visible_devices([], "GPU")
    several = len(settings.dataset_names) > 1
    data = [
        dataset.Dataset(name, settings.data_dir)
        for name in settings.dataset_names
    ]
    extractor = extractor_lib.Extractor(**settings.front_end_arguments())
    failures: list[str] = []
    parts: list[_Part] = []
    for split in splits:
        named = settings.videos(f"{split}_videos")
        for one in data:
            numbers = one.numbers(named, "train" if split == "train" else "")
            if several and not numbers:
                continue
            title = f"{split}, {one.name}" if several else split
            try:
                parts += _open_parts(
                    settings, split, title, one, numbers, extractor
                )
            except dataset.DatasetError as error:
                failures.append(f"{title}: {error}")
            if damage := one.damage(numbers):
                failures.append(f"{title}: some was not read. {damage}")
    _require_disk(parts)
    for part in parts:
        if not part.absent:
            logging.info("%s: nothing is missing.", part.split)
            continue
        try:
            if runner == "beam":
                _fill_by_beam(settings, part, beam_args)
            elif workers:
                _fill_by_workers(settings, part, workers)
            else:
                extractor_lib.fill(
                    part.data,
                    part.absent,
                    extractor,
                    part.kept,
                    purpose=part.split,
                )
        except extractor_lib.ExtractionError as error:
            failures.append(f"{part.split}: {error}")
    if failures:
        raise extractor_lib.ExtractionError("\n".join(failures))


def _open_parts(
    settings: experiment.Experiment,
    split: str,
    title: str,
    data: dataset.Dataset,
    numbers: Collection[int],
    extractor: extractor_lib.Extractor,
) -> list[_Part]:
    stride = {
        "train": settings.train_stride,
        "val": settings.val_stride,
        "test": 1,
    }[split]
    chosen = data.choose(numbers, title, settings.geometry(), whole=False)
    seen = [views.WHOLE]
    # Live windows are mirrored as they stream.
    if split == "train" and settings.features == "stored":
        seen += views.chosen(flip=settings.flip, crops=settings.views)
    parts = []
    for view in seen:
        kept = extractor_lib.open_stores(
            pathlib.Path(settings.store_dir),
            dataset_name=data.name,
            extractor=extractor,
            stride=stride,
            short=settings.short_clips,
            view=view,
            command=settings.command("extract"),
        )
        parts.append(
            _Part(
                split=f"{title}, {view.name}" if view.name else title,
                data=data,
                stride=stride,
                kept=kept,
                absent=extractor_lib.missing(chosen, kept),
            )
        )
    return parts


def _require_disk(parts: Sequence[_Part]) -> None:
    """Raise OSError unless all parts together fit on the disk."""
    # Views of a video share its flow.
    needed = {
        (store.root, video): size
        for part in parts
        for video in part.absent
        for store, size in extractor_lib.missing_files(
            video, part.data.frame_counts[video], part.kept
        )
    }
    videos = {(part.data.name, n) for part in parts for n in part.absent}
    if videos:
        extractor_lib.require_disk(
            parts[0].kept, sum(needed.values()), len(videos)
        )


def _work(settings: experiment.Experiment, part: _Part) -> workers_lib.Work:
    return workers_lib.Work(
        dataset=part.data.name,
        data_dir=settings.data_dir,
        store_dir=settings.store_dir,
        front_end=settings.front_end_arguments(),
        stride=part.stride,
        short=settings.short_clips,
        view=part.kept.view,
        command=settings.command("extract"),
    )


def _frames(part: _Part) -> dict[int, int]:
    return {number: part.data.frame_counts[number] for number in part.absent}


def _fill_by_workers(
    settings: experiment.Experiment,
    part: _Part,
    workers: int,
) -> None:
    workers_lib.fill(
        _work(settings, part),
        _frames(part),
        workers=workers,
        purpose=part.split,
    )


def _fill_by_beam(
    settings: experiment.Experiment,
    part: _Part,
    beam_args: Sequence[str],
) -> None:
    # Only here, because it takes seconds to import.
    from lsts_tf.features import cluster

    cluster.fill(
        _work(settings, part),
        _frames(part),
        arguments=beam_args,
        kept=part.kept,
        purpose=part.split,
    )


def verify(settings: experiment.Experiment, *, repair: bool) -> list[str]:
    """Read all stores of the datasets, and compare them with their checksums.

    Args:
        settings: The experiment; its datasets' stores of any front end are
            read.
        repair: Whether to discard damaged videos, so that they are made anew.

    Returns:
        A line for each damage that is still there.

    Raises:
        stores.StoreError: There is no store.
    """
    folders = [
        extractor_lib.store_folder(
            pathlib.Path(settings.store_dir),
            dataset.Dataset(name, settings.data_dir).name,
        )
        for name in settings.dataset_names
    ]
    roots = sorted(
        path.parent
        for folder in folders
        for path in folder.glob("*/manifest.json")
    )
    if not roots:
        raise stores.StoreError(
            "There is no store to verify. Looked in: "
            f"{', '.join(map(str, folders))}. Check --store_dir and --dataset."
        )
    left = []
    for root in roots:
        kind = stores.TruthStore if root.name == "truth" else stores.Store
        try:
            store = kind.open(root, command=settings.command("extract"))
        except (stores.StoreError, OSError) as error:
            # No repair: what the store should be is not known.
            logging.error("%s", error)
            left.append(str(error))
            continue
        damages = store.verify()
        logging.info(
            "%s: %d videos read, %d damages found.",
            root,
            len(store.videos()),
            len(damages),
        )
        for damage in damages:
            place = f"video {damage.video}"
            if damage.record is not None:
                place += f", record {damage.record}"
            text = f"{root}: {place}: {damage.reason}"
            logging.error("%s", text)
            if repair:
                store.discard(damage.video)
            else:
                left.append(text)
    return left


def define_flags(flag_values: flags.FlagValues = flags.FLAGS) -> None:
    """Flags of this program."""
    flags.DEFINE_multi_enum(
        "split",
        list(SPLITS),
        SPLITS,
        "Split to extract; repeat for several.",
        flag_values=flag_values,
    )
    flags.DEFINE_integer(
        "workers",
        0,
        "Processes that extract, with a model each. 0: this process does.",
        lower_bound=0,
        flag_values=flag_values,
    )
    flags.DEFINE_enum(
        "runner",
        "local",
        RUNNERS,
        "local: on this machine; beam: by Apache Beam, see --beam_args.",
        flag_values=flag_values,
    )
    flags.DEFINE_string(
        "beam_args",
        "",
        "Beam's own options, separated by spaces, such as "
        "'--runner=FlinkRunner --flink_master=host:8081'.",
        flag_values=flag_values,
    )
    flags.DEFINE_boolean(
        "verify",
        False,
        "Only read what is stored and compare it with its checksums.",
        flag_values=flag_values,
    )
    flags.DEFINE_boolean(
        "repair",
        False,
        "With --verify: discard what is damaged, and make it anew.",
        flag_values=flag_values,
    )


def main(_: Sequence[str]) -> None:
    """Extract as the flags say."""
    with program.terminable(), program.exit_codes():
        settings = experiment.from_flags(flags.FLAGS)
        if flags.FLAGS.verify:
            damages = verify(settings, repair=flags.FLAGS.repair)
            if damages:
                logging.error(
                    "%d damages%s.",
                    len(damages),
                    " cannot be repaired"
                    if flags.FLAGS.repair
                    else ". Run the same command with --repair",
                )
                sys.exit(1)
            if not flags.FLAGS.repair:
                return
        extract(
            settings,
            flags.FLAGS.split,
            workers=flags.FLAGS.workers,
            runner=flags.FLAGS.runner,
            beam_args=shlex.split(flags.FLAGS.beam_args),
        )


if __name__ == "__main__":
    experiment.define_flags()
    define_flags()
    app.run(main)
