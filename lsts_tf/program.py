"""What all programs do alike: how they end.

0     done
1     nothing could be done; the last line of the log says why
130   stopped by Ctrl-C; the same command goes on or starts anew
"""

from collections.abc import Iterator
import contextlib
import sys

from absl import flags
from absl import logging

FAILED = 1
INTERRUPTED = 130


@contextlib.contextmanager
def exit_codes() -> Iterator[None]:
    """Turns errors that a user can mend into a message and an exit code."""
    try:
        yield
    except (flags.Error, ValueError, OSError, RuntimeError) as error:
        notes = getattr(error, "__notes__", [])
        logging.error("%s", " ".join([str(error), *notes]))
        sys.exit(FAILED)
    except KeyboardInterrupt:
        logging.error("Stopped. The same command goes on or starts anew.")
        sys.exit(INTERRUPTED)
