import json
import math

from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
import numpy as np
import pytest

from lsts_tf.media import files
from lsts_tf.outputs import attention
from tests import pages
from tests.outputs import clips
from tests.outputs.clips import blob as gaussian

SIZE = (1280, 720)
SHAPE = (360, 640)
FRAME = np.zeros((720, 1280, 3), np.uint8)


def measured(map_, size=SIZE, **kwargs):
    return attention.Measurer(size=size, **kwargs)(map_, 0.0)


def box(left, top, right, bottom, shape=SHAPE):
    map_ = np.zeros(shape, np.float32)
    map_[top:bottom, left:right] = 0.5
    return map_


# === One frame ===


def test_regions_of_boxes():
    """A speck is none."""
    map_ = box(10, 20, 30, 40) + box(100, 100, 200, 140)
    map_[300, 600] = 0.5
    close = pytest.approx
    assert measured(map_).regions == [
        (close((300, 240)), (200, 200, 400, 280), close(4000 / 4401), 0.5),
        (close((40, 60)), (20, 40, 60, 80), close(400 / 4401), 0.5),
    ]
    # Diagonal neighbours are one.
    map_ = box(0, 0, 4, 4, (8, 8)) + box(4, 4, 8, 8, (8, 8))
    (region,) = measured(map_, (8, 8)).regions
    assert region.box == (0, 0, 8, 8)


def test_a_gaussian():
    found = measured(gaussian(200, 150, 10))
    assert found.centroid == pytest.approx((400, 300))
    # Two axes of variance sigma squared; doubled in pixels of the source.
    want = math.sqrt(2) * 20 / math.hypot(*SIZE)
    assert found.dispersion == pytest.approx(want, 1e-4)
    bits = math.log2(2 * math.pi * math.e * 10**2)
    assert found.entropy == pytest.approx(bits / math.log2(360 * 640), 1e-4)
    assert found.focus == 1 - found.entropy
    # Half of the maximum is at sigma * sqrt(2 ln 2), and what lies inside is
    # 1 - fraction of the whole.
    (region,) = found.regions
    radius = 20 * math.sqrt(2 * math.log(2))
    assert region.centre == pytest.approx((400, 300), abs=2e-3)
    want = (400 - radius, 300 - radius, 400 + radius, 300 + radius)
    assert region.box == pytest.approx(want, abs=2)
    assert region.share == pytest.approx(0.5, abs=0.02)


def test_a_single_pixel_and_a_uniform_map_are_the_ends_of_the_scale():
    pixel = np.zeros((6, 9), np.float32)
    pixel[1, 2] = 3
    found = measured(pixel, (9, 6))
    assert found.entropy == pytest.approx(0, abs=1e-6)
    assert found.dispersion == 0
    pixel[2, 1] = 3
    # The middle of the first one in reading order.
    assert measured(pixel, (90, 60)).strongest == (25, 15)
    even = measured(np.full((6, 9), 0.2, np.float32), (9, 6))
    assert even.entropy == pytest.approx(1)
    (region,) = even.regions
    assert region.box == (0, 0, 9, 6)
    assert region.share == pytest.approx(1)
    assert measured(np.ones((1, 1))).entropy == 0
    areas = {"a": square(0, 0, 10, 10)}
    found = measured(np.zeros((36, 64), np.float32), areas=areas)
    assert found == attention.Measures(0.0, areas={"a": (None, False)})


@pytest.mark.parametrize(
    "map_",
    [
        *(np.full((4, 4), value) for value in (np.nan, np.inf, -1.0, 0j)),
        *(np.zeros((4, 4, 1)), np.zeros((0, 4))),
    ],
)
def test_what_is_no_map_is_refused(map_):
    with pytest.raises(ValueError, match="A map"):
        measured(map_)


@settings(deadline=None, max_examples=60)
@given(
    arrays.arrays(
        np.float32,
        st.tuples(st.integers(2, 12), st.integers(2, 12)),
        elements=st.sampled_from([0.0, 0.1, 0.25, 0.4, 0.7, 1.0]),
    ).filter(lambda map_: map_.any())
)
def test_scale_and_mirror(map_):
    """The scale of a map does not matter; a mirrored one has mirrored places"""
    one = measured(map_)
    scaled = measured(map_ * np.float32(0.125))
    assert scaled.centroid == pytest.approx(one.centroid)
    assert scaled.entropy == pytest.approx(one.entropy, abs=1e-6)
    assert scaled.strongest == one.strongest
    assert [r.box for r in scaled.regions] == [r.box for r in one.regions]
    for weak, region in zip(scaled.regions, one.regions, strict=True):
        assert weak.peak == pytest.approx(region.peak / 8)
        left, top, right, bottom = region.box
        assert left < region.centre[0] < right
        assert top < region.centre[1] < bottom
    assert sum(region.share for region in one.regions) <= 1 + 1e-9
    mirrored = measured(map_[:, ::-1])
    x, y = one.centroid
    assert mirrored.centroid == pytest.approx((SIZE[0] - x, y))
    assert mirrored.entropy == pytest.approx(one.entropy, abs=1e-6)
    assert mirrored.dispersion == pytest.approx(one.dispersion, abs=1e-9)
    assert mirrored.hot_spots == one.hot_spots


