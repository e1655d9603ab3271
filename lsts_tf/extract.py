"""Make the flows and features of an experiment's videos.

    python -m lsts_tf.extract --flagfile=experiments/rgb_flow.flags
    python -m lsts_tf.extract --flagfile=... --workers=4

`train` and `evaluate` do the same when they need it; this program does only
that, in several processes or on a cluster if asked (docs/extract.md). If it was
killed and is started again, it computes only what is missing.
"""

from collections.abc import Iterator, Sequence
import contextlib
import functools
import itertools
import pathlib
import shlex
from typing import TYPE_CHECKING

from absl import app, flags

from lsts_tf import experiment, program
from lsts_tf.features import views

if TYPE_CHECKING:
    from lsts_tf.features import dataset, fill
    from lsts_tf.features import front_end as front_end_lib

SPLITS = ("train", "val", "test")
RUNNERS = ("local", "beam")


def extract(
    settings: experiment.Experiment,
    splits: Sequence[str],
    *,
    workers: int = 0,
    runner: str = "local",
    beam_args: Sequence[str] = (),
) -> None:
    """Fill the stores of some of `SPLITS`, by one of `RUNNERS`.

    With 0 workers this process does it; Beam has workers of its own, and
    options, `beam_args`.

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
    # TensorFlow takes seconds: help and errors above do not wait for it.
    import tensorflow as tf

    from lsts_tf.features import fill
    from lsts_tf.features import front_end as front_end_lib

    if workers and tf.config.list_physical_devices("GPU"):
        # This process only hands out videos, and must not take the memory.
        tf.config.set_visible_devices([], "GPU")
    load = functools.partial(
        front_end_lib.load, **settings.front_end_arguments()
    )
    front_end = load()
    failures: list[str] = []
    shares = list(_shares(settings, splits, front_end, failures))
    fill.require_disk((data, kept, videos) for _, data, videos, kept in shares)
    with contextlib.ExitStack() as stack:
        engine = fill.here(front_end)
        if workers:
            engine = stack.enter_context(fill.processes(workers, load))
        elif runner == "beam":
            # Only here, because it takes seconds to import.
            from lsts_tf.features import beam

            engine = functools.partial(
                beam.run, load, settings.data_dir, beam_args
            )
        for title, data, videos, kept in shares:
            try:
                fill.fill(data, videos, kept, engine, purpose=title)
            except fill.ExtractionError as error:
                failures.append(f"{title}: {error}")
    if failures:
        raise fill.ExtractionError("\n".join(failures))


def _shares(
    settings: experiment.Experiment,
    splits: Sequence[str],
    front_end: "front_end_lib.FrontEnd",
    failures: list[str],
) -> "Iterator[tuple[str, dataset.Dataset, list[int], fill.Stores]]":
    """What is to be done, in order; what cannot be done goes to `failures`.

    Yields:
        A title, a dataset, numbers of videos, and their stores in one view.
    """
    from lsts_tf.features import dataset, fill

    names = settings.dataset_names
    sets = [dataset.Dataset(name, settings.data_dir) for name in names]
    for split, data in itertools.product(splits, sets):
        named = settings.videos(f"{split}_videos")
        numbers = data.numbers(named, "train" if split == "train" else "")
        if len(sets) > 1 and not numbers:
            continue
        title = f"{split}, {data.name}" if len(sets) > 1 else split
        try:
            chosen = data.choose(numbers, title, settings.geometry())
        except dataset.DatasetError as error:
            failures.append(f"{title}: {error}")
            continue
        seen = [views.WHOLE]
        # Live windows are mirrored as they stream.
        if split == "train" and settings.features == "stored":
            seen += views.chosen(flip=settings.flip, crops=settings.views)
        strides = {"train": settings.train_stride, "val": settings.val_stride}
        for view in seen:
            kept = fill.open_stores(
                pathlib.Path(settings.store_dir),
                dataset_name=data.name,
                front_end=front_end,
                stride=strides.get(split, 1),
                short=settings.short_clips,
                view=view,
                command=settings.command("extract"),
            )
            name = f", {view.name}" if view.name else ""
            yield title + name, data, chosen, kept


def define_flags() -> None:
    """Flags of this program."""
    flags.DEFINE_multi_enum(
        "split",
        list(SPLITS),
        SPLITS,
        "Split to extract.",
    )
    flags.DEFINE_integer(
        "workers",
        0,
        "Number of worker processes, each with its own model; 0 for none.",
        lower_bound=0,
    )
    flags.DEFINE_enum(
        "runner",
        "local",
        RUNNERS,
        "Where to run: local, on this machine; beam, by Apache Beam.",
    )
    flags.DEFINE_string(
        "beam_args",
        "",
        "Options for Beam, separated by spaces, such as '--runner=FlinkRunner "
        "--flink_master=host:8081'.",
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
