"""A folder of films, and the films that challenges take."""

import json
import os
import signal
import subprocess
import sys
import time

from absl import flags
import av
import cv2
import numpy as np
import pytest

from lsts_tf import predict
from lsts_tf import predictor as predictor_lib
from lsts_tf import program as program_lib
from lsts_tf.media import video as video_lib
from lsts_tf.outputs import films, run
from tests import (
    cheap_extraction,
    cheap_prediction,
    flag_scope,
    msu_folders,
    pages,
    predict_test,
)

COUNTS = {"b 1.mp4": 5, "a.mp4": 3, "upright.MP4": 4}


@pytest.fixture
def folder(tmp_path):
    folder = tmp_path / "films"
    for k, (name, count) in enumerate(COUNTS.items()):
        size = msu_folders.UPRIGHT if k == 2 else msu_folders.SIZE
        path = (folder / name).with_suffix(".mp4")
        msu_folders.film(path, msu_folders.clip(k, count, size)[0], fps=25)
        path.rename(folder / name)
    (folder / ".DS_Store").touch()
    (folder / "about.txt").touch()
    return folder


@pytest.fixture
def program(model, monkeypatch, tmp_path):
    """The program with the cheap model; returns its exit code."""
    monkeypatch.setattr(predictor_lib.Predictor, "load", lambda *_, **__: model)

    def start(*arguments):
        try:
            flag_scope.run(predict, f"--output={tmp_path / 'out'}", *arguments)
        except SystemExit as end:
            return end.code
        return 0

    return start


@pytest.fixture
def predicted(monkeypatch):
    """Names of the films that were predicted."""
    names, original = [], run.predict

    def noted(model, source, *args, **kwargs):
        names.append(os.path.basename(source.name))  # noqa: PTH119
        return original(model, source, *args, **kwargs)

    monkeypatch.setattr(run, "predict", noted)
    return names


def test_submissions_of_a_folder(program, folder, tmp_path, model):
    assert program(f"--video={folder}", "--outputs=msu") == 0
    out = tmp_path / "out"
    shown = sorted(p.name for p in out.iterdir() if p.name[0] != ".")
    assert shown == ["a.mp4", "b 1.mp4", "upright.mp4"]
    for name, count in COUNTS.items():
        source = folder / name
        maps = list(model.maps(video_lib.frames(source)))
        with av.open(str((out / name).with_suffix(".mp4"))) as film:
            stream = film.streams.video[0]
            assert stream.frames == count and stream.average_rate == 25
            size = stream.width, stream.height
            assert size == video_lib.Video(source).size
            levels = [f.to_ndarray(format="gray16le") for f in film.decode()]
            assert stream.codec_context.format.components[0].bits == 10
        for map_, level in zip(maps, levels, strict=True):
            large = cv2.resize(map_, size)
            want = (large - large.min()) / np.ptp(large)
            # The codec loses some levels of the 1,023.
            np.testing.assert_allclose(level / 65535, want, atol=0.02)
            assert np.abs(level / 65535 - want).mean() < 0.003


def test_what_is_done_is_not_done_again(program, folder, tmp_path, predicted):
    arguments = f"--video={folder}", "--outputs=msu"
    assert program(*arguments) == 0
    assert predicted == ["a.mp4", "b 1.mp4", "upright.MP4"]
    predicted.clear()
    assert program(*arguments) == 0
    assert predicted == []
    # Another film, a missing output, another setting.
    (tmp_path / "out" / "a.mp4").unlink()
    later = os.stat(folder / "b 1.mp4").st_mtime + 1000  # noqa: PTH116
    os.utime(folder / "b 1.mp4", (later, later))
    assert program(*arguments) == 0
    assert predicted == ["a.mp4", "b 1.mp4"]
    predicted.clear()
    assert program(*arguments, "--first_frames=mirror") == 0
    assert len(predicted) == 3


def test_other_outputs_have_a_folder_for_each_film(program, folder, tmp_path):
    assert program(f"--video={folder}", "--outputs=npy,msu", "--end=2f") == 0
    for name in COUNTS:
        stem = name[:-4]
        out = tmp_path / "out" / stem
        assert len(np.load(out / "maps.npy")) == 2
        assert (out / f"{stem}.mp4").is_file()
        record = json.loads((out / run.RECORD).read_text())
        assert record["frames"] == 2


