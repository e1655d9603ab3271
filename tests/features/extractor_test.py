import copy
import dataclasses
import json
import weakref

import numpy as np
import pytest
import tensorflow as tf

from lsts_tf.features import extractor as extractor_lib
from lsts_tf.features import fill, flow, front_end, preprocess, stores
from lsts_tf.media import images
from lsts_tf.networks import i3d

STREAMS = ("rgb", "flow")
SOURCES = {"rgb": ("random",), "flow": ("random",)}
CONTINUOUS = {
    "window": 16,
    "sources": SOURCES,
    "name": "continuous",
    "size": (32, 64),
    "skips": ("Mixed_4f",),
}


@pytest.fixture(scope="module")
def extractor():
    return extractor_lib.Extractor(STREAMS, window=16, sources=SOURCES)


@pytest.fixture(scope="module")
def rgb():
    """The same RGB network alone; each stride of a stream is traced once."""
    return extractor_lib.Extractor(("rgb",), window=16, sources=SOURCES)


@pytest.fixture(scope="module")
def frames(data):
    (video,) = data.videos([2])
    return list(video.frames())


@pytest.fixture(scope="module")
def every(extractor, frames):
    """Features of every window, by target and stream."""
    return dict(extractor.of_clip(map(extractor.prepare, frames)))


def alone(extractor, stream, clip):
    """The slow and obvious way: one window through the published network."""
    prepare = {"rgb": preprocess.rgb, "flow": preprocess.flow}[stream]
    mixed = extractor.network(stream)(np.asarray(prepare(clip))[None])
    return np.asarray(i3d.pool(mixed))[0]


def features(extractor, signal, **keywords):
    return [f["rgb"] for f in extractor.features("rgb", signal, **keywords)]


def all_close(found, want):
    """Parts of successive windows."""
    for one, other in zip(found, want, strict=True):
        assert list(one) == list(other)
        for part in one:
            close(one[part], other[part])


def close(got, want):
    np.testing.assert_allclose(got, want, atol=1e-5 * np.abs(want).max())


def test_i3d_is_let_go_and_loaded_again(rgb, frames):
    clip = np.stack(list(map(preprocess.squeeze, frames[:16])))
    before = rgb.encode_parts("rgb", clip)["rgb"]
    first = weakref.ref(rgb.network("rgb"))
    sum(1 for _ in features(rgb, clip, stride=5))
    assert first() is None
    traced = tf.function(lambda: rgb.encode_parts("rgb", clip)["rgb"])
    close(traced().numpy(), np.asarray(before))


def test_features_of_a_clip_are_those_of_its_windows(extractor, frames, every):
    # Flow needs one frame more, and RGB keeps to the same frames.
    assert list(every) == [16, 17, 18, 19]
    squeezed = np.stack([preprocess.squeeze(f) for f in frames])
    grays = np.stack([flow.gray(f) for f in frames])
    flows = np.stack(list(extractor.flow.pairs(grays))).astype(np.float16)
    for target, features in every.items():
        assert features["rgb"].shape == (1, 5, 5, 1024)
        clip = squeezed[target - 15 : target + 1]
        close(features["rgb"], alone(extractor, "rgb", clip))
        # Row k - 1 holds flow k.
        clip = flows[target - 16 : target]
        close(features["flow"], alone(extractor, "flow", clip))


def test_few_windows_are_computed_alone_with_the_same_result(rgb, frames):
    squeezed = [preprocess.squeeze(f) for f in frames]
    shared = features(rgb, squeezed, stride=2)
    alone_ = features(rgb, squeezed, stride=2, length=20)
    assert len(shared) == len(alone_) == 3
    close(np.stack(alone_), np.stack(shared))
    for target, feature in zip([15, 17, 19], alone_, strict=True):
        clip = np.stack(squeezed[target - 15 : target + 1])
        # Not through the shared way, nor by its states.
        want = rgb.encoders["rgb"](clip)["rgb"].numpy()
        np.testing.assert_array_equal(feature, want)


@pytest.mark.parametrize("length", [0, 1, 15, 16, 17])
def test_short_signals_have_the_windows_that_fit(rgb, frames, length):
    squeezed = [preprocess.squeeze(f) for f in frames[:length]]
    found = features(rgb, squeezed, stride=2, length=length)
    assert len(found) == len(range(15, length, 2))


def test_what_failed_before_leaves_no_trace(rgb, frames):
    squeezed = [preprocess.squeeze(f) for f in frames]

    def broken():
        yield from squeezed[3:14]
        raise ValueError("a damaged frame")

    with pytest.raises(ValueError, match="damaged frame"):
        features(rgb, broken(), stride=2)
    again = features(rgb, squeezed, stride=2)
    fresh = alone(rgb, "rgb", np.stack(squeezed[2:18]))
    close(again[1], fresh)


