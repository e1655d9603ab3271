import functools
import itertools

import hypothesis
import hypothesis.strategies as st
import keras
import numpy as np
import pytest

from lsts_tf.networks import i3d
from lsts_tf.networks.sliding import geometry
from lsts_tf.networks.sliding import network as sliding_i3d
from tests.networks import conftest

SIZE = 32


@pytest.fixture(scope="module")
def networks():
    """I3D for 3 and 2 channels with BatchNorm that does something."""
    return {channels: conftest.lively(channels, SIZE) for channels in (3, 2)}


def _video(frames, channels, seed=0):
    rng = np.random.default_rng(seed)
    shape = (frames, SIZE, SIZE, channels)
    return rng.uniform(-1, 1, shape).astype(np.float32)


def _alone(network, video, window, ends):
    """Features of windows by their last frames, each by the plain network."""
    clips = np.stack([video[n - window + 1 : n + 1] for n in ends])
    return np.asarray(i3d.pool(network.predict_on_batch(clips)))


def _push(sliding, video, sizes):
    """Pushes a video in pieces of the given sizes, again and again."""
    return np.concatenate(
        [sliding.push(piece) for piece in _pieces(video, sizes)]
    )


def _pieces(video, sizes):
    first = 0
    for size in itertools.cycle(sizes):
        yield video[first : first + size]
        first += size
        if first >= len(video):
            return


def _push_parts(sliding, video, sizes):
    """All parts of a whole video that is pushed in pieces."""
    found = [sliding.push_parts(piece) for piece in _pieces(video, sizes)]
    found.append(sliding.finish_parts())
    return {
        name: np.concatenate([some[name] for some in found if len(some[name])])
        for name in sliding.part_shapes
    }


def _assert_exact(found, expected):
    assert found.shape == expected.shape
    assert found.dtype == np.float32
    assert np.abs(found - expected).max() < 1e-5 * np.abs(expected).max()


# === The same as each window alone ===


SKIPS = ("Conv3d_2c_3x3", "Mixed_4f", "Mixed_3c")


@pytest.mark.parametrize(
    ("window", "stride", "channels", "more", "sizes", "skips"),
    [
        (79, 1, 3, 2, (40,), ()),
        pytest.param(79, 2, 2, 5, (11, 24), (), marks=pytest.mark.slow),
        (79, 8, 3, 17, (40,), ()),
        (80, 1, 2, 1, (81, 2), ()),
        pytest.param(80, 3, 3, 4, (64,), (), marks=pytest.mark.slow),
        (63, 1, 3, 2, (16, 48), ()),
        (63, 4, 2, 9, (20,), ()),
        (16, 1, 3, 40, (1, 24, 7), ()),
        (16, 8, 2, 33, (5,), ()),
        (40, 5, 2, 11, (9,), ()),
        (1, 1, 3, 3, (2,), ()),
        (79, 8, 2, 9, (40,), SKIPS),
        (63, 1, 2, 1, (24,), SKIPS),
        (16, 1, 2, 6, (5, 8), SKIPS),
        (9, 2, 2, 6, (3,), SKIPS),
    ],
)
def test_parts_equal_those_of_each_window_alone(
    networks, window, stride, channels, more, sizes, skips
):
    video = _video(window + more, channels)
    sliding = sliding_i3d.SlidingI3D(
        networks[channels], window=window, stride=stride, skips=skips
    )
    found = _push_parts(sliding, video, sizes)
    starts = range(0, more + 1, stride)
    # The plain network is slow: of many windows both ends and some between.
    apart = 1 if skips else 4
    some = sorted({0, len(starts) - 1, *range(0, len(starts), apart)})
    clips = np.stack([video[starts[k] : starts[k] + window] for k in some])
    network = i3d.at(networks[channels], ("Mixed_5c", *skips))
    expected = network.predict_on_batch(clips)
    want = {"Mixed_5c": np.asarray(i3d.pool(expected["Mixed_5c"]))}
    for skip in skips:
        # The mean over the last 8 frames, slow and obvious.
        steps = 2 if skip == "Mixed_4f" else 4
        last = expected[skip][:, -steps:].astype(np.float64)
        want[skip] = last.mean(1).astype(np.float32)
    assert list(found) == list(want)
    assert {k: v.shape[1:] for k, v in found.items()} == sliding.part_shapes
    for name, part in found.items():
        assert len(part) == len(starts)
        _assert_exact(part[some], want[name])


