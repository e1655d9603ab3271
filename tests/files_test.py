import pathlib
import pickle

import pytest

from lsts_tf import files


def test_what_is_written_takes_the_name_at_the_end(tmp_path):
    path = tmp_path / "model.keras"
    with files.replacing(path) as temporary:
        temporary.write_bytes(b"new")
        assert not path.exists()
        assert temporary.suffix == ".keras"
        assert temporary.parent == tmp_path
    assert path.read_bytes() == b"new"
    assert list(tmp_path.iterdir()) == [path]


def test_what_fails_leaves_the_old_file_and_nothing_else(tmp_path):
    path = tmp_path / "scores.json"
    files.write_text(path, "old")
    with pytest.raises(RuntimeError), files.replacing(path) as temporary:
        temporary.write_text("half")
        raise RuntimeError("the disk is full")
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_text_is_utf_8(tmp_path):
    path = tmp_path / "naïve.txt"
    files.write_text(path, "Größe ≥ 1\n")
    assert path.read_bytes().decode("utf-8") == "Größe ≥ 1\n"


def test_an_error_of_the_system_says_of_which_file_it_is(tmp_path):
    full = pytest.raises(OSError, match=r"No space left: 'maps\.npy'$")
    with full, files.naming("maps.npy"):
        raise OSError(28, "No space left")
    with pytest.raises(OSError, match=r"absent'$"), files.naming("maps.npy"):
        (tmp_path / "absent").read_bytes()


def test_an_error_names_its_file_also_from_another_process():
    error = pickle.loads(
        pickle.dumps(files.FileError("a/b.png", "no picture."))
    )
    assert str(error) == "a/b.png: no picture."
    assert error.path == pathlib.Path("a/b.png")
    assert error.reason == "no picture."
