"""What all outputs have in common, and each of them by its name."""

import contextlib
import dataclasses
import math
import os
import resource
import shutil
import subprocess

from absl import flags
import numpy as np
import pytest

from lsts_tf import option
from lsts_tf.media import files
from lsts_tf.outputs import run, sink
from tests import folders

# Odd, which only H.264 does not take.
SIZE = (65, 37)


@contextlib.contextmanager
def limited(size):
    """No file may grow larger: what a full disk is to a program."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


class Words(sink.Sink):
    """Three files of text, which wait in buffers until they close."""

    BESIDE = ("b.txt", "c.txt")
    finished = 0

    speed: float = option.field(1.0, "How fast", least=0, most=2)
    voice: str = option.field("low", "How high", choices=("low", "high"))

    def _open(self):
        self.texts = [self.text(path) for path in self.paths()]

    def _finish(self):
        self.finished += 1
        for text in self.texts:
            text.write("few words" if text is not self.texts[1] else 99 * "-")


def words(folder, **options):
    return Words(path=folder / "a.txt", fps=25, size=(4, 4), **options)


def test_all_files_appear_at_the_end(tmp_path):
    with words(tmp_path) as output:
        assert all(name.startswith(".") for name in folders.listed(tmp_path))
        output.complete()
        assert all(text.closed for text in output.texts)
        assert all(name.startswith(".") for name in folders.listed(tmp_path))
    assert output.finished == 1
    assert folders.listed(tmp_path) == ["a.txt", "b.txt", "c.txt"]
    assert (tmp_path / "b.txt").read_text() == 99 * "-"


def test_what_a_killed_process_left_is_removed(tmp_path):
    with subprocess.Popen(["true"]) as ended:
        pass
    parts = [f".a.txt.{pid}.part" for pid in (ended.pid, os.getppid())]
    for name in (*parts, ".a.txt.x.part", ".b.txt.part"):
        (tmp_path / name).mkdir()
    with Words(path=tmp_path / "a.txt", fps=25, size=(4, 4)):
        pass
    left = [".a.txt.x.part", parts[1], ".b.txt.part"]
    assert folders.listed(tmp_path) == sorted(
        [*left, "a.txt", "b.txt", "c.txt"]
    )


def test_the_first_error_is_the_one_that_is_seen(tmp_path):
    with (
        pytest.raises(KeyError),
        limited(50),
        words(tmp_path) as output,
    ):
        output.texts[0].write(99 * "-")
        raise KeyError("something else went wrong")
    assert folders.listed(tmp_path) == []


def test_a_signal_while_it_tidies_up_leaves_nothing(tmp_path, monkeypatch):
    remove = shutil.rmtree

    def interrupted(path):
        monkeypatch.setattr(shutil, "rmtree", remove)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt), words(tmp_path):
        monkeypatch.setattr(shutil, "rmtree", interrupted)
    assert folders.listed(tmp_path) == ["a.txt", "b.txt", "c.txt"]


def test_options_are_flags_and_out_of_range_refused(tmp_path):
    for options, rule in (
        ({"speed": 3}, "--speed must be .* at least 0, at most 2. Received: 3"),
        ({"speed": math.nan}, "--speed .*Received: nan"),
        ({"voice": "none"}, "--voice must be one of low, high. Received: 'no"),
    ):
        with pytest.raises(ValueError, match=rule):
            words(tmp_path, **options)
    values = flags.FlagValues()
    option.define_flags(option.of(Words, Words), values)
    values(["program", "--speed=0.5"])
    assert (values.speed, values.voice) == (0.5, "low")
    for wrong in ("--voice=none", "--speed=3"):
        with pytest.raises(flags.IllegalFlagValueError):
            values(["program", wrong])


@pytest.mark.parametrize("inside", [True, False])
def test_errors_name_the_file_that_was_to_be(tmp_path, inside):
    output = words(tmp_path)
    with pytest.raises(OSError, match="full") as error, output:
        name = str(output.hidden(output.paths()[1])) if inside else None
        with output.naming():
            raise OSError(28, "full", name)
    want = "b.txt" if inside else "a.txt"
    assert error.value.filename == str(tmp_path / want)
    output = words(tmp_path / "no")
    with pytest.raises(files.FileError, match="no such folder"), output:
        pass


# === Every output ===

every_kind = pytest.mark.parametrize(
    "name", [name for name, kind in run.KINDS.items() if kind.file]
)


def made(name, folder, **options):
    kind = run.KINDS[name]
    path = folder / kind.file.format(video="a film")
    return kind.make(path=path, fps=25, size=SIZE, **kind.fixed, **options)


def write(output, count=3):
    """Frames that compress badly."""
    rng = np.random.default_rng(0)
    for number in range(count):
        frame = rng.integers(0, 256, (*SIZE[::-1], 3), np.uint8)
        output.write(frame, rng.random((18, 32), np.float32), number / 25)


@every_kind
def test_an_error_leaves_what_was_there(name, tmp_path):
    with made(name, tmp_path) as output:
        write(output)
    before = folders.contents(tmp_path)
    with pytest.raises(KeyError), made(name, tmp_path) as output:
        write(output, 2)
        raise KeyError("something else went wrong")
    assert folders.contents(tmp_path) == before


@every_kind
def test_what_is_not_an_output_stays(name, tmp_path):
    output = made(name, tmp_path)
    path = output.paths()[-1]
    if run.KINDS[name].make is run.KINDS["png8"].make:
        path.write_text("a letter")
    else:
        path.mkdir()
    with (
        pytest.raises(files.FileError, match="of that name; choose another"),
        output,
    ):
        pass
    assert folders.listed(tmp_path) == [path.name]


@every_kind
def test_its_files_and_no_others(name, tmp_path, monkeypatch):
    """`run` refuses what would take the place of one of them.

    FFmpeg would take what stands before a colon for a protocol.
    """
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "run:1"
    folder.mkdir()
    with made(name, folder.relative_to(tmp_path)) as output:
        write(output)
        assert all(name.startswith(".") for name in folders.listed(folder))
    assert folders.listed(folder) == sorted(
        path.name for path in output.paths()
    )
    path = tmp_path / f"2024-01-01T10:00:00{output.path.suffix}"
    with dataclasses.replace(output, path=path.name) as output:
        write(output)
    assert path.exists()


@every_kind
def test_a_full_disk(name, tmp_path):
    """A file that may not grow larger, while frames come and at the end."""
    for count in (120, 400):
        with (
            pytest.raises((OSError, ValueError), match="File too large") as e,
            limited(1_000),
            made(name, tmp_path) as output,
        ):
            write(output, count)
            output.complete()
        assert folders.listed(tmp_path) == []
        known = [*output.paths(), tmp_path / "overlay.mp4"]
        assert any(str(path) in str(e.value) for path in known)