@hypothesis.settings(deadline=None, max_examples=5, derandomize=True)
@hypothesis.given(
    window=st.integers(2, 20),
    stride=st.integers(1, 9),
    more=st.integers(0, 9),
    sizes=st.lists(st.integers(0, 12), min_size=1, max_size=3).filter(any),
    channels=st.sampled_from((2, 3)),
)
def test_any_window_stride_and_chunk(
    networks, window, stride, more, sizes, channels
):
    network = networks[channels]
    video = _video(window + more, channels, seed=more)
    sliding = sliding_i3d.SlidingI3D(network, window=window, stride=stride)
    ends = list(range(window - 1, len(video), stride))
    expected = _alone(network, video, window, ends)
    _assert_exact(_push(sliding, video, sizes), expected)


@pytest.mark.parametrize("end_point", ["MaxPool3d_5a_2x2", "MaxPool3d_3a_3x3"])
@pytest.mark.parametrize("window", [40, 16])
def test_another_end_point_is_not_pooled(networks, window, end_point):
    video = _video(window + 3, 2)
    sliding = sliding_i3d.SlidingI3D(
        networks[2], window=window, end_point=end_point
    )
    clips = np.stack([video[n : n + window] for n in range(4)])
    network = i3d.at(networks[2], [end_point])
    expected = network.predict_on_batch(clips)[end_point]
    _assert_exact(_push(sliding, video, (9,)), expected)


def test_windows_come_with_their_last_frame(networks):
    video = _video(20, 3)
    sliding = sliding_i3d.SlidingI3D(networks[3], window=16, stride=2)
    counts = [len(sliding.push(frame[None])) for frame in video]
    assert counts == [0] * 15 + [1, 0, 1, 0, 1]
    assert len(sliding.push(video[:0])) == 0


@pytest.mark.parametrize(
    ("front_end", "chunk"), [("window", 8), ("window", 24), ("continuous", 8)]
)
def test_a_recorded_video_may_wait_for_whole_chunks(networks, front_end, chunk):
    """Of any size; and another video in between is forgotten."""
    video = _video(45, 2)
    sliding = sliding_i3d.SlidingI3D(
        networks[2], window=16, stride=2, front_end=front_end, chunk=chunk
    )
    expected = np.concatenate([sliding.push(video), sliding.finish()])
    assert len(expected) == (45 - 16) // 2 + 1
    sliding.reset()
    sliding.push(_video(21, 2, seed=1))
    sliding.reset()
    found = [
        sliding.push_parts(piece, wait=True)["Mixed_5c"]
        for piece in _pieces(video, (9,))
    ]
    # Frames that fill no chunk wait for the end.
    assert sum(map(len, found)) < len(expected)
    found.append(sliding.finish())
    _assert_exact(np.concatenate(found), expected)


