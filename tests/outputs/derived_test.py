"""What is derived from maps, made by `predict` in one pass."""

import json
import re

import cv2
import numpy as np
import pytest

from lsts_tf import predict
from lsts_tf.media import video
from lsts_tf.media import writer as writer_lib
from lsts_tf.outputs import attention, encoding
from tests import folders

SIZE = (96, 54)
COUNT = 40
NAMES = ("json", "roi", "encoded", "reframed", "report")
FILES = [
    *("attention.jsonl", "encoded.mp4", "prediction.json"),
    *("reframed.csv", "reframed.json", "reframed.mp4", "reframed.sendcmd"),
    *("report.html", "roi.addroi", "roi.json", "roi.npy", "roi.txt"),
    "summary.json",
]


def film(path, count):
    rng = np.random.default_rng(0)
    with writer_lib.Writer(path, fps=25, size=SIZE, pixels="gray16") as writer:
        for i in range(count):
            frame = rng.integers(0, 20_000, SIZE[::-1], np.uint16)
            cv2.circle(frame, (10 + 2 * i, 27), 9, 60_000, -1)
            writer.write(frame)
    return path


def test_the_crops_command_begins_with_the_first_map(model, tmp_path):
    """Not with the first frame of the clip, if that has none."""
    path, out = film(tmp_path / "in.mkv", 90), tmp_path / "out"
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


def test_everything_that_is_derived_comes_from_the_same_maps(model, tmp_path):
    areas = tmp_path / "areas.json"
    left = [[0, 0], [0.5, 0], [0.5, 1], [0, 1]]
    areas.write_text(json.dumps({"unit": "fractions", "areas": {"left": left}}))
    path, out = film(tmp_path / "a film.mkv", COUNT), tmp_path / "out"
    options = {"areas": str(areas), "aspect": "1:1", "strength": 12}
    damage = predict.predict(
        *(model, path, out),
        outputs=("npy", *NAMES),
        options=options | {"map_size": "model"},
        about={"model": "last", "sha256": "0123"},
    )
    assert damage == ""
    maps = np.load(out / "maps.npy")
    (out / "maps.npy").unlink()
    assert folders.listed(out) == FILES
    lines = (out / "attention.jsonl").read_text().splitlines()
    rows = [json.loads(line) for line in lines]
    assert [row["frame"] for row in rows] == list(range(COUNT))
    grids = np.load(out / "roi.npy")
    assert grids.shape == (COUNT, 4, 6)
    assert (out / "roi.txt").read_text().count(" P 0\n") == COUNT
    path = json.loads((out / "reframed.json").read_text())["path"]
    assert len(path) == COUNT
    for name, wanted in (("encoded.mp4", SIZE), ("reframed.mp4", (54, 54))):
        found = video.Video(out / name)
        assert found.size == wanted and len(list(found)) == COUNT
    blocks = encoding.Offsets(path="", fps=25, size=SIZE, strength=12)
    for i in (0, COUNT // 2, COUNT - 1):
        want = blocks.grid(maps[i])
        np.testing.assert_array_equal(grids[i], want)
        place = attention.Measurer(size=SIZE)(maps[i], 0).strongest
        assert rows[i]["strongest"] == pytest.approx(place, abs=0.006)
        assert 0 <= rows[i]["areas"]["left"] <= 1
    page = (out / "report.html").read_text("utf-8")
    assert f"{COUNT} frames" in page
    assert "<title>a film.mkv</title>" in page and "0123" in page
    assert model.note in page
    (data,) = re.findall(r'id="data">(.*?)</script>', page)
    focus = [row["focus"] for row in rows]
    np.testing.assert_allclose(json.loads(data)["focus"], focus, atol=2e-5)