def empty_film(path):
    """A film without any frame."""
    with av.open(str(path), "w") as film:
        stream = film.add_stream("mpeg4", rate=25)
        stream.width, stream.height = msu_folders.SIZE
        stream.pix_fmt = "yuv420p"
        film.start_encoding()


def test_films_that_cannot_be_read_among_others(
    program, folder, tmp_path, caplog
):
    (folder / "a.mp4").write_bytes(b"no film")
    (folder / "none.mp4").touch()
    empty_film(folder / "still.mp4")
    (folder / "gone.mp4").symlink_to(folder / "nowhere.mp4")
    code = program(f"--video={folder}", "--outputs=msu")
    assert code == predict.INCOMPLETE
    for name in ("a", "none", "still", "gone"):
        assert f"{folder / name}.mp4: " in caplog.messages[-1]
    shown = sorted(p.name for p in (tmp_path / "out").glob("*.mp4"))
    assert shown == ["b 1.mp4", "upright.mp4"]


def test_a_film_that_is_too_short_among_others(
    program, folder, tmp_path, caplog
):
    msu_folders.film(folder / "long.mp4", msu_folders.clip(0, 80)[0])
    arguments = f"--video={folder}", "--outputs=npy", "--first_frames=copy"
    assert program(*arguments) == predict.INCOMPLETE
    assert f"{folder / 'a.mp4'}: --first_frames=copy" in caplog.messages[-1]
    assert len(np.load(tmp_path / "out" / "long" / "maps.npy")) == 80
    # As nothing was written of any.
    (folder / "long.mp4").unlink()
    assert program(*arguments) == program_lib.FAILED
    assert "b 1.mp4: --first_frames=copy" in caplog.messages[-1]


def test_another_process_is_at_a_film(program, folder, tmp_path, predicted):
    """It comes last, once the other process has ended without it."""
    out = tmp_path / "out"
    code = (
        "import pathlib, sys, time\n"
        "from lsts_tf.media import files\n"
        "out = pathlib.Path(sys.argv[1])\n"
        "with files.claimed(out, 'a') as is_ours:\n"
        "    print(is_ours, flush=True)\n"
        "    while not (out / 'upright.mp4').exists():\n"
        "        time.sleep(0.01)\n"
    )
    with subprocess.Popen(
        [sys.executable, "-c", code, out],
        cwd=pages.ROOT,
        stdout=subprocess.PIPE,
        text=True,
    ) as other:
        assert other.stdout.readline() == "True\n"
        assert program(f"--video={folder}", "--outputs=msu") == 0
    assert predicted == ["b 1.mp4", "upright.MP4", "a.mp4"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--outputs=msu", "--report=x.html"], "A folder of films needs"),
        (["--outputs=msu,stdout"], "A folder of films needs"),
        (["--outputs=msu", "--every=2"], "a map for each frame"),
    ],
)
def test_refusals(program, folder, arguments, message, caplog, monkeypatch):
    monkeypatch.setattr(predict.pictures, "claim_stdout", lambda: None)
    assert program(f"--video={folder}", *arguments) == 1
    assert message in caplog.text


def test_several_processes_need_several_films(program, folder, caplog):
    assert program(f"--video={folder / 'a.mp4'}", "--workers=2") == 1
    assert "Received: --workers=2" in caplog.messages[-1]
    for path in folder.glob("*.[mM]*4"):
        if path.name != "a.mp4":
            path.unlink()
    caplog.clear()
    assert program(f"--video={folder}", "--workers=2") == 1
    assert "--workers needs a folder of several films" in caplog.messages[-1]
    with pytest.raises(flags.IllegalFlagValueError, match="workers"):
        program(f"--video={folder}", "--workers=0")


def test_folders_of_pictures_are_clips(folder):
    assert films.found([str(folder), str(folder)]) == []
    assert films.found([str(folder / "a.mp4")]) == []
    (folder / "0001.png").touch()
    assert films.found([str(folder)]) == []