@pytest.mark.parametrize(
    ("front_end", "window", "stride", "chunk", "first_chunk"),
    [
        ("window", 33, 1, 4, 2),
        ("window", 16, 3, 12, 1),
        ("window", 9, 1, 4, 2),
        ("continuous", 33, 1, 4, 2),
        ("continuous", 16, 3, 12, 1),
    ],
)
def test_the_first_layers_may_take_a_chunk_in_parts(
    networks, front_end, window, stride, chunk, first_chunk
):
    """At the video's ends too, where labels outside of it are zero."""
    make = functools.partial(
        sliding_i3d.SlidingI3D,
        networks[2],
        window=window,
        stride=stride,
        front_end=front_end,
        chunk=chunk,
        skips=("Conv3d_2c_3x3", "Mixed_3c"),
    )
    video = _video(window + 11, 2)
    whole, parted = make(), make(first_chunk=first_chunk)
    taken = set()
    first, last = parted._stages[0], parted._stages[-1]
    for stage in (first, last):
        stage._compile = functools.partial(_noting, taken, stage.name)
    for sizes in ((7, 5), (40,)):
        found = _push_parts(parted, video, sizes)
        for name, part in _push_parts(whole, video, sizes).items():
            _assert_exact(found[name], part)
        # Then once more, from a start that stands still.
        for sliding in (whole, parted):
            sliding.stand_still(video[0])
    assert (last.name, chunk // stride) in taken
    # Of so short a window nothing is shared, and each is computed whole.
    most = first_chunk if window > 9 else chunk
    assert max(n for name, n in taken if name == first.name) == most


def _noting(taken, name, function):
    """Notes which layer runs for how many windows."""

    def call(*arguments):
        taken.add((name, function.args[0]))
        return function(*arguments)

    return call


@pytest.mark.parametrize("front_end", sliding_i3d.FRONT_ENDS)
def test_skips_wait_as_their_projections(networks, front_end):
    skips = ("Mixed_3c", "Mixed_4f")
    sliding = sliding_i3d.SlidingI3D(
        networks[2], window=16, front_end=front_end, skips=skips
    )
    video = _video(45, 2)

    def both():
        sliding.reset()
        yield _push_parts(sliding, video, (9,))
        sliding.stand_still(video[0])
        yield _push_parts(sliding, video[1:], (9,))

    plain = list(both())
    sliding.projections = {"Mixed_3c": lambda x: x[..., :2, :1] * 2}
    for found, want in zip(both(), plain, strict=True):
        _assert_exact(found["Mixed_3c"], want["Mixed_3c"][..., :2, :1] * 2)
        for name in ("Mixed_4f", "Mixed_5c"):
            np.testing.assert_array_equal(found[name], want[name])
    waiting = [x for x in sliding._waiting["Mixed_3c"] if x is not None]
    assert {x.shape for x in waiting} <= {(4, 2, 1)}
    assert bool(waiting) == (front_end == "continuous")


@pytest.mark.parametrize(
    "recorded",
    ["rgb", pytest.param("flow", marks=pytest.mark.slow)],
    indirect=True,
)
def test_whole_size_equals_the_recorded_network(recorded):
    network, _, video, outputs = recorded
    golden = np.asarray(i3d.pool(outputs["mixed_5c_79"]))
    sliding = sliding_i3d.SlidingI3D(network, window=79, stride=8)
    assert sliding.feature_shape == (5, 5, 5, 1024)
    found = _push(sliding, video, (32,))
    assert found.shape == (1, 5, 5, 5, 1024)
    difference = found - golden
    assert np.abs(difference).max() < 1e-5 * np.abs(golden).max()
    assert np.linalg.norm(difference) < 1e-4 * np.linalg.norm(golden)


def test_bfloat16_is_near_and_gives_float32(networks):
    video = _video(18, 3)
    sliding = sliding_i3d.SlidingI3D(networks[3], window=16, dtype="bfloat16")
    found = sliding.push(video)
    expected = _alone(networks[3], video, 16, [15, 16, 17])
    assert found.dtype == np.float32
    relative = np.linalg.norm(found - expected) / np.linalg.norm(expected)
    assert 1e-4 < relative < 0.1


def test_memory_does_not_grow_with_the_video(networks):
    sliding = sliding_i3d.SlidingI3D(networks[3], window=16, stride=3)

    def remembered():
        state = sum(
            np.asarray(array).nbytes
            for stage in sliding._stages
            for array in stage._state
        )
        assert state == sliding.state_bytes
        return state + sliding._pending.nbytes

    limit = sliding.state_bytes + 2 * _video(1, 3).nbytes
    for _ in range(4):
        sliding.push(_video(17, 3))
        assert remembered() <= limit


# === Geometry ===


def test_borders_of_the_published_window_are_those_counted_by_hand():
    found = [
        (track.left, track.right) for _, _, track in geometry.tracks(79, 1)
    ]
    sides = [2, 2, 2, 3, 3, 4, 5, 3, 4, 5, 6, 7, 8, 4, 5, 6]
    assert found == [(side, side) for side in sides]


def test_costs_are_those_counted_by_hand():
    network = i3d.build(3)
    exact = sliding_i3d.SlidingI3D(network, window=79).costs
    alone = i3d.multiply_adds(79, 3)
    assert exact.keys() <= alone.keys()
    assert sum(alone.values()) / sum(exact.values()) > 6.8
    # Conv2c's three taps of one dense step, and four products for the two
    # steps of each border that it sees.
    step = 56 * 56 * 9 * 64 * 192
    assert exact["Conv3d_2c_3x3"] == step * (3 + 2 * 4)
    dense = sliding_i3d.SlidingI3D(network, front_end="continuous").costs
    assert sum(alone.values()) / sum(dense.values()) > 32


# === Continuous ===


def _over_the_video(network, video, window, end_point="Mixed_5c"):
    """Dense activations of every label, layer by layer, slow and obvious.

    Returns [frames, rows, columns, 1024]: the step of Mixed_5c at each label,
    in a video without window borders, where what lies outside is zero.
    """
    steps, spacing = window, 1
    x = video
    for layer in i3d.layers(end_point):
        chains = (
            i3d.branches(layer) if isinstance(layer, i3d.Mixed) else ((layer,),)
        )
        ends = []
        for chain in chains:
            y = x
            for part in chain:
                y = _at_every_label(network, part, y, steps, spacing)
            ends.append(y)
        x = np.concatenate(ends, -1)
        _, stride = geometry.in_time(layer)
        steps, spacing = -(-steps // stride), spacing * stride
    return x


def _at_every_label(network, part, x, steps, spacing):
    kernel = part.kernel[0]
    before, _ = i3d.same_padding(steps, kernel, part.stride[0])
    blank = np.zeros_like(x[0])
    clips = np.stack(
        [
            [
                x[label] if 0 <= label < len(x) else blank
                for label in (q + spacing * (t - before) for t in range(kernel))
            ]
            for q in range(len(x))
        ]
    )
    strides = (1, *part.stride[1:])
    if isinstance(part, i3d.Pool):
        y = keras.ops.max_pool(clips, part.kernel, strides, "same")
    else:
        conv = network.get_layer(i3d.layer_name(part.name, "conv_3d"))
        norm = network.get_layer(i3d.layer_name(part.name, "batch_norm"))
        y = keras.ops.conv(clips, conv.kernel, strides, "same")
        y = keras.ops.relu(norm(y))
    # The middle one has seen all taps and no padding in time.
    return np.asarray(y[:, (kernel - 1) // 2])


def _of_labels(dense, starts, labels):
    """Features of windows whose steps have the given labels."""
    blank = np.zeros_like(dense[0])
    clips = [
        [dense[s + q] if 0 <= s + q < len(dense) else blank for q in labels]
        for s in starts
    ]
    return np.asarray(i3d.pool(np.asarray(clips)))


@pytest.mark.parametrize(
    ("window", "stride", "more", "sizes"),
    [(79, 1, 3, (16,)), (16, 1, 8, (3, 9)), (32, 3, 9, (13,))],
)
def test_continuous_is_one_pass_over_the_video(
    networks, window, stride, more, sizes
):
    video = _video(window + more, 2)
    sliding = sliding_i3d.SlidingI3D(
        networks[2], window=window, stride=stride, front_end="continuous"
    )
    early = _push(sliding, video, sizes)
    found = np.concatenate([early, sliding.finish()])
    dense = _over_the_video(networks[2], video, window)
    steps = i3d.shapes(window)["Mixed_5c"][0]
    starts = range(0, more + 1, stride)
    labels = [8 * j for j in range(steps)]
    _assert_exact(found, _of_labels(dense, starts, labels))
    waiting = sum(s + window + sliding.delay > len(video) for s in starts)
    assert len(found) - len(early) == waiting


@pytest.mark.parametrize("lookahead", [None, 0])
def test_continuous_skips_are_of_the_same_pass(networks, lookahead):
    video = _video(40, 2)
    sliding = sliding_i3d.SlidingI3D(
        networks[2],
        window=16,
        front_end="continuous",
        lookahead=lookahead,
        skips=("Mixed_3c",),
    )
    found = _push_parts(sliding, video, (11,))
    dense = _over_the_video(networks[2], video, 16, "Mixed_3c")
    # 1a sees 4 frames beyond its label, 2c, 3b and 3c two each.
    ahead = 0 if lookahead is None else 4 + 2 * 3
    late = -(-max(0, 14 + ahead - 15) // 2)
    labels = [2 * (j - late) for j in range(4, 8)]
    blank = np.zeros_like(dense[0])
    want = np.stack(
        [
            np.mean([dense[s + q] if s + q >= 0 else blank for q in labels], 0)
            for s in range(25)
        ]
    )
    _assert_exact(found["Mixed_3c"], want)
    assert len(found["Mixed_3c"]) == len(found["Mixed_5c"]) == 25


def test_live_continuous_does_not_wait(networks):
    video = _video(64, 2)
    sliding = sliding_i3d.SlidingI3D(
        networks[2], window=16, front_end="continuous", lookahead=0
    )
    assert sliding.delay == 0
    found = sliding.push(video)
    *_, (_, _, track) = geometry.tracks(16, 1, borders=False)
    # The newest label of the window's phase that sees nothing beyond it.
    last = track.head // 8 * 8
    assert last + 8 > track.head
    # What lies behind is of no account: zeros here, frames there.
    behind = np.concatenate([video, _video(8, 2, seed=1)])
    dense = _over_the_video(networks[2], behind, 16)
    expected = _of_labels(dense, range(49), [last - 8, last])
    _assert_exact(found, expected)
    assert len(sliding.finish()) == 0


@pytest.mark.parametrize(
    ("front_end", "window", "stride", "lookahead", "sizes"),
    [
        ("continuous", 79, 1, None, (8,)),
        ("continuous", 16, 4, None, (3, 5)),
        ("continuous", 33, 3, 7, (30,)),
        ("window", 79, 1, None, (8,)),
        ("window", 80, 1, None, (1, 7)),
        ("window", 16, 4, None, (3, 5)),
        ("window", 33, 3, None, (30,)),
        ("window", 9, 20, None, (2, 20)),
        ("window", 63, 1, None, (25,)),
        ("window", 1, 1, None, (7,)),
    ],
)
def test_a_still_start_is_the_frame_before_it_for_ever(
    networks, front_end, window, stride, lookahead, sizes
):
    make = functools.partial(
        sliding_i3d.SlidingI3D,
        networks[2],
        window=window,
        stride=stride,
        front_end=front_end,
        lookahead=lookahead,
        skips=("Mixed_3c",),
    )
    video = _video(25, 2)
    played, still = make(), make()
    # Longer than anything looks back, by whole strides.
    lead = 200 * stride if front_end == "continuous" else 2 * stride
    before = np.repeat(video[:1], lead + window - 1, axis=0)
    want = _push_parts(played, np.concatenate([before, video]), (1000,))
    for _ in range(2):
        still.stand_still(video[0])
        for name, found in _push_parts(still, video, sizes).items():
            assert len(found) == -(-25 // stride)
            _assert_exact(found, want[name][lead // stride :])


def test_continuous_of_a_video_shorter_than_a_window_is_empty(networks):
    sliding = sliding_i3d.SlidingI3D(
        networks[2], window=16, front_end="continuous"
    )
    assert len(sliding.push(_video(15, 2))) == 0
    assert len(sliding.finish()) == 0


# === Errors ===


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ({"window": 0}, "window=0"),
        ({"front_end": "both"}, "front_end='both'"),
        ({"lookahead": 3}, "lookahead=3"),
        ({"skips": ("Mixed_4b",)}, "Received: Mixed_4b"),
        ({"skips": ("Mixed_4f",), "end_point": "Mixed_4f"}, "before Mixed_4f"),
        ({"window": 16}, r"shape \(4, 32, 32, 2\)"),
    ],
)
def test_wrong_arguments_are_refused(networks, given, says):
    with pytest.raises(ValueError, match=says):
        sliding_i3d.SlidingI3D(networks[3], **given).push(_video(4, 2))
