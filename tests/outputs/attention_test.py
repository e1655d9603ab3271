import json
import math

from hypothesis import given
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
import numpy as np
import pytest

from lsts_tf.media import files
from lsts_tf.outputs import attention
from tests import pages

SIZE = (1280, 720)
SHAPE = (360, 640)


def gaussian(x, y, sigma, shape=SHAPE):
    """A blob; x, y, sigma in pixels of the map, continuous coordinates."""
    rows, columns = np.indices(shape) + 0.5
    squares = (columns - x) ** 2 + (rows - y) ** 2
    return np.exp(-squares / (2 * sigma**2)).astype(np.float32)


def box(left, top, right, bottom, shape=SHAPE):
    map_ = np.zeros(shape, np.float32)
    map_[top:bottom, left:right] = 0.5
    return map_


def test_regions_of_boxes():
    map_ = box(10, 20, 30, 40) + box(100, 100, 200, 140)
    large, small = attention.regions(map_, size=SIZE)
    assert large.centre == pytest.approx((300, 240))
    assert large.box == (200, 200, 400, 280)
    assert large.share == pytest.approx(4000 / 4400)
    assert large.peak == 0.5
    assert small.centre == pytest.approx((40, 60))
    assert small.box == (20, 40, 60, 80)
    assert small.share == pytest.approx(400 / 4400)


def test_a_region_of_a_gaussian_ends_at_the_fraction():
    map_ = gaussian(320, 180, 20)
    (region,) = attention.regions(map_)
    assert region.centre == pytest.approx((320, 180), abs=1e-3)
    # Half of the maximum is at sigma * sqrt(2 ln 2), and what lies inside is
    # 1 - fraction of the whole.
    radius = 20 * math.sqrt(2 * math.log(2))
    assert region.box == pytest.approx(
        (320 - radius, 180 - radius, 320 + radius, 180 + radius), abs=1
    )
    assert region.share == pytest.approx(0.5, abs=0.01)


def test_specks_are_no_regions():
    map_ = box(0, 0, 100, 100)
    map_[300, 600] = 1
    assert len(attention.regions(map_)) == 1


def test_diagonal_neighbours_are_one_region():
    map_ = box(0, 0, 4, 4, (8, 8)) + box(4, 4, 8, 8, (8, 8))
    (region,) = attention.regions(map_)
    assert region.box == (0, 0, 8, 8)


def test_place_and_spread_of_a_gaussian():
    map_ = gaussian(200, 150, 10)
    centroid, dispersion = attention.moments(map_, size=SIZE)
    assert centroid == pytest.approx((400, 300))
    # Two axes of variance sigma squared; doubled in pixels of the source.
    want = math.sqrt(2) * 20 / math.hypot(*SIZE)
    assert dispersion == pytest.approx(want, 1e-4)
    bits = math.log2(2 * math.pi * math.e * 10**2)
    want = bits / math.log2(360 * 640)
    assert attention.entropy(map_) == pytest.approx(want, 1e-4)


def test_the_strongest_point_is_the_middle_of_a_pixel():
    map_ = np.zeros((4, 8), np.float32)
    map_[2, 5] = 1
    map_[3, 0] = 1
    assert attention.strongest(map_) == (5.5, 2.5)
    assert attention.strongest(map_, size=(80, 80)) == (55, 50)


def test_a_single_pixel_and_a_uniform_map_are_the_ends_of_the_scale():
    pixel = np.zeros((6, 9), np.float32)
    pixel[1, 2] = 3
    assert attention.entropy(pixel) == pytest.approx(0, abs=1e-6)
    assert attention.moments(pixel)[1] == 0
    even = np.full((6, 9), 0.2, np.float32)
    assert attention.entropy(even) == pytest.approx(1)
    (region,) = attention.regions(even)
    assert region.box == (0, 0, 9, 6)
    assert region.share == pytest.approx(1)
    assert attention.entropy(np.ones((1, 1))) == 0


def test_a_map_of_zeros_has_no_attention():
    zeros = np.zeros((36, 64), np.float32)
    measures = attention.Measurer(
        size=SIZE, areas=[attention.Area("a", square(0, 0, 10, 10))]
    )(zeros, 0.0)
    assert measures == attention.Measures(
        time=0.0,
        regions=[],
        strongest=None,
        centroid=None,
        dispersion=None,
        entropy=None,
        focus=None,
        hot_spots=0,
        jump=None,
        areas={"a": (None, False)},
    )


@pytest.mark.parametrize(
    "map_",
    [
        np.full((4, 4), np.nan),
        np.full((4, 4), np.inf),
        np.full((4, 4), -1.0),
        np.zeros((4, 4, 1)),
        np.zeros((0, 4)),
        np.zeros((4, 4), complex),
    ],
)
def test_what_is_no_map_is_refused(map_):
    with pytest.raises(ValueError, match="A map"):
        attention.entropy(map_)


