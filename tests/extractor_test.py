import json

import numpy as np
import pytest

from lsts_tf import dataset
from lsts_tf import extractor as extractor_lib
from lsts_tf import flow
from lsts_tf import i3d
from lsts_tf import preprocess
from lsts_tf import stores

STREAMS = ("rgb", "flow")
SOURCES = {"rgb": ("random",), "flow": ("random",)}


@pytest.fixture(scope="module")
def extractor():
    return extractor_lib.Extractor(STREAMS, window=16, sources=SOURCES)


@pytest.fixture(scope="module")
def data(sample_data):
    return dataset.Dataset("dhf1k", str(sample_data / "tfds"))


@pytest.fixture(scope="module")
def frames(data):
    (video,) = data.videos([2])
    return list(video.frames())


def alone(extractor, stream, clip):
    """The slow and obvious way: one window through the published network."""
    prepare = {"rgb": preprocess.rgb, "flow": preprocess.flow}[stream]
    mixed = extractor.networks[stream](np.asarray(prepare(clip))[None])
    return np.asarray(i3d.pool(mixed))[0]


def close(got, want):
    np.testing.assert_allclose(got, want, atol=1e-5 * np.abs(want).max())


def test_features_of_a_clip_are_those_of_its_windows(extractor, frames):
    prepared = map(extractor.prepare, frames)
    found = dict(extractor.of_clip(prepared))
    # Flow needs one frame more, and RGB keeps to the same frames.
    assert list(found) == [16, 17, 18, 19]
    squeezed = np.stack([preprocess.squeeze(f) for f in frames])
    grays = np.stack([flow.gray(f) for f in frames])
    flows = extractor.flow.compute(grays).astype(np.float16)
    for target, features in found.items():
        assert features["rgb"].shape == (1, 5, 5, 1024)
        clip = squeezed[target - 15 : target + 1]
        close(features["rgb"], alone(extractor, "rgb", clip))
        # Row k - 1 holds flow k.
        clip = flows[target - 16 : target]
        close(features["flow"], alone(extractor, "flow", clip))


def test_stride_takes_each_so_manieth_window(extractor, frames):
    prepared = list(map(extractor.prepare, frames))
    every = dict(extractor.of_clip(prepared))
    some = dict(extractor.of_clip(prepared, stride=3))
    assert list(some) == [16, 19]
    for target, features in some.items():
        for stream in STREAMS:
            close(features[stream], every[target][stream])


def test_a_clip_without_a_window_has_no_features(extractor, frames):
    prepared = map(extractor.prepare, frames[:16])
    assert list(extractor.of_clip(prepared)) == []


def test_few_windows_are_computed_alone_with_the_same_result(extractor, frames):
    squeezed = [preprocess.squeeze(f) for f in frames]
    shared = list(extractor.features("rgb", squeezed, stride=4))
    alone_ = list(extractor.features("rgb", squeezed, stride=4, length=20))
    assert len(shared) == len(alone_) == 2
    close(np.stack(alone_), np.stack(shared))


def test_encoding_in_a_graph_is_the_same(extractor, frames):
    clip = np.stack([preprocess.squeeze(f) for f in frames[:16]])
    close(extractor.encode("rgb", clip), alone(extractor, "rgb", clip))


def test_random_weights_are_announced(extractor):
    assert extractor.note == "random I3D weights (rgb, flow)"
    described = extractor.describe()
    assert json.loads(json.dumps(described)) == described
    for part in described["streams"].values():
        assert part["weights_random"] is True
        assert len(part["weights_sha256"]) == 64


@pytest.fixture
def kept(tmp_path, extractor):
    return open_stores(tmp_path, extractor)


def open_stores(root, extractor, stride=2):
    return extractor_lib.open_stores(
        root, dataset_name="dhf1k:1.0.0", extractor=extractor, stride=stride
    )


def test_stores_hold_what_the_extractor_finds(data, extractor, kept, frames):
    extractor_lib.fill(data, [2], extractor, kept, purpose="test")
    assert kept.flow.targets(2) == range(1, 20)
    found = dict(extractor.of_clip(map(extractor.prepare, frames), stride=2))
    for stream, store in kept.features.items():
        assert list(store.targets(2)) == list(found) == [16, 18]
        want = np.stack([f[stream] for f in found.values()])
        got = store.read(2, [0, 1])
        # Half precision keeps eleven bits.
        np.testing.assert_allclose(got, want, atol=2e-3 * want.max())
    (video,) = data.videos([2])
    want = [preprocess_png(png) for png in video.maps]
    np.testing.assert_array_equal(kept.truth.maps(2, range(20)), want)


def preprocess_png(png):
    import cv2

    return cv2.imdecode(np.frombuffer(png, np.uint8), cv2.IMREAD_GRAYSCALE)


def test_filling_again_computes_nothing(data, extractor, kept, monkeypatch):
    extractor_lib.fill(data, [3], extractor, kept, purpose="test")

    def fail(*_):
        raise AssertionError("computed again")

    monkeypatch.setattr(extractor_lib, "extract_video", fail)
    extractor_lib.fill(data, [3], extractor, kept, purpose="test")
    with pytest.raises(AssertionError, match="again"):
        extractor_lib.fill(data, [3, 4], extractor, kept, purpose="test")


def test_a_video_that_fails_does_not_stop_the_others(data, extractor, kept):
    # 701 has no annotation.
    with pytest.raises(extractor_lib.ExtractionError, match="video 701"):
        extractor_lib.fill(data, [701, 5], extractor, kept, purpose="test")
    assert 5 in kept.features["rgb"]
    assert 701 not in kept.features["rgb"]


def test_rgb_at_stride_1_serves_both_models(tmp_path, extractor):
    rgb = extractor_lib.Extractor(("rgb",), window=16, sources=SOURCES)
    both = open_stores(tmp_path, extractor, stride=1)
    one = open_stores(tmp_path, rgb, stride=1)
    assert one.features["rgb"].root == both.features["rgb"].root
    assert one.geometry["rgb"].first_target == 15


def test_stores_of_other_weights_are_refused(tmp_path, extractor):
    open_stores(tmp_path, extractor)
    other = extractor_lib.Extractor(STREAMS, window=16, sources=SOURCES, seed=1)
    with pytest.raises(stores.StoreError, match="weights_sha256"):
        open_stores(tmp_path, other)


def test_a_full_disk_is_said_before_the_work(
    data, extractor, kept, monkeypatch
):
    import shutil

    usage = shutil.disk_usage("/")._replace(free=10_000)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage)
    with pytest.raises(OSError, match="flows and features of 1 videos"):
        extractor_lib.fill(data, [6], extractor, kept, purpose="test")
    assert 6 not in kept.truth
