"""Flags of a program, defined for a while in the process of the tests."""

import contextlib

from absl import flags
from absl.testing import flagsaver

from lsts_tf import experiment


@contextlib.contextmanager
def defined(*definers):
    """`flags.FLAGS` with what `definers` define; as before at the end.

    Tests of two files may run in one process: a flag that stayed would be
    defined twice by the next program.
    """
    parsed = flags.FLAGS.is_parsed()
    with flagsaver.flagsaver():
        for define in definers:
            define()
        try:
            yield flags.FLAGS
        finally:
            if not parsed:
                flags.FLAGS.unparse_flags()


def run(program, *arguments):
    """Runs `main` of a program, a module, by its command line."""
    with defined(experiment.define_flags, program.define_flags) as values:
        program.main(values([program.__name__, *map(str, arguments)]))