some_map = arrays.arrays(
    np.float32,
    st.tuples(st.integers(2, 12), st.integers(2, 12)),
    elements=st.sampled_from([0.0, 0.1, 0.25, 0.4, 0.7, 1.0]),
).filter(lambda map_: map_.any())


@settings(deadline=None, max_examples=60)
@given(some_map)
def test_the_scale_of_a_map_does_not_matter(map_):
    one = attention.Measurer(size=SIZE)(map_, 0)
    other = attention.Measurer(size=SIZE)(map_ * np.float32(0.125), 0)
    assert one.centroid == pytest.approx(other.centroid)
    assert one.entropy == pytest.approx(other.entropy, abs=1e-6)
    assert one.strongest == other.strongest
    assert [r.box for r in one.regions] == [r.box for r in other.regions]
    assert [r.peak for r in other.regions] == pytest.approx(
        [r.peak / 8 for r in one.regions]
    )


@settings(deadline=None, max_examples=60)
@given(some_map)
def test_a_mirrored_map_has_mirrored_places(map_):
    one = attention.Measurer(size=SIZE)(map_, 0)
    other = attention.Measurer(size=SIZE)(map_[:, ::-1], 0)
    x, y = one.centroid
    assert other.centroid == pytest.approx((SIZE[0] - x, y))
    assert other.entropy == pytest.approx(one.entropy, abs=1e-6)
    assert other.dispersion == pytest.approx(one.dispersion, abs=1e-9)
    assert other.hot_spots == one.hot_spots
    shares = sum(region.share for region in one.regions)
    assert 0 <= shares <= 1 + 1e-9
    for region in one.regions:
        left, top, right, bottom = region.box
        assert left < region.centre[0] < right
        assert top < region.centre[1] < bottom


def square(left, top, right, bottom):
    return np.array(
        [(left, top), (right, top), (right, bottom), (left, bottom)], float
    )


@pytest.mark.parametrize("turn", [0, 1])
def test_the_share_of_an_area_is_exact_for_rectangles(turn):
    even = np.ones(SHAPE, np.float32)
    corners = np.roll(square(100.5, 90.25, 420.75, 400.25), turn, axis=0)
    for polygon in (corners, corners[::-1]):
        area = attention.Area("a", polygon)
        covered = attention.coverage(area, SHAPE, SIZE)
        want = (420.75 - 100.5) * 310 / (1280 * 720)
        assert attention.share(even, covered) == pytest.approx(want, 1e-5)


def test_the_share_of_a_triangle():
    even = np.ones(SHAPE, np.float32)
    area = attention.Area("a", np.array([(0, 0), (1280, 0), (0, 720)], float))
    covered = attention.coverage(area, SHAPE, SIZE)
    assert attention.share(even, covered) == pytest.approx(0.5, abs=1e-5)
    blob = gaussian(320, 180, 15)
    assert attention.share(blob, covered) == pytest.approx(0.5, abs=1e-3)


def test_a_hole_is_even_odd_and_what_lies_outside_counts_nothing():
    star = np.concatenate([square(0, 0, 8, 8), square(2, 2, 6, 6)])
    star = np.insert(star, 4, star[0], axis=0)
    star = np.append(star, [star[5]], axis=0)
    area = attention.Area("ring", star)
    covered = attention.coverage(area, (8, 8), (8, 8))
    assert covered.sum() == pytest.approx(64 - 16)
    area = attention.Area("large", square(-100, -100, 4, 200))
    assert attention.coverage(area, (8, 8), (8, 8)).sum() == pytest.approx(32)


def test_areas_divide_the_attention():
    map_ = np.random.default_rng(0).random(SHAPE, np.float32)
    parts = [
        attention.share(
            map_,
            attention.coverage(
                attention.Area("", square(left, 0, right, 720)), SHAPE, SIZE
            ),
        )
        for left, right in ((0, 333), (333, 800.5), (800.5, 1280))
    ]
    assert sum(parts) == pytest.approx(1, abs=1e-5)


def write(path, data):
    path.write_text(data if isinstance(data, str) else json.dumps(data))
    return path


