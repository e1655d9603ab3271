import errno
import os
import pathlib
import pickle
import subprocess
import sys

import pytest

from lsts_tf.media import files
from tests import pages


def test_what_is_written_takes_the_name_at_the_end_or_never(tmp_path):
    path = tmp_path / "model.keras"
    with files.replacing(path) as temporary:
        temporary.write_bytes(b"new")
        assert not path.exists()
        assert temporary.suffix == ".keras"
        assert temporary.parent == tmp_path
    with pytest.raises(RuntimeError), files.replacing(path) as temporary:
        temporary.write_text("half")
        raise RuntimeError("the disk is full")
    assert path.read_bytes() == b"new"
    assert list(tmp_path.iterdir()) == [path]


@pytest.fixture
def synced(monkeypatch):
    """What is brought to disk, and what takes its name, as it happens."""
    done = []
    replace = pathlib.Path.replace

    def renames(path, target):
        done.append(("rename", target.name))
        return replace(path, target)

    monkeypatch.setattr(files, "sync", lambda p: done.append(("sync", p.name)))
    monkeypatch.setattr(pathlib.Path, "replace", renames)
    return done


def test_content_is_on_disk_before_the_name_and_then_the_name(tmp_path, synced):
    path = tmp_path / "metrics.jsonl"
    files.write_text(path, "Größe ≥ 1")
    assert path.read_bytes().decode("utf-8") == "Größe ≥ 1"
    assert [name for name, _ in synced] == ["sync", "rename", "sync"]
    assert synced[0][1].startswith(".metrics.")
    assert synced[2][1] == tmp_path.name
    # Many small files do not wait for the disk.
    with files.replacing(tmp_path / "0001.png") as temporary:
        temporary.write_bytes(b"map")
    assert synced[3:] == [("rename", "0001.png")]


HOLD = """
import pathlib, sys
from lsts_tf.media import files
with files.alone(pathlib.Path(sys.argv[1])):
    print("inside", flush=True)
    sys.stdin.read()
"""


def test_only_one_process_works_in_a_folder(tmp_path):
    folder = tmp_path / "run"
    with subprocess.Popen(
        [sys.executable, "-c", HOLD, str(folder)],
        cwd=pages.ROOT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as other:
        assert other.stdout.readline() == "inside\n"
        with (
            pytest.raises(RuntimeError, match=f"process {other.pid} on "),
            files.alone(folder),
        ):
            pass
        other.kill()
    # A killed one does not hold it any more.
    with files.alone(folder), files.alone(tmp_path / "other"):
        assert f"process {os.getpid()} on" in (folder / files.LOCK).read_text()
    with files.alone(folder):
        pass


def test_without_locks_there_is_a_warning(tmp_path, monkeypatch, caplog):
    def unknown(*_):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(files.fcntl, "flock", unknown)
    with files.alone(tmp_path):
        assert "No locks available" in caplog.text


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
