"""What is derived from maps, made by `predict` in one pass."""

import json
import re

import cv2
import numpy as np
import pytest

from lsts_tf import attention
from lsts_tf import encoding
from lsts_tf import predict
from lsts_tf import video
from tests import cheap_prediction

SIZE = (96, 54)
COUNT = 40


def test_everything_that_is_derived_comes_from_the_same_maps(tmp_path):
    source = tmp_path / "a film.mp4"
    with video.Writer(source, fps=25, size=SIZE) as writer:
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
        options=predict.Options(
            areas=str(areas), aspect="1:1", strength=12, map_size="model"
        ),
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
    for i in (0, COUNT // 2, COUNT - 1):
        want = encoding.offsets(maps[i], size=SIZE, strength=12)
        np.testing.assert_array_equal(grids[i], want)
        place = attention.strongest(maps[i], size=SIZE)
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