def test_areas_in_pixels_and_in_fractions_are_the_same(tmp_path):
    pixels = {"logo": [[128, 72], [640, 72], [640, 360]]}
    fractions = {"logo": [[0.1, 0.1], [0.5, 0.1], [0.5, 0.5]]}
    read = []
    for unit, areas in (("pixels", pixels), ("fractions", fractions)):
        path = write(tmp_path / unit, {"unit": unit, "areas": areas})
        (area,) = attention.read_areas(path, SIZE)
        assert area.name == "logo"
        read.append(area.polygon)
    np.testing.assert_allclose(*read)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ("{", "not JSON"),
        ([], "areas are"),
        ({"areas": {}}, "unit"),
        ({"unit": "pixels", "areas": {}}, "no area"),
        ({"unit": "pixels", "areas": {"a": [[1, 2], [3, 4]]}}, "'a'"),
        ({"unit": "pixels", "areas": {"a": [[1, 2], [3], [4, 5]]}}, "'a'"),
        ({"unit": "pixels", "areas": {"a": [[1, 2], "x", [4, 5]]}}, "'a'"),
        (
            {"unit": "pixels", "areas": {"a": [[-9, 0], [-1, 0], [-1, 9]]}},
            "covers nothing",
        ),
    ],
)
def test_what_are_no_areas_is_refused(tmp_path, data, message):
    path = write(tmp_path / "areas.json", data)
    with pytest.raises(files.FileError, match=message):
        attention.read_areas(path, SIZE)


def test_areas_may_be_a_file(tmp_path):
    corners = square(0, 0, 1, 1).tolist()
    path = write(
        tmp_path / "areas.json", {"unit": "fractions", "areas": {"a": corners}}
    )
    with attention.JsonLines(
        path=tmp_path / "a.jsonl", fps=25, size=SIZE, areas=str(path)
    ) as output:
        output.write(np.zeros((720, 1280, 3), np.uint8), box(0, 0, 9, 9), 0)
    line = json.loads((tmp_path / "a.jsonl").read_text())
    assert line["areas"] == {"a": 1.0}


def test_a_missing_file_of_areas_is_refused(tmp_path):
    with pytest.raises(files.FileError, match="cannot be read"):
        attention.read_areas(tmp_path / "none.json", SIZE)


def test_jumps_are_in_diagonals():
    measure = attention.Measurer(size=SIZE)
    first = measure(gaussian(20.5, 30.5, 5), 0.0)
    assert first.jump is None
    second = measure(gaussian(320.5, 130.5, 5), 0.04)
    want = math.hypot(600, 200) / math.hypot(*SIZE)
    assert second.jump == pytest.approx(want)
    assert measure(np.zeros(SHAPE), 0.08).jump is None
    assert measure(gaussian(320.5, 130.5, 5), 0.12).jump is None


def path_of(points, fps=10.0):
    path = attention.GazePath(fps=fps, size=SIZE)
    for i, point in enumerate(points):
        path.add(i / fps, point)
    return [(round(s.start, 3), round(s.end, 3), s.place) for s in path.stops]


def test_a_gaze_path_has_a_stop_for_each_place():
    here, there = (100.0, 100.0), (900.0, 500.0)
    assert path_of([here] * 5 + [there] * 3) == [
        (0.0, 0.5, here),
        (0.5, 0.8, there),
    ]
    assert path_of([]) == []
    assert path_of([None, here, None, here]) == [(0.1, 0.4, here)]


def test_a_short_excursion_is_no_stop():
    here, there = (100.0, 100.0), (900.0, 500.0)
    points = [here] * 4 + [there] * 2 + [here] * 4
    assert path_of(points, fps=30.0) == [(0.0, round(10 / 30, 3), here)]


def test_small_moves_are_the_same_stop():
    points = [(100.0 + x, 100.0) for x in (0, 50, -50, 30)]
    ((_, _, place),) = path_of(points)
    assert place == pytest.approx((107.5, 100))


def summarised(maps, fps, areas=()):
    measure = attention.Measurer(size=SIZE, areas=areas)
    summary = attention.Summary(fps=fps, size=SIZE, areas=areas)
    rows = [measure(map_, i / fps) for i, map_ in enumerate(maps)]
    for row in rows:
        summary.add(row)
    return rows, summary.result()


def test_a_summary_averages_the_clip_and_its_ends():
    maps = [gaussian(10 * i + 5, 100, 3 + i % 7) for i in range(60)]
    areas = [attention.Area("left", square(0, 0, 640, 720))]
    rows, result = summarised(maps, 12.0, areas)
    focus = np.array([row.focus for row in rows])
    assert result["frames"] == 60
    assert result["mean"]["focus"] == pytest.approx(focus.mean(), abs=1e-5)
    assert result["first_2_seconds"]["focus"] == pytest.approx(
        focus[:24].mean(), abs=1e-5
    )
    assert result["last_2_seconds"]["focus"] == pytest.approx(
        focus[-24:].mean(), abs=1e-5
    )
    assert result["focus_consistency"] == pytest.approx(
        1 - focus.std() / focus.mean(), abs=1e-5
    )
    shares = np.array([row.areas["left"][0] for row in rows])
    assert result["areas"]["left"]["mean_share"] == pytest.approx(
        shares.mean(), abs=1e-5
    )
    assert result["first_2_seconds"]["areas"]["left"] > 0.9
    assert result["last_2_seconds"]["areas"]["left"] < 0.1
    assert result["areas"]["left"]["share_of_frame"] == 0.5
    assert result["areas"]["left"]["strongest_inside"] == pytest.approx(
        32 / 60, abs=1e-5
    )
    assert result["large_jumps"] == 0


