"""The extract program, with a front end that costs next to nothing."""

import dataclasses
import errno
import os
import pathlib
import re
import shlex
import shutil
import subprocess
import sys
import threading

import pytest
import tqdm

from lsts_tf import experiment, extract
from lsts_tf.features import beam, dataset, fill, stores
from lsts_tf.features import extractor as extractor_lib
from tests import cheap_extraction, fake_front_end, flag_scope, folders, pages

NUMBERS = (1, 2, 3, 4)


@pytest.fixture
def settings(sample_settings, tmp_path):
    return dataclasses.replace(
        sample_settings,
        store_dir=str(tmp_path / "stores"),
        train_videos="1-4",
        val_videos="501",
        test_videos="601",
    )


@pytest.fixture
def cheap(monkeypatch):
    monkeypatch.setattr(extractor_lib, "Extractor", fake_front_end.Pixels)


@pytest.fixture
def whole(settings, cheap, tmp_path):
    """What an extraction of the training videos leaves on disk."""
    folder = tmp_path / "whole"
    extract.extract(
        dataclasses.replace(settings, store_dir=str(folder)), ["train"]
    )
    return folders.files(folder)


def stored(settings):
    return folders.files(pathlib.Path(settings.store_dir))


def folder_of(settings):
    return pathlib.Path(settings.store_dir) / "dhf1k-1.0.0"


def spoil(monkeypatch, number):
    """Cut a frame of a video off, as a damaged dataset might have it."""
    original = dataset.Dataset.videos

    def videos(data, numbers):
        for video in original(data, numbers):
            jpegs = list(video.jpegs)
            if video.number == number:
                jpegs[10] = jpegs[10][:1000]
            yield dataclasses.replace(video, jpegs=tuple(jpegs))

    monkeypatch.setattr(dataset.Dataset, "videos", videos)


def run_program(settings, tmp_path, what, *numbers):
    """cheap_extraction.py in a process of its own."""
    path = tmp_path / "experiment.flags"
    settings.save(path)
    return subprocess.run(
        [sys.executable, "-m", "tests.cheap_extraction", what, path, *numbers],
        cwd=pages.ROOT,
        capture_output=True,
        text=True,
        timeout=500,
        check=False,
    )


def test_all_splits_are_stored_and_nothing_is_done_twice(
    settings, cheap, monkeypatch
):
    extract.extract(settings, extract.SPLITS)
    root = folder_of(settings)
    assert folders.numbers(root / "flow") == [*NUMBERS, 501, 601]
    # Every second window for training and validation, every one for scores.
    assert folders.numbers(root / "flow-window16") == [601]
    some = folders.numbers(root / "flow-window16-stride2-first1")
    assert some == [*NUMBERS, 501]
    before = stored(settings)

    monkeypatch.delattr(fill, "_fill_video")
    extract.extract(settings, extract.SPLITS)
    assert stored(settings) == before


@pytest.mark.parametrize("runner", extract.RUNNERS)
def test_a_damaged_video_does_not_stop_the_others(
    settings, cheap, monkeypatch, whole, runner
):
    with monkeypatch.context() as patch:
        spoil(patch, 3)
        with pytest.raises(fill.ExtractionError) as caught:
            extract.extract(settings, ["train", "val"], runner=runner)
    assert "train: 1 of 4 videos failed" in str(caught.value)
    assert "Frame 10 of video 3 cannot be decoded" in str(caught.value)
    names = stored(settings)
    assert any(n.endswith("flow/0501.npy") for n in names)
    assert any(n.endswith("flow/0004.npy") for n in names)
    assert not any("/0003.npy" in n for n in names)
    assert not any("/." in n for n in names)
    # Mended, it is all that is made.
    extract.extract(settings, ["train"])
    assert {n: stored(settings)[n] for n in whole} == whole


@pytest.mark.parametrize(
    ("code", "stops"),
    [(errno.EIO, False), (errno.EROFS, True), (errno.ENOSPC, True)],
)
def test_only_what_hits_every_video_stops_the_run(
    settings, cheap, monkeypatch, code, stops
):
    original = stores.Store.read

    def read(store, video, indices):
        if video == 2:
            raise OSError(code, os.strerror(code), "0002.npy")
        return original(store, video, indices)

    monkeypatch.setattr(stores.Store, "read", read)
    wanted = OSError if stops else fill.ExtractionError
    with pytest.raises(wanted, match=os.strerror(code)) as caught:
        extract.extract(settings, ["train"])
    done = {n for n in stored(settings) if "flow-w" in n and ".npy" in n}
    if stops:
        assert "video 2" in caught.value.__notes__[0]
    else:
        assert "1 of 4 videos failed" in str(caught.value)
        assert {pathlib.Path(n).stem for n in done} == {"0001", "0003", "0004"}


def test_the_disk_is_checked_for_all_splits_together(
    settings, cheap, monkeypatch
):
    # A video needs 19 flows of 50,184 bytes and, at stride 2, 4 features of
    # 136 bytes.
    usage = shutil.disk_usage("/")._replace(free=5 * 19 * 50_184)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage)
    with pytest.raises(OSError, match="features of 5 videos need"):
        extract.extract(settings, ["train", "val"])
    assert not any("0501" in name for name in stored(settings))


def test_workers_find_the_same(settings, whole, tmp_path):
    settings = dataclasses.replace(
        settings, val_videos="999", test_videos="999"
    )
    done = run_program(settings, tmp_path, "run", "2")
    # There is nothing to validate on.
    assert done.returncode == 1
    assert "val: Dataset" in done.stderr
    assert stored(settings) == whole