def test_jumps_are_in_diagonals():
    measure = attention.Measurer(size=SIZE)
    assert measure(gaussian(20.5, 30.5, 5), 0.0).jump is None
    want = math.hypot(600, 200) / math.hypot(*SIZE)
    second = measure(gaussian(320.5, 130.5, 5), 0.04)
    assert second.jump == pytest.approx(want)
    assert measure(np.zeros(SHAPE), 0.08).jump is None
    assert measure(gaussian(320.5, 130.5, 5), 0.12).jump is None


# === Areas ===


def square(left, top, right, bottom):
    return np.array(
        [(left, top), (right, top), (right, bottom), (left, bottom)], float
    )


def share(map_, polygon):
    return measured(map_, areas={"a": polygon}).areas["a"][0]


@pytest.mark.parametrize("turn", [0, 1])
def test_the_share_of_an_area_is_exact_for_rectangles(turn):
    even = np.ones(SHAPE, np.float32)
    corners = np.roll(square(100.5, 90.25, 420.75, 400.25), turn, axis=0)
    want = (420.75 - 100.5) * 310 / (1280 * 720)
    for polygon in (corners, corners[::-1]):
        assert share(even, polygon) == pytest.approx(want, 1e-5)


def test_shares_of_a_triangle_of_a_hole_and_of_what_lies_outside():
    """A hole is even-odd, and what lies outside counts nothing."""
    corners = np.array([(0, 0), (1280, 0), (0, 720)], float)
    even = share(np.ones(SHAPE, np.float32), corners)
    assert even == pytest.approx(0.5, abs=1e-5)
    blob = share(gaussian(320, 180, 15), corners)
    assert blob == pytest.approx(0.5, abs=1e-3)
    star = np.concatenate([square(0, 0, 8, 8), square(2, 2, 6, 6)])
    star = np.insert(star, 4, star[0], axis=0)
    star = np.append(star, [star[5]], axis=0)
    for polygon, want in ((star, 64 - 16), (square(-100, -100, 4, 200), 32)):
        covered = attention.coverage(polygon, (8, 8), (8, 8))
        assert covered.sum() == pytest.approx(want)


def write(path, data):
    path.write_text(data if isinstance(data, str) else json.dumps(data))
    return path


def test_areas_in_pixels_and_in_fractions_are_the_same(tmp_path):
    read = []
    for unit, corners in (
        ("pixels", [[128, 72], [640, 72], [640, 360]]),
        ("fractions", [[0.1, 0.1], [0.5, 0.1], [0.5, 0.5]]),
    ):
        data = {"unit": unit, "areas": {"logo": corners}}
        path = write(tmp_path / unit, data)
        read.append(attention.read_areas(path, SIZE)["logo"])
    np.testing.assert_allclose(*read)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ("{", "not JSON"),
        ([], "areas are"),
        ({"areas": {}}, "unit"),
        ({"unit": "pixels", "areas": {}}, "one area or more"),
        *(
            ({"unit": "pixels", "areas": {"a": corners}}, message)
            for corners, message in (
                ([[1, 2], [3, 4]], "'a'"),
                ([[1], [3], [4]], "'a'"),
                ([[1, 2], [3], [4, 5]], "'a'"),
                ([[1, 2], "x", [4, 5]], "'a'"),
                ([[-9, 0], [-1, 0], [-1, 9]], "covers nothing"),
            )
        ),
    ],
)
def test_what_are_no_areas_is_refused(tmp_path, data, message):
    path = tmp_path / "areas.json"
    with pytest.raises(FileNotFoundError, match=path.name):
        attention.read_areas(path, SIZE)
    write(path, data)
    with pytest.raises(files.FileError, match=message):
        attention.read_areas(path, SIZE)


# === A clip ===


def path_of(points, fps=10.0):
    timed = [(i / fps, point) for i, point in enumerate(points)]
    stops = attention.gaze_path(timed, fps=fps, size=SIZE)
    return [(round(s.start, 3), round(s.end, 3), s.place) for s in stops]


def test_a_gaze_path_has_a_stop_for_each_place():
    """A short excursion is none, nor is a small move."""
    here, there = (100.0, 100.0), (900.0, 500.0)
    assert path_of([here] * 5 + [there] * 3) == [
        (0.0, 0.5, here),
        (0.5, 0.8, there),
    ]
    assert path_of([]) == []
    assert path_of([None, here, None, here]) == [(0.1, 0.4, here)]
    excursion = [here] * 4 + [there] * 2 + [here] * 4
    assert path_of(excursion, fps=30.0) == [(0.0, round(10 / 30, 3), here)]
    ((*_, place),) = path_of([(100.0 + x, 100.0) for x in (0, 50, -50, 30)])
    assert place == pytest.approx((107.5, 100))