def test_large_jumps_are_counted_and_a_constant_focus_is_consistent():
    maps = [gaussian(50.5, 50.5, 8), gaussian(600.5, 300.5, 8)] * 4
    _, result = summarised(maps, 10.0)
    assert result["large_jumps"] == 7
    assert result["focus_consistency"] == pytest.approx(1, abs=1e-3)


def test_a_summary_of_nothing_and_of_zeros():
    _, nothing = summarised([], 25.0)
    assert nothing["frames"] == 0
    assert nothing["mean"]["focus"] is None
    assert nothing["focus_consistency"] is None
    _, zeros = summarised([np.zeros((4, 4))] * 3, 25.0)
    assert zeros["mean"]["hot_spots"] == 0
    assert zeros["mean"]["focus"] is None
    assert zeros["gaze_path"] == []


def strict(text):
    def refuse(word):
        raise AssertionError(word)

    return json.loads(text, parse_constant=refuse)


def test_json_lines(tmp_path):
    frame = np.zeros((720, 1280, 3), np.uint8)
    maps = [gaussian(100, 100, 9), np.zeros(SHAPE, np.float32), box(5, 5, 9, 9)]
    path = tmp_path / "attention.jsonl"
    left = {"a b": square(0, 0, 640, 720).tolist()}
    areas = write(tmp_path / "areas", {"unit": "pixels", "areas": left})
    with attention.JsonLines(
        path=path,
        fps=25,
        size=SIZE,
        note="random »weights«",
        areas=str(areas),
    ) as output:
        for i, map_ in enumerate(maps):
            output.write(frame, map_, i / 25)
        assert not path.exists()
    first, second, third = map(strict, path.read_text().splitlines())
    assert set(first) == {
        *("frame", "time", "regions", "strongest", "centroid", "dispersion"),
        *("entropy", "focus", "hot_spots", "jump", "areas"),
    }
    assert first["regions"][0]["centre"] == pytest.approx([200, 200], abs=0.1)
    assert first["areas"] == {"a b": 1.0}
    assert second["regions"] == [] and second["focus"] is None
    assert (third["frame"], third["time"]) == (2, 0.08)
    summary = strict((tmp_path / "summary.json").read_text())
    assert summary["note"] == "random »weights«"
    assert summary["frames"] == 3
    assert sorted(p.name for p in tmp_path.iterdir()) == [
        "areas",
        "attention.jsonl",
        "summary.json",
    ]


def test_no_lines_appear_after_an_error(tmp_path):
    path = tmp_path / "attention.jsonl"
    path.write_text("what was")
    with (
        pytest.raises(RuntimeError, match="stop"),
        attention.JsonLines(path=path, fps=25, size=SIZE) as output,
    ):
        output.write(np.zeros((720, 1280, 3), np.uint8), box(0, 0, 9, 9), 0)
        raise RuntimeError("stop")
    assert [p.name for p in tmp_path.iterdir()] == ["attention.jsonl"]
    assert path.read_text() == "what was"


def test_only_so_many_regions_are_written(tmp_path):
    map_ = sum(box(60 * i, 0, 60 * i + 20 + i, 40) for i in range(6))
    with attention.JsonLines(
        path=tmp_path / "a.jsonl", fps=25, size=SIZE, regions=2
    ) as output:
        output.write(np.zeros((720, 1280, 3), np.uint8), map_, 0)
    (line,) = (tmp_path / "a.jsonl").read_text().splitlines()
    line = strict(line)
    assert len(line["regions"]) == 2 and line["hot_spots"] == 6


def test_the_page(tmp_path):
    """Its code runs, its line is one of ours, its areas can be read."""
    (found,) = pages.run_python("attention.md")
    assert found["measure"](found["map_"], 0.04).jump == 0
    (page,) = (p for p in pages.PAGES if p.name == "attention.md")
    line, areas = map(json.loads, pages.blocks(page)[1:])
    path = write(tmp_path / "areas.json", areas)
    read = attention.read_areas(path, SIZE)
    assert [area.name for area in read] == ["logo", "face"]
    measure = attention.Measurer(size=SIZE, areas=read[:1])
    ours = attention.to_record(0, measure(box(10, 20, 30, 40), 0.0), 3)
    assert line.keys() == ours.keys()
    assert line["areas"].keys() == ours["areas"].keys()
    assert line["regions"][0].keys() == ours["regions"][0].keys()
    text = pages.prose(page)
    for key in ours:
        assert f"`{key}`" in text
