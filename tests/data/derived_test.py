"""What is derived from maps, made by `predict` in one pass."""

import html
import json
import re

import cv2
import numpy as np
import pytest

from lsts_tf import predict
from lsts_tf.media import sources
from lsts_tf.media import video
from lsts_tf.media import writer as writer_lib
from lsts_tf.outputs import attention
from lsts_tf.outputs import encoding
from tests import cheap_prediction

SIZE = (96, 54)
COUNT = 40
NAMES = ("json", "roi", "encoded", "reframed", "report")
FILES = [
    *("attention.jsonl", "encoded.mp4", "prediction.json"),
    *("reframed.csv", "reframed.json", "reframed.mp4", "reframed.sendcmd"),
    *("report.html", "roi.addroi", "roi.json", "roi.npy", "roi.txt"),
    "summary.json",
]


@pytest.fixture(scope="module")
def model():
    return cheap_prediction.predictor()


def film(path, count, size=SIZE):
    rng = np.random.default_rng(0)
    width, height = size
    with writer_lib.Writer(path, fps=25, size=size) as writer:
        for i in range(count):
            frame = rng.integers(0, 80, (height, width, 3), np.uint8)
            cv2.circle(frame, (10 + 2 * i, 27), 9, (250, 200, 10), -1)
            writer.write(frame)
    return path


def listed(folder):
    return sorted(path.name for path in folder.iterdir())