def summarised(maps, fps, **areas):
    measure = attention.Measurer(size=SIZE, fps=fps, areas=areas)
    rows = [measure(map_, i / fps) for i, map_ in enumerate(maps)]
    return rows, measure.summary()


def test_a_summary_averages_the_clip_and_its_ends():
    maps = [gaussian(10 * i + 5, 100, 3 + i % 7) for i in range(60)]
    rows, result = summarised(maps, 12.0, left=square(0, 0, 640, 720))
    focus = np.array([row.focus for row in rows])
    assert result["frames"] == 60
    ends = ("mean", "first_2_seconds", "last_2_seconds")
    found = [result[part]["focus"] for part in ends]
    want = [focus.mean(), focus[:24].mean(), focus[-24:].mean()]
    assert found == pytest.approx(want, abs=1e-5)
    want = 1 - focus.std() / focus.mean()
    assert result["focus_consistency"] == pytest.approx(want, abs=1e-5)
    shares = np.array([row.areas["left"][0] for row in rows])
    left = result["areas"]["left"]
    assert left["mean_share"] == pytest.approx(shares.mean(), abs=1e-5)
    assert result["first_2_seconds"]["areas"]["left"] > 0.9
    assert result["last_2_seconds"]["areas"]["left"] < 0.1
    assert left["share_of_frame"] == 0.5
    assert left["strongest_inside"] == pytest.approx(32 / 60, abs=1e-5)
    assert result["large_jumps"] == 0


def test_summaries_of_jumps_of_nothing_and_of_zeros():
    maps = [gaussian(50.5, 50.5, 8), gaussian(600.5, 300.5, 8)] * 4
    _, result = summarised(maps, 10.0)
    assert result["large_jumps"] == 7
    assert result["focus_consistency"] == pytest.approx(1, abs=1e-3)
    _, nothing = summarised([], 25.0)
    _, zeros = summarised([np.zeros((4, 4))] * 3, 25.0)
    for found in (nothing, zeros):
        assert found["mean"]["focus"] is found["focus_consistency"] is None
        assert found["gaze_path"] == []
    assert nothing["frames"] == 0 and zeros["mean"]["hot_spots"] == 0


def strict(text):
    def refuse(word):
        raise AssertionError(word)

    return json.loads(text, parse_constant=refuse)


def json_lines(path, maps, areas, **how):
    clip, how = ((FRAME, map_) for map_ in maps), {"areas": str(areas)} | how
    clips.written(attention.JsonLines, path, clip, size=SIZE, **how)


def test_json_lines(tmp_path):
    many = sum(box(60 * i, 0, 60 * i + 20 + i, 40) for i in range(6))
    maps = [gaussian(100, 100, 9), np.zeros(SHAPE, np.float32), many]
    path = tmp_path / "attention.jsonl"
    left = {"a b": square(0, 0, 640, 720).tolist()}
    areas = write(tmp_path / "areas", {"unit": "pixels", "areas": left})
    json_lines(path, maps, areas, note="random »weights«", regions=2)
    first, second, third = map(strict, path.read_text().splitlines())
    assert first["regions"][0]["centre"] == pytest.approx([200, 200], abs=0.1)
    assert first["areas"] == {"a b": 1.0}
    assert second["regions"] == [] and second["focus"] is None
    assert second["areas"] == {"a b": None}
    assert (third["frame"], third["time"]) == (2, 0.08)
    assert len(third["regions"]) == 2 and third["hot_spots"] == 6
    summary = strict((tmp_path / "summary.json").read_text())
    assert summary["note"] == "random »weights«"
    assert summary["frames"] == 3


def test_the_page(tmp_path):
    """Its code runs, its line is one of ours, its areas can be read."""
    (found,) = pages.run_python("attention.md")
    assert found["measure"](found["map_"], 0.04).jump == 0
    (page,) = (p for p in pages.PAGES if p.name == "attention.md")
    line, areas = map(json.loads, pages.blocks(page)[1:])
    path = write(tmp_path / "areas.json", areas)
    read = attention.read_areas(path, SIZE)
    assert [*read] == ["logo", "face"]
    json_lines(tmp_path / "a.jsonl", [box(10, 20, 30, 40)], path)
    ours = strict((tmp_path / "a.jsonl").read_text())
    assert line.keys() == ours.keys()
    assert ours["areas"].keys() == {"logo", "face"}
    assert line["regions"][0].keys() == ours["regions"][0].keys()
    text = pages.prose(page)
    for key in ours:
        assert f"`{key}`" in text
