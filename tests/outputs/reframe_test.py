import csv
import itertools
import json
import subprocess

from hypothesis import given, settings
from hypothesis import strategies as st
import numpy as np
import pytest

from lsts_tf.media import video
from lsts_tf.media import writer as writer_lib
from lsts_tf.outputs import reframe
from tests.outputs import clips

SIZE = (320, 180)


def spot(x):
    """Attention at a part of the width."""
    return clips.blob(64 * x, 18, 2.0, (36, 64))


def ramp(size=SIZE, colour=(1, 1, 1)):
    """A frame whose brightness says how far from the left it is."""
    width, height = size
    line = np.linspace(16, 235, width)
    frame = np.broadcast_to(line[:, None] * colour, (height, width, 3))
    return np.ascontiguousarray(frame.astype(np.uint8))


def test_aspects():
    texts = ("9:16", "1:1", " 4 / 5 ", "0.8", "2x1")
    found = [reframe.read_aspect(text) for text in texts]
    assert found == pytest.approx([9 / 16, 1, 0.8, 0.8, 2])
    for text in ("", "9:0", "a:b", "-1:1", "1:2:3", "nan"):
        with pytest.raises(ValueError, match="9:16"):
            reframe.read_aspect(text)


def test_crop_sizes():
    for size, aspect, want in (
        ((1920, 1080), 9 / 16, (608, 1080)),
        ((1920, 1080), 1, (1080, 1080)),
        ((1080, 1920), 1, (1080, 1080)),
        ((1080, 1920), 16 / 9, (1080, 608)),
        ((641, 361), 16 / 9, (640, 360)),
        ((100, 100), 1000, (100, 2)),
        ((2, 2), 9 / 16, (2, 2)),
    ):
        assert reframe.crop_size(size, aspect) == want
    with pytest.raises(ValueError, match="2 x 2"):
        reframe.crop_size((1, 1), 1)


@settings(deadline=None)
@given(
    st.tuples(st.integers(2, 4000), st.integers(2, 4000)),
    st.floats(0.05, 20),
)
def test_a_crop_is_even_and_fits(size, aspect):
    width, height = reframe.crop_size(size, aspect)
    assert width % 2 == height % 2 == 0
    assert 2 <= width <= size[0] and 2 <= height <= size[1]
    assert width >= size[0] - 1 or height >= size[1] - 1


@pytest.mark.parametrize("axis", [0, 1])
def test_what_a_crop_keeps(axis):
    map_ = np.random.default_rng(0).random((9, 16))
    size, crop = ((160, 90), (50, 90)) if axis == 0 else ((160, 90), (160, 30))
    fine = map_.repeat(10, axis=0).repeat(10, axis=1)
    positions = np.arange(0, size[axis] - crop[axis] + 1, 2)
    got = reframe.kept(map_, size=size, crop=crop, positions=positions)
    for share, at in zip(got, positions, strict=True):
        part = fine[:, at : at + 50] if axis == 0 else fine[at : at + 30]
        assert share == pytest.approx(part.sum() / fine.sum())
    got = reframe.kept(0 * map_, size=size, crop=crop, positions=positions)
    assert got is None


def path_of(costs, *, move_cost, lookahead=10**6, ease=0.0):
    path = reframe.Path(
        positions=np.arange(costs.shape[1]) * 2.0,
        move_cost=move_cost,
        lookahead=lookahead,
        ease=ease,
    )
    found = [x for cost in costs for x in path.add(cost)]
    return np.array([*found, *path.end()])


def price(costs, places, move_cost):
    own = sum(cost[place] for cost, place in zip(costs, places, strict=True))
    return own + move_cost * 2 * np.abs(np.diff(places)).sum()


