"""What all programs do alike: how they end.

0     done
1     nothing could be done; the last line of the log says why
130   stopped by Ctrl-C; the same command goes on or starts anew
143   stopped by SIGTERM, where a program hears it; likewise
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
    except KeyboardInterrupt as error:
        logging.error("Stopped. The same command goes on or starts anew.")
        # A program that hears several signals names the one that it was.
        sys.exit(128 + error.args[0] if error.args else INTERRUPTED)
    except Exception as error:
        if not _is_tensorflows(error):
            raise
        # Where it was may be needed to find out more; what it was comes last.
        logging.error("TensorFlow failed.", exc_info=True)
        reason = str(error).strip().partition("\n")[0]
        logging.error("%s: %s", type(error).__name__, reason)
        sys.exit(FAILED)


def _is_tensorflows(error: Exception) -> bool:
    # Programs start without TensorFlow; what did not load it raised no error.
    tensorflow = sys.modules.get("tensorflow")
    return tensorflow is not None and isinstance(
        error, tensorflow.errors.OpError
    )
