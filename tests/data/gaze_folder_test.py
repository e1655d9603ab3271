"""Recordings of one's own: every frame's points, maps, and every refusal."""

import json

import numpy as np
import pytest

from tests import clip_folders

DATASET = "gaze_folder"
# (H, W).
SIZE = (36, 64)
SETTINGS = {"pixels_per_degree": 6}
# When frames are shown, in tenths of a second.
TIMES = (0, 1, 4, 5, 6)


@pytest.fixture
def film(manual):
    """Writes a film, of equally spaced frames or of others."""

    def write(name, times=TIMES):
        pictures = clip_folders.plain(SIZE, *(20 * time for time in times))
        path = manual / name
        clip_folders.write_film(path, pictures, "ffv1", "bgr0", 10, times)

    (manual / "settings.json").write_text(json.dumps(SETTINGS))
    return write


def test_points_are_where_and_when_people_looked(film, build, manual):
    """Times are those of the film, whose second frame lasts 0.3 s."""
    film("walk 007.mkv")
    (manual / "walk 007.csv").write_text(
        "time_ms,duration_ms,x,y,observer\n"
        "50,100,10,20,a\n300,110,30.4,5,b\n600,1,63,35,a\n"
    )
    settings = {"pixels_per_degree": 12, "screen": "128x72", "gaze_units": ""}
    (manual / "settings.json").write_text(json.dumps(settings))
    ((number, example),) = build()["train"].items()
    assert (number, example["name"]) == (7, b"walk 007.mkv")
    # 0.05 to 0.15 s are in two frames, 0.3 to 0.41 s too. A screen of twice
    # the size: pixels halve, and so does the degree.
    looked = [[(5, 10)], [(5, 10), (15, 2)], [(15, 2)], [], [(31, 17)]]
    assert int(example["num_frames"]) == 5
    shown = (
        clip_folders.pictures(example, name)
        for name in ("frames", "fixations", "maps")
    )
    for time, points, frame, fixated, density in zip(
        TIMES, looked, *shown, strict=True
    ):
        assert np.abs(frame.astype(int) - 20 * time).max() <= 2
        assert sorted(points) == sorted(
            (x, y) for y, x in np.argwhere(fixated).tolist()
        )
        want = clip_folders.gaussians([(y, x) for x, y in points], SIZE, 6)
        assert np.abs(density - np.floor(want + 0.5)).max() <= 1


def test_one_table_for_all_and_one_of_a_film(film, build, manual):
    for name in ("a1.mkv", "a2.mkv", "b.mkv"):
        film(name, range(3))
    (manual / "all.csv").write_text(
        "video,frame,x,y\na1.mkv,1,9,9\nb,2,9,9\n5,1,9,9\n"
    )
    (manual / "a2.csv").write_text("frame,x,y\n3,9,9\n4,9,9\n")
    found = build()["train"]
    seen = [
        [int(f.any()) for f in clip_folders.pictures(example, "fixations")]
        for example in found.values()
    ]
    # The number of b is a checksum of its name.
    assert [*found] == [1, 2, 1908338681]
    assert seen == [[1, 0, 0], [0, 0, 1], [0, 1, 0]]


@pytest.mark.parametrize(
    ("files", "words"),
    [
        ({"a.csv": None}, ["a.mkv must have one table", "none"]),
        ({"a.csv": None, "b.csv": "", "c.csv": ""}, ["b.csv.*c.csv"]),
        ({"a.csv": None, "a.mkv": None}, ["at least one film"]),
        ({"a.csv": "frame,x,y\n1,.2,.3\n"}, ["line 2: .*gaze_units"]),
        ({"a.csv": "frame,x,y\n4,9,9\n"}, ["line 2: 1 of 1 points"]),
        ({"a.csv": "frame,x,y\n1,,\n"}, ["At least one point", "none in"]),
        ({"a.csv": "time,x,y\n1,9,9\n"}, ["--time_unit"]),
        ({"settings.json": None}, ["pixels_per_degree", "no file"]),
        ({"settings.json": '{"rate": 9}'}, ["pixels_per_degree", "rate"]),
        ({"settings.json": "{"}, ["pixels_per_degree", "'{'"]),
        ({"a.mkv": "film"}, ["a.mkv"]),
        ({"a.mkv": "half"}, ["a.mkv must be a whole film"]),
        ({"b7.mkv": "", "c7.mkv": "", "all.csv": ""}, ["b7.* c7.*, both 7"]),
    ],
)
def test_refused(film, manual, refused, files, words):
    film("a.mkv", range(3))
    files = {"a.csv": "frame,x,y\n1,9,9\n"} | files
    for name, text in files.items():
        path = manual / name
        if text == "half":
            path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
        elif text is None:
            path.unlink(missing_ok=True)
        else:
            path.write_text(text)
    refused(*words)