@settings(deadline=None, max_examples=40)
@given(st.integers(0, 10**6), st.floats(0, 0.6))
def test_a_path_is_the_cheapest(seed, move_cost):
    costs = np.random.default_rng(seed).random((5, 4))
    places = (path_of(costs, move_cost=move_cost) / 2).astype(int)
    cheapest = min(
        price(costs, p, move_cost)
        for p in itertools.product(range(4), repeat=5)
    )
    assert price(costs, places, move_cost) == pytest.approx(cheapest)


def test_a_bounded_lookahead_finds_the_same_path():
    rng = np.random.default_rng(0)
    target = np.repeat([20, 60, 35, 90], 50)
    costs = np.abs(np.arange(100) - target[:, None]) / 100
    costs += 0.05 * rng.random(costs.shape)
    whole = path_of(costs, move_cost=0.05)
    np.testing.assert_array_equal(
        path_of(costs, move_cost=0.05, lookahead=40), whole
    )


def test_positions_come_with_a_bounded_delay():
    path = reframe.Path(
        positions=np.arange(9.0), move_cost=0.1, lookahead=7, ease=1.0
    )
    given_back = 0
    for i in range(50):
        given_back += len(list(path.add(np.ones(9))))
        assert given_back == max(0, i + 1 - 7 - 3)
    assert given_back + len(list(path.end())) == 50
    assert not list(path.end())


def about_of(path):
    return json.loads(path.with_suffix(".json").read_text())


def test_a_crop_rests_while_moving_does_not_pay():
    wobble = 50 + np.round(3 * np.sin(np.arange(100))).astype(int)
    costs = np.abs(np.arange(100) - wobble[:, None]) / 1000
    assert np.ptp(path_of(costs, move_cost=0.1)) == 0
    assert np.ptp(path_of(costs, move_cost=0.0001)) > 0


def test_moves_are_eased_and_ends_stand_still():
    costs = np.ones((60, 50))
    costs[:30, 5] = costs[30:, 45] = 0
    hard = path_of(costs, move_cost=0.001)
    assert set(np.diff(hard)) == {0, 80}
    soft = path_of(costs, move_cost=0.001, ease=4.0)
    assert len(soft) == 60
    assert soft[0] == pytest.approx(10) and soft[-1] == pytest.approx(90)
    assert (np.diff(soft) >= -1e-9).all() and np.diff(soft).max() < 10
    # The middle of the move is where it was.
    assert (soft[29] + soft[30]) / 2 == pytest.approx(50)


def reframed(folder, clip, **how):
    path, how = folder / "reframed.mp4", {"size": SIZE} | how
    return clips.written(reframe.Reframe, path, clip, **how)


def assert_left_edges(crops, x, size=SIZE):
    """Crops of `ramp` begin at x."""
    edges = []
    for frame in crops:
        grey = frame[..., 1].mean(axis=0)
        middle = (grey.mean() - 16) * (size[0] - 1) / 219
        edges.append(middle - (len(grey) - 1) / 2)
    # Rounding of the colours moves all of them alike.
    apart = np.array(edges) - x
    assert len(edges) == len(x)
    assert abs(np.median(apart)) < 2
    assert np.abs(apart - np.median(apart)).max() < 1.2