@pytest.fixture
def kept(tmp_path, extractor):
    return open_stores(tmp_path, extractor)


def open_stores(root, extractor, stride=2):
    return fill.open_stores(
        root, dataset_name="dhf1k:1.0.0", front_end=extractor, stride=stride
    )


def filled(data, numbers, extractor, kept):
    fill.fill(data, numbers, kept, fill.here(extractor), purpose="test")


def test_stores_hold_what_the_extractor_finds(data, extractor, kept, every):
    filled(data, [2], extractor, kept)
    assert kept.flow.targets(2) == range(1, 20)
    for stream, store in kept.features.items():
        assert list(store.targets(2)) == [16, 18]
        want = np.stack([every[target][stream] for target in (16, 18)])
        got = store.read(2, [0, 1])
        # Half precision keeps eleven bits.
        np.testing.assert_allclose(got, want, atol=2e-3 * want.max())
    (video,) = data.videos([2])
    want = [images.decode(png) for png in video.maps]
    np.testing.assert_array_equal(kept.truth.maps(2, range(20)), want)


def test_the_same_bytes_each_time(data, extractor, tmp_path):
    found = []
    for name in "ab":
        kept = open_stores(tmp_path / name, extractor)
        filled(data, [2], extractor, kept)
        roots = [kept.flow.root, *(s.root for s in kept.features.values())]
        found.append([(r / "0002.npy").read_bytes() for r in roots])
    assert found[0] == found[1]


def test_a_video_that_fails_does_not_stop_the_others(data, extractor, kept):
    with pytest.raises(fill.ExtractionError) as error:
        filled(data, [5, 701], extractor, kept)
    assert "video 701: Video 701 has no annotation" in str(error.value)
    assert 5 in kept
    assert 701 not in kept


def test_rgb_at_stride_1_serves_both_models(tmp_path, extractor, rgb):
    both = open_stores(tmp_path, extractor, stride=1)
    one = open_stores(tmp_path, rgb, stride=1)
    assert one.features["rgb"].root == both.features["rgb"].root
    assert one.geometry["rgb"].first_target == 15


def test_another_flow_than_i3d_knows_is_a_warning_once(caplog):
    extractor_lib._warn_of_dis.cache_clear()

    def build(streams, name):
        extractor_lib.Extractor(streams, window=16, sources=SOURCES, flow=name)

    build(("flow",), "tvl1")
    build(("rgb",), "dis")
    assert "DIS" not in caplog.text
    for _ in range(2):
        build(("flow",), "dis")
    assert caplog.text.count("correlation is 0.04 to 0.87") == 1


def test_descriptions_that_differ_say_where_and_what_to_do(extractor):
    there = json.loads(json.dumps(extractor.describe()))
    assert front_end.differences(there, extractor.describe()) == ""
    # Where the weights came from is told, and not compared.
    there["streams"]["rgb"]["weights"] = "another/place"
    assert front_end.differences(there, extractor.describe()) == ""
    there["streams"]["rgb"]["weights_sha256"] = "abc"
    text = front_end.differences(there, extractor.describe())
    assert "another/place" not in text
    sha256 = extractor.weights["rgb"].checksum
    assert f"rgb.weights_sha256: 'abc' then, '{sha256}' now" in text
    assert "--rgb_weights" in text
    assert text.count(" then, ") == 1
    there = json.loads(json.dumps(extractor.describe()))
    there["streams"]["flow"]["flow"]["opencv"] = "4"
    there["window"] = 79
    text = front_end.differences(there, extractor.describe())
    assert "streams.flow.flow.opencv: '4' then, 'absent' now" in text
    assert "window: 79 then, 16 now" in text
    assert "version of OpenCV" in text
    assert "the flagfile and the version of this package" in text
    assert "_weights" not in text


def test_stores_are_of_the_weights_values_from_wherever(extractor, tmp_path):
    def opened(**changes):
        other = copy.copy(extractor)
        other.weights = {
            stream: dataclasses.replace(weights, **changes)
            for stream, weights in extractor.weights.items()
        }
        return open_stores(tmp_path, other)

    opened(source="a/place")
    for store in opened(source="another/place").features.values():
        assert "weights" not in store.manifest.details
    with pytest.raises(
        stores.StoreError, match=r"weights_sha256: .*'abc' wanted"
    ):
        opened(checksum="abc")


def test_another_size_with_skips():
    """Frames that are not square; windows that share, and a still alone."""
    extractor = extractor_lib.Extractor(
        STREAMS,
        window=21,
        sources=SOURCES,
        size=(32, 64),
        skips=("Mixed_4f", "Conv3d_2c_3x3"),
    )
    for stream in STREAMS:
        signal = signal_of(stream, 23)
        shared = list(extractor.features(stream, iter(signal)))
        assert {
            name: part.shape for name, part in shared[0].items()
        } == extractor.part_shapes(stream)
        still = extractor.features(
            stream, iter(signal[:1]), length=1, starts_still=True
        )
        windows = [signal[n : n + 21] for n in range(3)] + [signal[:1] * 21]
        all_close(
            [*shared, *still],
            [extractor.encode_parts(stream, np.stack(w)) for w in windows],
        )