def test_films_of_one_name(model, folder):
    (folder / "a.mp4").rename(folder / "b 1.avi")
    paths = films.found([str(folder)])
    with pytest.raises(ValueError, match="two named b 1"):
        films.predict(lambda: model, paths, folder / "out", outputs=["msu"])
    # DHF1K gives numbers four digits.
    (folder / "b 1.mp4").rename(folder / "7.mp4")
    (folder / "b 1.avi").rename(folder / "007.mp4")
    paths = films.found([str(folder)])
    with pytest.raises(ValueError, match="two named 0007"):
        films.predict(lambda: model, paths, folder / "out", outputs=["dhf1k"])


# === Several processes ===

SETTINGS = {
    "options": {},
    "about": {"model": "last"},
    "first_frames": "repeat",
    "start": "",
    "end": "",
    "every": 1,
}


def test_a_process_that_dies_takes_one_film_along(folder, tmp_path, predicted):
    paths, out = films.found([str(folder)]), tmp_path / "out"
    damage = films.predict(
        cheap_prediction.deadly,
        paths,
        out,
        outputs=["dhf1k"],
        workers=2,
        **SETTINGS,
    )
    assert damage.startswith(f"{folder / 'upright.MP4'}: the process that")
    assert "\n" not in damage
    assert len(list(out.glob("*/*.png"))) == COUNTS["a.mp4"] + COUNTS["b 1.mp4"]
    load = cheap_prediction.predictor
    assert not films.predict(load, paths, out, outputs=["dhf1k"], **SETTINGS)
    assert predicted == ["upright.MP4"]
    assert len(list(out.glob("*/*.png"))) == sum(COUNTS.values())


@pytest.fixture
def long_films(tmp_path):
    """Of some seconds each, one of them upright; and a damaged one."""
    folder = tmp_path / "films"
    for number in range(8):
        size = msu_folders.UPRIGHT if number == 5 else msu_folders.SIZE
        pictures = msu_folders.clip(number, 5, size)[0]
        frames = [pictures[k * k % 5] for k in range(400 + 40 * number)]
        msu_folders.film(folder / f"{number}.mp4", frames)
    (folder / "no.mp4").write_bytes(b"no film")
    return folder


def content(folder):
    """Levels of all films, uint16; None for records, which hold times."""
    found = {}
    for path in folder.iterdir():
        found[path.name] = None
        if path.suffix == ".mp4":
            with av.open(str(path)) as film:
                frames = [
                    f.to_ndarray(format="gray16le") for f in film.decode()
                ]
            found[path.name] = np.stack(frames)
    return found


@pytest.mark.parametrize(
    "number",
    [signal.SIGTERM, pytest.param(signal.SIGKILL, marks=pytest.mark.slow)],
)
def test_ended_in_the_middle_it_goes_on(long_films, tmp_path, number):
    whole, out = tmp_path / "whole", tmp_path / "out"
    paths = films.found([str(long_films)])
    load = cheap_prediction.predictor
    films.predict(load, paths, whole, outputs=["msu"], **SETTINGS)

    def begun(done):
        """The program, when so many films are done and another is begun."""
        process = predict_test.begun(
            tmp_path, "msu", f"--video={long_films}", "--workers=2", text=True
        )
        while len(list(out.glob("*.mp4"))) < done or not any(
            out.glob(".*.part")
        ):
            assert process.poll() is None, process.stderr.read()
            time.sleep(0.002)
        return process

    process = begun(1)
    below = cheap_extraction.children(process.pid)
    assert len(below) >= 2
    process.send_signal(number)
    message = process.communicate()[1]
    while not all(map(cheap_extraction.gone, below)):
        time.sleep(0.01)
    left = len(list(out.glob("*.mp4")))
    assert 1 <= left < 8
    if number == signal.SIGTERM:
        assert process.returncode == program_lib.TERMINATED, message
        assert "The same command resumes or starts over." in message
        assert "Traceback" not in message
        assert not any(out.glob(".*.part"))
    else:
        assert any(out.glob(".*.part"))

    process = begun(left)
    message = process.communicate()[1]
    assert process.returncode == predict.INCOMPLETE, message
    assert f"{long_films / 'no.mp4'}: " in message
    found, want = content(out), content(whole)
    assert found.keys() == want.keys()
    for name, levels in want.items():
        if levels is not None:
            # The codec does not always give the same bytes.
            np.testing.assert_allclose(
                found[name], levels, atol=1 / 100 * 65535
            )
