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


def test_a_mistake_of_ours_is_shown_whole():
    with pytest.raises(KeyError), program.exit_codes():
        raise KeyError("a bug")


def test_nothing_wrong_nothing_done():
    with program.exit_codes():
        pass