def test_a_skip_behind_the_end_point_is_refused():
    with pytest.raises(ValueError, match="before Mixed_4e"):
        extractor_lib.Extractor(("rgb",), **CONTINUOUS, end_point="Mixed_4e")


@pytest.fixture(scope="module")
def continuous():
    return extractor_lib.Extractor(STREAMS, **CONTINUOUS)


def signal_of(stream, length):
    rng = np.random.default_rng(length)
    if stream == "rgb":
        return list(rng.integers(0, 256, (length, 32, 64, 3), np.uint8))
    return list(rng.normal(0, 3, (length, 16, 32, 2)).astype(np.float16))


@pytest.mark.parametrize("chunk", [None, 3])
@pytest.mark.parametrize("length", [16, 21, 75])
@pytest.mark.parametrize("stream", STREAMS)
def test_behind_a_clip_it_is_played_backwards(
    continuous, stream, length, chunk
):
    signal = signal_of(stream, length)
    found = list(continuous.features(stream, signal, chunk=chunk))
    assert len(found) == length - 15
    # Back and forth, longer than anything that is seen.
    if stream == "rgb":
        longer = signal + (signal[-2::-1] + signal[1:]) * 8
    else:
        # A motion backwards is undone, the last one first.
        longer = signal + ([-flow for flow in signal[::-1]] + signal) * 8
    want = list(continuous.features(stream, longer))[: len(found)]
    all_close(found, want)


def test_a_still_is_a_long_clip_that_does_not_move(continuous):
    for stream in STREAMS:
        (element,) = signal_of(stream, 1)
        found = continuous.of_still(stream, element)
        assert {k: v.shape for k, v in found.items()} == (
            continuous.part_shapes(stream)
        )
        if stream == "rgb":
            *_, last = continuous.features(stream, [element] * 120)
            all_close([found], [last])


@pytest.mark.parametrize(("stride", "chunk"), [(1, None), (3, None), (1, 8)])
def test_a_still_start_is_a_window_of_the_first_frame(
    rgb, frames, stride, chunk
):
    signal = [preprocess.squeeze(frame) for frame in frames[:5]]
    played = [signal[0]] * 15 + signal
    want = features(rgb, played, stride=stride)
    for length in (None, 5):
        found = features(
            rgb,
            iter(signal),
            stride=stride,
            chunk=chunk,
            length=length,
            starts_still=True,
        )
        assert len(found) == len(want) == -(-5 // stride)
        close(np.stack(found), np.stack(want))


@pytest.mark.parametrize("stream", STREAMS)
def test_the_continuous_front_end_starts_still_too(continuous, stream):
    # Longer than what is played backwards behind it.
    signal = signal_of(stream, 50)
    played = [signal[0]] * 150 + signal
    want = list(continuous.features(stream, played))[135:]
    found = list(continuous.features(stream, signal, starts_still=True))
    assert len(found) == 50
    all_close(found, want)


def test_a_second_clip_does_not_spoil_the_first_unnoticed(continuous):
    signal = signal_of("rgb", 70)
    first, second = (
        continuous.features("rgb", signal, chunk=1) for _ in range(2)
    )
    next(first)
    next(second)
    with pytest.raises(RuntimeError, match="Another clip was started"):
        next(first)
    assert len(list(second)) == 70 - 15 - 1


@pytest.mark.parametrize("lookahead", [0, 9, 47])
def test_less_lookahead_gives_features_sooner(continuous, lookahead):
    stream, length = "rgb", 50
    assert continuous.delay == 47
    live = extractor_lib.Extractor((stream,), **CONTINUOUS, lookahead=lookahead)
    assert live.delay == lookahead
    expected = {**continuous.describe(), "streams": live.describe()["streams"]}
    assert live.describe() == expected
    taken = []

    def camera():
        for element in signal_of(stream, length):
            taken.append(1)
            yield element

    found, delays = [], []
    for n, features in enumerate(live.features(stream, camera(), chunk=1)):
        delays.append(len(taken) - 1 - (15 + n))
        found.append(features)
    assert len(found) == length - 15
    assert max(delays) == min(lookahead, length - 16)
    want = continuous.features(stream, signal_of(stream, length))
    is_equal = [
        np.allclose(one[stream], other[stream], atol=1e-5 * one[stream].max())
        for one, other in zip(found, want, strict=True)
    ]
    assert all(is_equal) if lookahead == 47 else not any(is_equal)
