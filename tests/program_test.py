from concurrent import futures
import logging
import signal
import subprocess
import sys

from absl import flags
import pytest
import tensorflow as tf

from lsts_tf import program
from tests import pages

VERBS = (
    "train",
    "evaluate",
    "predict",
    "extract",
    "export",
    "sample",
    "app",
)


def leaves(error):
    with pytest.raises(SystemExit) as caught, program.exit_codes():
        raise error
    return caught.value.code


@pytest.mark.parametrize(
    "error",
    [
        ValueError("a bad value"),
        FileNotFoundError("no file"),
        RuntimeError("stopped"),
        flags.IllegalFlagValueError("a bad flag"),
    ],
)
def test_what_a_user_can_mend_is_one_message(error, caplog):
    error.add_note("Do this instead.")
    assert leaves(error) == program.FAILED
    assert f"{error} Do this instead." in caplog.text
    assert "Traceback" not in caplog.text


def test_ctrl_c_has_its_own_code():
    assert leaves(KeyboardInterrupt()) == program.INTERRUPTED


def test_an_error_of_tensorflow_says_last_what_it_was(caplog):
    caplog.set_level(logging.ERROR)
    error = tf.errors.ResourceExhaustedError(None, None, "OOM for 4 GB.\nMore")
    assert leaves(error) == program.FAILED
    assert caplog.messages[-1] == "ResourceExhaustedError: OOM for 4 GB."
    assert "Traceback" in caplog.text


def test_help_and_mistakes_do_not_wait_for_tensorflow():
    """Of every verb; and an error is told from TensorFlow's without it."""
    code = (
        "import runpy, sys\n"
        "from absl import app, flags\n"
        "from lsts_tf import program\n"
        "app.define_help_flags()\n"
        "everywhere = set(flags.FLAGS)\n"
        "for verb in sys.argv[1:]:\n"
        "    sys.argv = [verb, '--helpshort']\n"
        "    try:\n"
        "        runpy.run_module(verb, run_name='__main__', alter_sys=True)\n"
        "    except SystemExit:\n"
        "        print('answered', verb)\n"
        "    for name in set(flags.FLAGS) - everywhere:\n"
        "        delattr(flags.FLAGS, name)\n"
        "try:\n"
        "    with program.exit_codes():\n"
        "        raise KeyError('a bug')\n"
        "except KeyError:\n"
        "    print('loaded', {'tensorflow', 'keras'} & set(sys.modules))\n"
    )
    verbs = [f"lsts_tf.{verb}" for verb in VERBS]
    done = subprocess.run(
        [sys.executable, "-c", code, *verbs],
        cwd=pages.ROOT,
        capture_output=True,
        text=True,
        check=True,
        timeout=120,
    )
    for verb in verbs:
        assert f"answered {verb}\n" in done.stdout
    assert done.stdout.endswith("loaded set()\n")


def test_sigterm_has_its_own_code():
    assert leaves(program.Terminated()) == program.TERMINATED


def test_sigterm_cleans_up_even_if_it_comes_twice():
    """As from `timeout`."""
    before = signal.getsignal(signal.SIGTERM)
    cleaned = False
    with pytest.raises(program.Terminated), program.terminable():
        try:
            signal.raise_signal(signal.SIGTERM)
        finally:
            signal.raise_signal(signal.SIGTERM)
            cleaned = True
    assert cleaned
    assert signal.getsignal(signal.SIGTERM) is before


def test_who_ignores_sigterm_goes_on_to_do_so():
    before = signal.signal(signal.SIGTERM, signal.SIG_IGN)
    try:
        with program.terminable():
            signal.raise_signal(signal.SIGTERM)
    finally:
        signal.signal(signal.SIGTERM, before)


def test_outside_of_the_main_thread_nothing_changes():
    def enters():
        with program.terminable():
            return signal.getsignal(signal.SIGTERM)

    before = signal.getsignal(signal.SIGTERM)
    with futures.ThreadPoolExecutor() as pool:
        assert pool.submit(enters).result() is before


def test_a_mistake_of_ours_is_shown_whole():
    with pytest.raises(KeyError), program.exit_codes():
        raise KeyError("a bug")


def test_nothing_wrong_nothing_done():
    with program.exit_codes():
        pass