def assert_whole(out, count, size, crop):
    assert listed(out) == FILES
    lines = (out / "attention.jsonl").read_text().splitlines()
    frames = [json.loads(line)["frame"] for line in lines]
    assert frames == list(range(count))
    width, height = size
    grid = -(-height // 16), -(-width // 16)
    assert np.load(out / "roi.npy").shape == (count, *grid)
    assert (out / "roi.txt").read_text().count(" P 0\n") == count
    path = json.loads((out / "reframed.json").read_text())["path"]
    assert len(path) == count
    even = width + width % 2, height + height % 2
    for name, wanted in (("encoded.mp4", even), ("reframed.mp4", crop)):
        found = video.Video(out / name)
        assert found.size == wanted
        assert len(list(found)) == count
    assert f"{count} frames" in (out / "report.html").read_text("utf-8")
    record = json.loads((out / "prediction.json").read_text("utf-8"))
    assert record["frames"] == count


@pytest.mark.parametrize("count", [1, 79])
def test_a_clip_of_one_frame_and_of_one_window(model, tmp_path, count):
    path, out = film(tmp_path / "in.mp4", count), tmp_path / "out"
    assert predict.predict(model, path, out, outputs=NAMES) == ""
    assert_whole(out, count, SIZE, (30, 54))


def test_an_odd_size(model, tmp_path):
    size = 67, 35
    path = tmp_path / "odd.mkv"
    with writer_lib.Writer(path, fps=25, size=size, pixels="gray16") as writer:
        for level in (0, 30_000, 65_535):
            picture = np.full(size[::-1], level, np.uint16)
            picture[9:20, 40:50] = 20_000
            writer.write(picture)
    out = tmp_path / "out"
    assert predict.predict(model, path, out, outputs=NAMES) == ""
    assert_whole(out, 3, size, (20, 34))


def test_of_a_truncated_clip_all_that_came(model, tmp_path):
    path, out = tmp_path / "in.avi", tmp_path / "out"
    rng = np.random.default_rng(0)
    fourcc = cv2.VideoWriter.fourcc(*"MJPG")
    writer = cv2.VideoWriter(str(path), fourcc, 25, SIZE)
    for _ in range(120):
        writer.write(rng.integers(0, 256, (*SIZE[::-1], 3), np.uint8))
    writer.release()
    data = path.read_bytes()
    path.write_bytes(data[: len(data) * 3 // 4])
    damage = predict.predict(model, path, out, outputs=NAMES)
    count = len(list(sources.File(path)))
    assert 79 < count < 119
    assert f"read {count} of 120 frames" in damage
    assert f"from frame {count}" in damage
    page = html.unescape((out / "report.html").read_text("utf-8"))
    assert f"The clip is cut off or damaged: {damage}" in page
    assert_whole(out, count, SIZE, (30, 54))


class Stopped(sources.File):
    """Ctrl-C when a frame is read."""

    def __iter__(self):
        for number, timed in enumerate(super().__iter__()):
            if number == 100:
                raise KeyboardInterrupt
            yield timed


def test_an_interrupt_leaves_nothing(model, tmp_path):
    path, out = film(tmp_path / "in.mp4", 120), tmp_path / "out"
    with pytest.raises(KeyboardInterrupt):
        predict.predict(model, Stopped(path), out, outputs=NAMES)
    assert listed(out) == []


def test_a_pixel_cannot_be_reframed(model, tmp_path):
    path, out = tmp_path / "in.mkv", tmp_path / "out"
    with writer_lib.Writer(
        path, fps=25, size=(1, 1), pixels="gray16"
    ) as writer:
        writer.write(np.zeros((1, 1), np.uint16))
    with pytest.raises(
        ValueError, match=r"at least 2 x 2 pixels. Received: 1 x 1"
    ):
        predict.predict(model, path, out, outputs=NAMES)
    assert not out.exists()
    wanted = [name for name in NAMES if name != "reframed"]
    assert predict.predict(model, path, out, outputs=wanted) == ""
    assert len(list(video.Video(out / "encoded.mp4"))) == 1


def test_the_crop_knows_where_the_clip_begins(model, tmp_path):
    path, out = film(tmp_path / "in.mp4", 30), tmp_path / "out"
    predict.predict(model, path, out, outputs=["reframed"], start="0.8")
    about = json.loads((out / "reframed.json").read_text())
    assert about["start"] == {"frame": 20, "seconds": pytest.approx(0.8)}
    assert about["path"][0]["time"] == 0
    commands = (out / "reframed.sendcmd").read_text()
    assert "trim=start_frame=20,setpts=PTS-STARTPTS" in commands


def test_the_crops_command_begins_with_the_first_map(model, tmp_path):
    """Not with the first frame of the clip, if that has none."""
    path, out = film(tmp_path / "in.mp4", 90), tmp_path / "out"
    predict.predict(
        model, path, out, outputs=["reframed"], start="5f", first_frames="skip"
    )
    about = json.loads((out / "reframed.json").read_text())
    assert about["frames"] == len(list(video.frames(out / "reframed.mp4"))) == 7
    assert about["start"] == {"frame": 5, "seconds": pytest.approx(0.2)}
    assert about["first_map"] == 78
    assert about["path"][0]["time"] == pytest.approx(78 / 25)
    commands = (out / "reframed.sendcmd").read_text()
    assert "trim=start_frame=83,setpts=PTS-STARTPTS" in commands


def test_everything_that_is_derived_comes_from_the_same_maps(tmp_path):
    source = tmp_path / "a film.mp4"
    with writer_lib.Writer(source, fps=25, size=SIZE) as writer:
        for i in range(COUNT):
            frame = np.full((54, 96, 3), 60, np.uint8)
            cv2.circle(frame, (10 + 2 * i, 27), 9, (250, 200, 10), -1)
            writer.write(frame)
    areas = tmp_path / "areas.json"
    left = [[0, 0], [0.5, 0], [0.5, 1], [0, 1]]
    areas.write_text(json.dumps({"unit": "fractions", "areas": {"left": left}}))
    out = tmp_path / "out"
    predictor = cheap_prediction.predictor()
    damage = predict.predict(
        predictor,
        source,
        out,
        outputs=("npy", "json", "roi", "encoded", "reframed", "report"),
        options={
            "areas": str(areas),
            "aspect": "1:1",
            "strength": 12,
            "map_size": "model",
        },
        about={"model": "last", "sha256": "0123"},
    )
    assert damage == ""
    assert sorted(p.name for p in out.iterdir() if p.name[0] != ".") == [
        *("attention.jsonl", "encoded.mp4", "maps.npy", "prediction.json"),
        *("reframed.csv", "reframed.json", "reframed.mp4", "reframed.sendcmd"),
        *("report.html", "roi.addroi", "roi.json", "roi.npy", "roi.txt"),
        "summary.json",
    ]
    maps = np.load(out / "maps.npy")
    grids = np.load(out / "roi.npy")
    lines = (out / "attention.jsonl").read_text().splitlines()
    rows = [json.loads(line) for line in lines]
    assert len(maps) == len(grids) == len(rows) == COUNT
    blocks = encoding.Offsets(path="", fps=25, size=SIZE, strength=12)
    for i in (0, COUNT // 2, COUNT - 1):
        want = blocks.grid(maps[i])
        np.testing.assert_array_equal(grids[i], want)
        place = attention.Measurer(size=SIZE)(maps[i], 0).strongest
        assert rows[i]["strongest"] == pytest.approx(place, abs=0.006)
        assert 0 <= rows[i]["areas"]["left"] <= 1
    for name, size in (("encoded.mp4", SIZE), ("reframed.mp4", (54, 54))):
        film = video.Video(out / name)
        assert film.size == size and film.fps == pytest.approx(25)
        assert len(list(film)) == COUNT
    page = (out / "report.html").read_text("utf-8")
    assert "<title>a film.mp4</title>" in page and "0123" in page
    assert predictor.note in page
    (data,) = re.findall(r'id="data">(.*?)</script>', page)
    focus = [row["focus"] for row in rows]
    np.testing.assert_allclose(json.loads(data)["focus"], focus, atol=2e-5)
