"""A folder of films, and the films that challenges take."""

import json
import os

import av
import cv2
import numpy as np
import pytest

from lsts_tf import experiment, predict
from lsts_tf import predictor as predictor_lib
from lsts_tf.media import video as video_lib
from lsts_tf.outputs import films, run
from tests import cheap_prediction, flag_scope, msu_folders

COUNTS = {"b 1.mp4": 5, "a.mp4": 3, "upright.MP4": 4}


@pytest.fixture(scope="module")
def model():
    return cheap_prediction.predictor()


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
        with flag_scope.defined(
            experiment.define_flags, predict.define_flags
        ) as values:
            out = f"--output={tmp_path / 'out'}"
            rest = values(["predict", out, *map(str, arguments)])
            try:
                predict.main(rest)
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
        record = json.loads((out / predict.RECORD).read_text())
        assert record["frames"] == 2


def test_a_damaged_film_among_others(program, folder, tmp_path, caplog):
    (folder / "a.mp4").write_bytes(b"no film")
    code = program(f"--video={folder}", "--outputs=msu")
    assert code == predict.INCOMPLETE
    assert "a.mp4" in caplog.text
    shown = sorted(p.name for p in (tmp_path / "out").glob("*.mp4"))
    assert shown == ["b 1.mp4", "upright.mp4"]


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


def test_folders_of_pictures_are_clips(folder):
    assert films.found([str(folder), str(folder)]) == []
    assert films.found([str(folder / "a.mp4")]) == []
    (folder / "0001.png").touch()
    assert films.found([str(folder)]) == []


def test_films_of_one_name(model, folder):
    (folder / "a.mp4").rename(folder / "b 1.avi")
    paths = films.found([str(folder)])
    with pytest.raises(ValueError, match="two of b 1"):
        films.predict(model, paths, folder / "out", outputs=["msu"])