def test_training_is_extracted_in_its_views(settings, cheap):
    settings = dataclasses.replace(
        settings, streams=("rgb",), train_stride=1, flip=True, views=2
    )
    extract.extract(settings, extract.SPLITS)
    root = folder_of(settings)
    assert folders.numbers(root / "rgb-window16") == [*NUMBERS, 601]
    found = set()
    for view in ("mirrored", "view1", "view2"):
        store = root / f"rgb-window16-{view}"
        assert folders.numbers(store) == [*NUMBERS]
        found.add((store / "0002.npy").read_bytes())
    assert len(found) == 3


def test_what_is_mirrored_live_is_not_stored(settings, cheap):
    live = dataclasses.replace(settings, flip=True, features="live")
    extract.extract(live, ["train"])
    assert not any("mirrored" in name for name in stored(live))


def test_beam_finds_the_same_and_does_nothing_twice(
    settings, cheap, whole, monkeypatch
):
    monkeypatch.setattr(beam, "SHARE", 2)
    begun = []
    cheap_extraction.before_each(monkeypatch.setattr, begun.append)
    some = dataclasses.replace(settings, train_videos="2")
    extract.extract(some, ["train"], runner="beam")
    extract.extract(settings, ["train"], runner="beam")
    assert sorted(begun) == list(NUMBERS)
    assert stored(settings) == whole


@pytest.mark.slow
def test_beam_in_several_processes(settings, tmp_path, monkeypatch):
    """With I3D, and beside it in this process."""
    monkeypatch.setattr(beam, "SHARE", 1)
    settings = dataclasses.replace(
        settings, streams=("rgb",), train_stride=4, train_videos="1,2"
    )
    with monkeypatch.context() as patch:
        # It is not this process that does it.
        patch.delattr(fill, "_fill_video")
        extract.extract(
            settings,
            ["train"],
            runner="beam",
            beam_args=[
                "--direct_running_mode=multi_processing",
                "--direct_num_workers=2",
            ],
        )
    here = dataclasses.replace(settings, store_dir=str(tmp_path / "here"))
    extract.extract(here, ["train"])
    assert stored(settings) == stored(here)


def test_the_bar_moves_while_beam_works(settings, cheap, monkeypatch):
    """Each video waits until the bar has shown the one before it."""
    monkeypatch.setattr(beam, "LOOK", 0.01)
    told = threading.Semaphore(1)

    class Bar(tqdm.tqdm):
        def set_postfix_str(self, *given, **named):
            super().set_postfix_str(*given, **named)
            told.release()

    def wait(number):
        if not told.acquire(timeout=30):
            raise TimeoutError(f"Nothing was told before {number}.")

    monkeypatch.setattr(tqdm, "tqdm", Bar)
    cheap_extraction.before_each(monkeypatch.setattr, wait)
    extract.extract(settings, ["train"], runner="beam")
    assert all(
        f"dhf1k-1.0.0/flow/{n:04d}.npy" in stored(settings) for n in NUMBERS
    )


def test_what_is_damaged_is_made_again(settings, cheap, whole, caplog):
    extract.extract(settings, ["train"])
    root = folder_of(settings)
    for name in ("flow/0002.npy", "truth/0004.bin"):
        path = root / name
        path.write_bytes(path.read_bytes()[:-1])
    extract.extract(settings, ["train"])
    assert "Video 2 in the flow store" in caplog.text
    assert "Video 4 in the truth store" in caplog.text
    assert stored(settings) == whole


def test_messages_name_the_command(
    settings, cheap, tmp_path, monkeypatch, caplog
):
    """It is one that can be given as it stands; its exit code tells."""
    settings = dataclasses.replace(settings, run_dir=str(tmp_path / "a run"))
    extract.extract(settings, ["train"])
    root = folder_of(settings)
    path = root / "flow" / "manifest.json"
    text = path.read_text()
    path.write_text(text.replace('"dis"', '"another"'))
    with pytest.raises(stores.StoreError, match="made with") as refused:
        extract.extract(settings, ["train"])
    path.write_text(text)
    (found,) = re.findall(r"then run `(.+?)`", str(refused.value))
    python, option, module, *words = shlex.split(found)
    assert (python, option, module) == ("python", "-m", "lsts_tf.extract")
    define = (experiment.define_flags, extract.define_flags)
    with flag_scope.defined(*define) as values:
        values(["extract", *words, "--split=train"])
        assert experiment.from_flags(values) == settings
        extract.main([])
        values(["extract", *words, "--split=train", "--window=17"])
        spoil(monkeypatch, 3)
        with pytest.raises(SystemExit, match="1"):
            extract.main([])
    assert "video 3" in caplog.text


def test_a_worker_that_dies_is_said(settings, whole, tmp_path):
    done = run_program(settings, tmp_path, "die", "2", "3")
    assert done.returncode == 1
    assert "A worker process died" in done.stderr
    assert "run the same command again" in done.stderr
    there = stored(settings)
    assert "dhf1k-1.0.0/flow/0003.npy" not in there
    # The same command does what is missing.
    extract.extract(settings, ["train"])
    assert {n: stored(settings)[n] for n in whole} == whole


@pytest.mark.parametrize(
    ("count", "kills"), [(2, 5), pytest.param(0, 30, marks=pytest.mark.slow)]
)
def test_kills_change_nothing(settings, tmp_path, count, kills):
    """SIGKILL at random moments, for the process or one of its workers."""
    done = run_program(settings, tmp_path, "kill", str(count), str(kills))
    assert done.returncode == 0, done.stderr
    assert "all identical" in done.stdout
