import pytest

from lsts_tf.media import sink
from tests.media import video_test


class Words(sink.Sink):
    """Three files of text, which wait in buffers until they close."""

    finished = 0

    def open(self):
        self.texts = [
            self.text(self.path.with_name(name))
            for name in ("a.txt", "b.txt", "c.txt")
        ]

    def finish(self):
        self.finished += 1
        for text in self.texts:
            text.write("few words" if text is not self.texts[1] else 99 * "-")


def listed(folder):
    return sorted(path.name for path in folder.iterdir())


def test_all_files_appear_at_the_end(tmp_path):
    with Words(path=tmp_path / "a", fps=25, size=(4, 4)) as output:
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
        Words(path=tmp_path / "a", fps=25, size=(4, 4)) as output,
    ):
        if early:
            output.complete()
    assert listed(tmp_path) == ["c.txt"]
    assert (tmp_path / "c.txt").read_text() == "before"


def test_the_first_error_is_the_one_that_is_seen(tmp_path):
    with (
        pytest.raises(KeyError),
        video_test.limited(50),
        Words(path=tmp_path / "a", fps=25, size=(4, 4)) as output,
    ):
        output.texts[0].write(99 * "-")
        raise KeyError("something else went wrong")
    assert listed(tmp_path) == []
