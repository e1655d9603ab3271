"""What all programs share: how they begin and end.

They exit with

0     done
1     nothing could be done; the last line of the log says why
130   stopped by Ctrl-C; the same command resumes or starts over
143   the same by SIGTERM, of `train` and of programs that are `terminable`
"""

from collections.abc import Iterator
import contextlib
import gc
import pathlib
import signal
import sys
import threading
import types

from absl import flags, logging

FAILED = 1
INTERRUPTED = 130
TERMINATED = 143


class Terminated(KeyboardInterrupt):
    """SIGTERM came; it ends a program as Ctrl-C does."""


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
        logging.error("Stopped. The same command resumes or starts over.")
        is_term = isinstance(error, Terminated)
        sys.exit(TERMINATED if is_term else INTERRUPTED)
    except Exception as error:
        # Programs start without TensorFlow; what did not load it raised none.
        tensorflow = sys.modules.get("tensorflow")
        if not tensorflow or not isinstance(error, tensorflow.errors.OpError):
            raise
        # Where it was may be needed to find out more; what it was comes last.
        logging.error("TensorFlow failed.", exc_info=True)
        reason = str(error).strip().partition("\n")[0]
        logging.error("%s: %s", type(error).__name__, reason)
        sys.exit(FAILED)


@contextlib.contextmanager
def terminable() -> Iterator[None]:
    """Inside, SIGTERM raises `Terminated`, so that everything is cleaned up.

    Whoever ignores SIGTERM goes on to ignore it. Outside of the main thread,
    where no signals arrive, nothing changes.
    """
    in_main = threading.current_thread() is threading.main_thread()
    if not in_main or signal.getsignal(signal.SIGTERM) is signal.SIG_IGN:
        yield
        return

    def stop(number: int, frame: types.FrameType | None) -> None:
        # `timeout` sends it twice; the second one must not end the clean-up.
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        raise Terminated

    before = signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


@contextlib.contextmanager
def importing_keras() -> Iterator[None]:
    """Inside, TensorFlow and Keras are imported with less work.

    Only for programs that give Keras no tables and ask it for no plots. What
    has been imported already stays as it is.
    """
    if "keras" in sys.modules:
        yield
        return
    # Keras imports them if they are installed, which takes a second and 90 MB.
    hidden = {"pandas", "matplotlib"} - set(sys.modules)
    # So Python's import system has it: None stands for what is not there.
    sys.modules.update(dict.fromkeys(hidden))  # type: ignore[arg-type]
    # Almost all that is made stays, and Python would look through it for
    # garbage again and again: a fifth of the time.
    collects = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        for name in hidden:
            del sys.modules[name]
        gc.freeze()
        if collects:
            gc.enable()


def fast_dtype(front_end: str) -> str:
    """Which of `parts.DTYPES` the processor is made for, by its own word."""
    about = pathlib.Path("/proc/cpuinfo")
    words = about.read_text().split() if about.is_file() else []
    if not {"avx512_bf16", "amx_bf16"}.isdisjoint(words):
        return "bfloat16"
    has_int8 = not {"avx512_vnni", "avx_vnni"}.isdisjoint(words)
    return "int8" if has_int8 and front_end == "continuous" else "float32"
