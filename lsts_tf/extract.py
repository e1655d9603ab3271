"""Make the flows and features of an experiment's videos.

    python -m lsts_tf.extract --flagfile=experiments/rgb_flow.flags
    python -m lsts_tf.extract --flagfile=... --workers=4

`train` and `evaluate` do the same on their way; this program does it alone,
in several processes, or on a cluster (docs/extract.md). Killed at any moment
and started again, it does only what is missing.
"""

from collections.abc import Collection
from collections.abc import Iterator
from collections.abc import Sequence
import contextlib
import dataclasses
import pathlib
import shlex
from typing import Any

from absl import app
from absl import flags
import tensorflow as tf

from lsts_tf import experiment
from lsts_tf import program
from lsts_tf.features import dataset
from lsts_tf.features import fill
from lsts_tf.features import front_end as front_end_lib
from lsts_tf.features import views

SPLITS = ("train", "val", "test")
RUNNERS = ("local", "beam")


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Share:
    """Videos of a split of a dataset, in one view, and their stores."""

    title: str
    data: dataset.Dataset
    numbers: Sequence[int]
    options: dict[str, Any]
    kept: fill.Stores


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
        fill.ExtractionError: After all that could be done, naming what
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
        # This process only hands out videos, and must not take the memory.
        tf.config.set_visible_devices([], "GPU")
    several = len(settings.dataset_names) > 1
    data = [
        dataset.Dataset(name, settings.data_dir)
        for name in settings.dataset_names
    ]
    front_end = front_end_lib.load(**settings.front_end_arguments())
    failures: list[str] = []
    shares: list[_Share] = []
    for split in splits:
        named = settings.videos(f"{split}_videos")
        for one in data:
            numbers = one.numbers(named, "train" if split == "train" else "")
            if several and not numbers:
                continue
            title = f"{split}, {one.name}" if several else split
            try:
                shares += _shares(
                    settings, split, title, one, numbers, front_end
                )
            except dataset.DatasetError as error:
                failures.append(f"{title}: {error}")
    fill.require_disk(
        (each.data, each.kept, [n for n in each.numbers if n not in each.kept])
        for each in shares
    )
    with contextlib.ExitStack() as stack:
        if workers:
            engine_of = stack.enter_context(fill.processes(workers))
        for share in shares:
            work = fill.Work(
                dataset=share.data.name,
                data_dir=settings.data_dir,
                store_dir=settings.store_dir,
                front_end=settings.front_end_arguments(),
                options=share.options,
            )
            if runner == "beam":
                # Only here, because it takes seconds to import.
                from lsts_tf.features import beam

                engine = beam.engine(work, share.kept, beam_args)
            elif workers:
                engine = engine_of(work)
            else:
                engine = fill.here(front_end, share.kept)
            try:
                fill.fill(
                    share.data,
                    share.numbers,
                    share.kept,
                    engine,
                    purpose=share.title,
                )
            except fill.ExtractionError as error:
                failures.append(f"{share.title}: {error}")
    if failures:
        raise fill.ExtractionError("\n".join(failures))


def _shares(
    settings: experiment.Experiment,
    split: str,
    title: str,
    data: dataset.Dataset,
    numbers: Collection[int],
    front_end: front_end_lib.FrontEnd,
) -> Iterator[_Share]:
    chosen = data.choose(numbers, title, settings.geometry())
    strides = {
        "train": settings.train_stride,
        "val": settings.val_stride,
        "test": 1,
    }
    seen = [views.WHOLE]
    # Live windows are mirrored as they stream.
    if split == "train" and settings.features == "stored":
        seen += views.chosen(flip=settings.flip, crops=settings.views)
    for view in seen:
        options: dict[str, Any] = {
            "stride": strides[split],
            "short": settings.short_clips,
            "view": view,
            "command": settings.command("extract"),
        }
        kept = fill.open_stores(
            pathlib.Path(settings.store_dir),
            dataset_name=data.name,
            front_end=front_end,
            **options,
        )
        yield _Share(
            title=f"{title}, {view.name}" if view.name else title,
            data=data,
            numbers=chosen,
            options=options,
            kept=kept,
        )


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
        "Processes that extract, each with a model of its own. 0: this one.",
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


def main(_: Sequence[str]) -> None:
    """Extract as the flags say."""
    with program.terminable(), program.exit_codes():
        extract(
            experiment.from_flags(flags.FLAGS),
            flags.FLAGS.split,
            workers=flags.FLAGS.workers,
            runner=flags.FLAGS.runner,
            beam_args=shlex.split(flags.FLAGS.beam_args),
        )


if __name__ == "__main__":
    experiment.define_flags()
    define_flags()
    app.run(main)
