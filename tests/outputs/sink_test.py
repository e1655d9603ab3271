import dataclasses
import math

from absl import flags
import pytest

from lsts_tf.outputs import sink
from tests.media import video_test


@dataclasses.dataclass(kw_only=True)
class Words(sink.Sink):
    """Three files of text, which wait in buffers until they close."""

    BESIDE = ("b.txt", "c.txt")
    finished = 0

    speed: float = sink.option(1.0, "How fast", least=0, most=2)
    voice: str = sink.option("low", "How high", choices=("low", "high"))

    def open(self):
        self.texts = [self.text(path) for path in self.paths()]

    def finish(self):
        self.finished += 1
        for text in self.texts:
            text.write("few words" if text is not self.texts[1] else 99 * "-")


def listed(folder):
    return sorted(path.name for path in folder.iterdir())


def test_all_files_appear_at_the_end(tmp_path):
    with Words(path=tmp_path / "a.txt", fps=25, size=(4, 4)) as output:
        assert all(name.startswith(".") for name in listed(tmp_path))
        output.complete()
        assert all(text.closed for text in output.texts)
        assert all(name.startswith(".") for name in listed(tmp_path))
    assert output.finished == 1
    assert listed(tmp_path) == ["a.txt", "b.txt", "c.txt"]
    assert (tmp_path / "b.txt").read_text() == 99 * "-"


@pytest.mark.parametrize("early", [True, False])
def test_no_file_appears_if_one_cannot_be_flushed(tmp_path, early):
    (tmp_path / "c.txt").write_text("before")
    with (
        pytest.raises(OSError, match="File too large"),
        video_test.limited(50),
        Words(path=tmp_path / "a.txt", fps=25, size=(4, 4)) as output,
    ):
        if early:
            output.complete()
    assert listed(tmp_path) == ["c.txt"]
    assert (tmp_path / "c.txt").read_text() == "before"


def test_the_first_error_is_the_one_that_is_seen(tmp_path):
    with (
        pytest.raises(KeyError),
        video_test.limited(50),
        Words(path=tmp_path / "a.txt", fps=25, size=(4, 4)) as output,
    ):
        output.texts[0].write(99 * "-")
        raise KeyError("something else went wrong")
    assert listed(tmp_path) == []


@pytest.mark.parametrize(
    ("options", "rule"),
    [
        ({"speed": 3}, "`speed` is a number from 0 to 2. Received: speed=3"),
        ({"speed": math.nan}, "Received: speed=nan"),
        ({"voice": "none"}, "`voice` is one of low, high. Received: voice='n"),
    ],
)
def test_options_out_of_range_are_refused(tmp_path, options, rule):
    with pytest.raises(ValueError, match=rule):
        Words(path=tmp_path / "a.txt", fps=25, size=(4, 4), **options)


def test_options_are_flags():
    values = flags.FlagValues()
    sink.define_flags([Words, Words], values)
    values(["program", "--speed=0.5"])
    assert (values.speed, values.voice) == (0.5, "low")
    with pytest.raises(flags.IllegalFlagValueError):
        values(["program", "--voice=none"])


@pytest.mark.parametrize("inside", [True, False])
def test_errors_name_the_file_that_was_to_be(tmp_path, inside):
    output = Words(path=tmp_path / "a.txt", fps=25, size=(4, 4))
    with pytest.raises(OSError, match="full") as error, output:
        name = str(output.hidden(output.paths()[1])) if inside else None
        with output.naming():
            raise OSError(28, "full", name)
    want = "b.txt" if inside else "a.txt"
    assert error.value.filename == str(tmp_path / want)
