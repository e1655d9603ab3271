"""Train LSTS: makes the features that are missing, trains, saves, resumes.

    python -m lsts_tf.train --flagfile=experiments/rgb.flags
    python -m lsts_tf.train --flagfile=experiments/rgb.flags --dry_run

The run folder holds `experiment.flags`, `front_end.json` (what the features
come from), `checkpoints/`, `model.keras` (after the last epoch), `best.keras`
(highest CC in validation), `metrics.jsonl` and `logs/` for
TensorBoard. The same command continues a killed run, which ends as if it had
never been killed; SIGTERM and SIGINT save first and exit with 143 and 130. On
several machines the same command runs on each, and the first one writes.
"""

from collections.abc import Sequence
import sys

from absl import app, flags

from lsts_tf import experiment, program


def define_flags() -> None:
    """Define the flags that are not settings of an experiment."""
    flags.DEFINE_boolean(
        "dry_run",
        False,
        "Count windows, steps, gigabytes and parameters; train nothing.",
    )


def main(_: Sequence[str]) -> None:
    """Train as the flags say."""
    settings = experiment.from_flags(flags.FLAGS)
    # TensorFlow takes seconds: help and wrong flags do not wait for it.
    import tensorflow as tf

    from lsts_tf.training import dry_run, loop

    if settings.deterministic:
        # The order of sums depends on it.
        tf.config.threading.set_inter_op_parallelism_threads(1)
    with program.exit_codes():
        if flags.FLAGS.dry_run:
            for line in dry_run.lines(settings):
                sys.stdout.write(line + "\n")
            return
        sys.exit(loop.run(settings))


if __name__ == "__main__":
    experiment.define_flags()
    define_flags()
    app.run(main)
