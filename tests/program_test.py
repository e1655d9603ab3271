from concurrent import futures
import logging
import os
import signal
import subprocess
import sys

from absl import flags
import pytest
import tensorflow as tf

import lsts_tf
from lsts_tf import __main__ as command
from lsts_tf import program
from tests import pages

VERBS = tuple(command.VERBS)


def answered(code, *arguments):
    """What a process of its own says."""
    return subprocess.run(
        [sys.executable, "-c", code, *arguments],
        cwd=pages.ROOT,
        capture_output=True,
        text=True,
        check=True,
        timeout=120,
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


@pytest.mark.parametrize(
    ("error", "code"), [(KeyboardInterrupt(), 130), (program.Terminated(), 143)]
)
def test_signals_have_codes_of_their_own(error, code):
    assert leaves(error) == code


def test_an_error_of_tensorflow_says_last_what_it_was(caplog):
    caplog.set_level(logging.ERROR)
    error = tf.errors.ResourceExhaustedError(None, None, "OOM for 4 GB.\nMore")
    assert leaves(error) == program.FAILED
    assert caplog.messages[-1] == "ResourceExhaustedError: OOM for 4 GB."
    assert "Traceback" in caplog.text


def test_every_program_is_a_verb():
    programs = {
        path.stem
        for path in (pages.ROOT / "lsts_tf").glob("*.py")
        if "app.run(main)" in path.read_text()
    }
    assert programs == set(VERBS)


def test_the_command_answers_at_once():
    """Without TensorFlow: help, mistakes, and the error of a bug."""
    code = (
        "import sys\n"
        "from absl import app, flags\n"
        "from lsts_tf import __main__ as command, program\n"
        "app.define_help_flags()\n"
        "everywhere = set(flags.FLAGS)\n"
        "for text in sys.argv[1:]:\n"
        "    sys.argv[1:] = text.split()\n"
        "    try:\n"
        "        command.main()\n"
        "    except SystemExit as end:\n"
        "        print(repr(text), end.code)\n"
        "    for name in set(flags.FLAGS) - everywhere:\n"
        "        delattr(flags.FLAGS, name)\n"
        "try:\n"
        "    with program.exit_codes():\n"
        "        raise KeyError('a bug')\n"
        "except KeyError:\n"
        "    print('loaded', {'tensorflow', 'keras'} & set(sys.modules))\n"
    )
    helps = [f"{verb} --helpshort" for verb in VERBS]
    done = answered(code, "", "--help", "--version", "predit", *helps)
    assert done.stdout.count("such as: lsts predict in.mp4") == 2
    for verb, does in command.VERBS.items():
        assert f"{verb:12}{does}" in done.stdout
    for text in helps:
        assert f"{text!r} 1\n" in done.stdout
    assert f"lsts {lsts_tf.__version__}\n" in done.stdout
    assert "'predit' 2" in done.stdout
    assert "choose from 'predict'" in done.stderr
    assert "The sample dataset: small" in done.stdout
    assert done.stdout.endswith("loaded set()\n")


def test_help_that_nobody_reads_to_its_end():
    """As `lsts predict --help | head`."""
    reads, writes = os.pipe()
    os.close(reads)
    try:
        done = subprocess.run(
            [sys.executable, "-m", "lsts_tf", "predict", "--help"],
            cwd=pages.ROOT,
            stdout=writes,
            stderr=subprocess.PIPE,
            check=False,
            timeout=120,
        )
    finally:
        os.close(writes)
    assert done.stderr == b""


def test_predict_loads_nothing_that_it_does_not_use():
    """Keras takes them where they are, for tables and plots."""
    code = (
        "import gc, sys\n"
        "from lsts_tf import predict\n"
        "try:\n"
        "    predict._load('nowhere')\n"
        "except FileNotFoundError:\n"
        "    names = ('keras', 'matplotlib', 'pandas', 'pyarrow')\n"
        "    print({name for name in names if name in sys.modules})\n"
        "import pandas\n"
        "print(pandas.DataFrame([1]).shape, gc.isenabled())\n"
    )
    assert answered(code).stdout == "{'keras'}\n(1, 1) True\n"


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
