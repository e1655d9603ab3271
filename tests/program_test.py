from concurrent import futures
import signal

from absl import flags
import pytest

from lsts_tf import program


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