def test_the_clip_follows_attention(tmp_path):
    where = [0.2] * 40 + [0.8] * 60
    clip = [(ramp(), spot(x)) for x in where]
    path = reframed(tmp_path, clip, aspect="9:16")
    about = about_of(path)
    assert about["frames"] == 100 and about["crop"] == [102, 180]
    x = np.array([row["x"] for row in about["path"]])
    assert [row["frame"] for row in about["path"]] == list(range(100))
    assert (x % 2 == 0).all() and x.min() >= 0 and x.max() <= 218
    kept = np.array([row["kept"] for row in about["path"]])
    # The move takes place around frame 40, in 46 frames.
    assert kept[:17].min() > 0.99 and kept[63:].min() > 0.99
    assert about["mean_kept"] == pytest.approx(kept.mean(), abs=1e-4)
    assert about["cuts"] == []
    assert 0 < np.diff(x).max() < 40
    opened = video.Video(path)
    assert opened.size == (102, 180) and opened.fps == 25
    assert_left_edges(video.frames(path), x)
    with path.with_suffix(".csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [int(row["x"]) for row in rows] == x.tolist()
    assert [float(row["kept"]) for row in rows] == kept.tolist()


def test_a_cut_resets_the_crop_at_its_frame(tmp_path):
    """And what moves is no cut."""
    red, blue = ramp(colour=(1, 0.2, 0.1)), ramp(colour=(0.1, 0.2, 1))
    moved = np.roll(red, 40, axis=1)
    clip = [(red, spot(0.1))] * 10 + [(moved, spot(0.1))] * 10
    clip += [(blue, spot(0.9))] * 20 + [(red, spot(0.9))]
    about = about_of(reframed(tmp_path, clip, aspect="9:16"))
    assert about["cuts"] == [20, 40]
    x = [row["x"] for row in about["path"]]
    assert len(set(x[:20])) == len(set(x[20:])) == 1
    assert x[19] < 20 and x[20] > 190


def test_a_tall_crop_of_a_tall_clip_moves_up_and_down(tmp_path):
    size = (90, 160)
    map_ = np.zeros((16, 9), np.float32)
    map_[12:] = 1
    frame = np.zeros((160, 90, 3), np.uint8)
    clip = [(frame, map_)] * 3
    about = about_of(reframed(tmp_path, clip, size=size, aspect="1:1"))
    assert about["crop"] == [90, 90]
    assert [(row["x"], row["y"]) for row in about["path"]] == [(0, 70)] * 3


@pytest.mark.parametrize("frames", [1, 2])
@pytest.mark.parametrize("aspect", ["9:16", "16:9", "1:1"])
def test_short_and_odd_clips_without_attention(tmp_path, frames, aspect):
    size = (63, 35)
    clip = [(ramp(size), np.zeros((9, 16), np.float32))] * frames
    path = reframed(tmp_path, clip, size=size, aspect=aspect)
    about = about_of(path)
    assert about["frames"] == frames and about["mean_kept"] is None
    assert len(list(video.frames(path))) == frames
    room = size[0] - about["crop"][0]
    for row in about["path"]:
        assert row["kept"] is None
        assert abs(row["x"] - room / 2) <= 2 and row["y"] == 0


@pytest.mark.parametrize(
    ("start", "first", "fps"), [(0, 0, 25), (30, 0, 25), (10, 20, 30000 / 1001)]
)
def test_the_command_in_the_file_works(tmp_path, ffmpeg, start, first, fps):
    """Also for a clip that begins later, and one whose first frames lack."""
    source = tmp_path / "in.mp4"
    with writer_lib.Writer(source, fps=fps, size=SIZE) as writer:
        for _ in range(start + first + 50):
            writer.write(ramp())
    where = np.linspace(0.2, 0.8, 50)
    clip = [(ramp(), spot(x)) for x in where]
    how = {"start": (start, start / fps), "fps": fps, "first": first}
    how["begin"] = first / fps
    path = reframed(tmp_path, clip, stiffness=0.01, **how)
    line = path.with_suffix(".sendcmd").read_text().splitlines()[0]
    command = line.removeprefix("# ")
    command = command.replace("INPUT", "in.mp4").replace("OUTPUT", "out.mp4")
    assert command.startswith("ffmpeg -i in.mp4 ")
    subprocess.run(
        ["sh", "-c", command.replace("ffmpeg", "ffmpeg -v warning", 1)],
        check=True,
        cwd=tmp_path,
    )
    about = about_of(path)
    assert about["start"] == {"frame": start, "seconds": start / fps}
    x = np.array([row["x"] for row in about["path"]])
    assert len(set(x)) > 5
    assert_left_edges(video.frames(tmp_path / "out.mp4"), x)
