import doctest
import itertools
import pathlib

from hypothesis import given
from hypothesis import strategies as st
import numpy as np
import pytest

from lsts_tf import windows

COUNTS = pathlib.Path(__file__).parent / "dhf1k_n_frames.txt"


def test_dhf1k_has_the_papers_number_of_windows():
    counts = [int(line) for line in COUNTS.read_text().split()]
    assert len(counts) == 1000 and sum(counts) == 582_605
    assert sum(counts[600:700]) == 60_273
    for streams, number in (
        (("rgb", "flow"), 249_497),
        (("flow",), 249_497),
        (("rgb",), 249_997),
    ):
        geometry = windows.Geometry.of(streams)
        assert windows.num_windows(counts[:500], geometry) == number


def test_short_clips_by_hand():
    rgb = windows.Geometry(length=4, short="mirror")
    assert list(rgb.targets(3)) == [0, 1, 2]
    assert list(rgb.targets(4)) == [3]
    assert list(rgb.targets(0)) == []
    assert list(rgb.window(0)) == [-3, -2, -1, 0]
    assert rgb.lead(3) == (1, 2, 1)
    assert rgb.lead(1) == (0, 0, 0)
    flow = windows.Geometry.of(("flow",), length=4, stride=2, short="mirror")
    assert list(flow.targets(3)) == [0, 2]
    # Just a window of frames is a flow too few, and not a short clip.
    assert list(flow.targets(4)) == []
    # The first flow of a window needs the frame before it.
    assert flow.lead(3) == (0, 1, 2, 1)
    skip = windows.Geometry(length=4)
    assert list(skip.targets(3)) == []
    assert skip.lead(3) == ()


def test_videos_of_several_datasets():
    names = ("dhf1k:1.0.0", "ucf_sports")
    assert windows.parse_videos("", names) == {}
    assert windows.parse_videos("1-3,7", names) == {"dhf1k": {1, 2, 3, 7}}
    found = windows.parse_videos("1, ucf_sports:2-3,5,dhf1k:9", names)
    assert found == {"dhf1k": {1, 9}, "ucf_sports": {2, 3, 5}}
    for text in ("hollywood2:1", "ucf_sports:1-x", "1:2", ":3"):
        with pytest.raises(ValueError, match="Received"):
            windows.parse_videos(text, names)


@given(
    length=st.integers(1, 100),
    stride=st.integers(1, 9),
    first=st.integers(0, 1),
    frames=st.integers(0, 400),
    short=st.sampled_from(windows.SHORT_CLIPS),
)
def test_windows_stay_inside_what_is_played(
    length, stride, first, frames, short
):
    geometry = windows.Geometry(
        length=length, stride=stride, first=first, short=short
    )
    lead = len(geometry.lead(frames))
    targets = geometry.targets(frames)
    for target in targets:
        window = geometry.window(target)
        assert len(window) == length
        assert window[0] + lead >= first
        assert window[-1] == target < frames
    assert all(b - a == stride for a, b in itertools.pairwise(targets))
    # Not one window more would fit, and the very first one begins with what is
    # played first.
    if geometry.mirrors(frames):
        assert targets[0] == 0 and geometry.window(0)[0] + lead == first
    elif frames > geometry.first_target:
        assert targets[0] == geometry.first_target
    else:
        assert len(targets) == 0
    assert not targets or targets[-1] + stride >= frames


def test_what_cannot_be():
    for wrong in ({"length": 0}, {"stride": 0}):
        with pytest.raises(ValueError, match="Received"):
            windows.Geometry(**wrong)
    for streams in ((), ("flow", "rgb"), ("rbg",), ("rgb",) * 2):
        with pytest.raises(ValueError, match="Received"):
            windows.Geometry.of(streams)
    for frames, mode in ((10, "copy"), (0, "mirror")):
        with pytest.raises(ValueError, match=f"'{mode}', {frames} frames"):
            windows.prefix(3, frames, mode)


@given(missing=st.integers(0, 200), frames=st.integers(1, 90))
def test_prefixes_are_those_of_numpys_padding(missing, frames):
    for mode, padding in (("mirror", "reflect"), ("repeat", "edge")):
        want = np.pad(np.arange(frames), (missing, 0), mode=padding)[:missing]
        got = windows.prefix(missing, frames, mode)
        np.testing.assert_array_equal(got, want)


def test_the_examples():
    assert doctest.testmod(windows).failed == 0


def test_ranges():
    assert windows.parse_ranges("1-3, 7,9-9") == {1, 2, 3, 7, 9}
    assert windows.parse_ranges("7-21/7,1-4/2") == {1, 3, 7, 14, 21}
    assert windows.parse_ranges("") == frozenset()
    for text in ("a", "1-", "1-x", "-3", "1-7/0", "3/2", "1-7/", "700-601"):
        with pytest.raises(ValueError, match="Received"):
            windows.parse_ranges(text)


@given(
    num_frames=st.integers(0, 60),
    maps=st.sampled_from([1, 8, 16]),
    first=st.integers(0, 1),
)
def test_hops_give_each_frame_one_map(num_frames, maps, first):
    geometry = windows.Geometry(length=16, first=first)
    hops = geometry.hops(num_frames, maps)
    given_ = [frame for _, frames in hops for frame in frames]
    start = geometry.first_target - maps + 1
    enough = num_frames > geometry.first_target
    assert given_ == (list(range(start, num_frames)) if enough else [])
    for target, frames in hops:
        assert 1 <= len(frames) <= maps
        assert frames[-1] == target
        assert target in geometry.targets(num_frames)
