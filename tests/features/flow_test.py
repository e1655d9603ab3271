import itertools

import cv2
import numpy as np
import pytest

from lsts_tf.features import flow
from lsts_tf.media import video
from tests import textures


def make(name, workers, batch=1):
    method = flow.Flow(name)
    method.workers, method.batch = workers, batch
    return method


def compute(method, grays):
    return np.stack(list(method.pairs(grays)))


def end_point_difference(a, b):
    return np.linalg.norm(a - b, axis=-1).mean()


@pytest.fixture(scope="module")
def tvl1():
    return make("tvl1", 2)


def test_gray_averages_over_areas():
    frame = np.random.default_rng(0).integers(0, 256, (448, 448, 3), np.uint8)
    got = flow.gray(frame)
    assert got.shape == (112, 112) and got.dtype == np.uint8
    weights = [0.299, 0.587, 0.114]
    want = (frame @ weights).reshape(112, 4, 112, 4).mean((1, 3))
    np.testing.assert_allclose(got, want, atol=1.01)


@pytest.mark.parametrize("name", flow.METHODS)
def test_flow_points_from_a_frame_to_the_next(name):
    """(x, y), rightwards and downwards, flow k from frame k-1 to frame k."""
    grays = textures.moving(3, 1.5, -0.75)
    flows = compute(flow.Flow(name), grays)
    assert flows.shape == (2, 112, 112, 2) and flows.dtype == np.float32
    inner = flows[:, 12:-12, 12:-12]
    np.testing.assert_allclose(inner.mean((1, 2)), [[1.5, -0.75]] * 2, atol=0.1)


def test_tvl1_is_opencvs_on_moving_textures(tvl1):
    grays = np.concatenate(
        [textures.moving(3, 0.6, 0.3), textures.moving(3, -2.5, 1.0, seed=1)]
    )
    got = compute(tvl1, grays)
    want = compute(flow.Flow("opencv"), grays)
    keep = [0, 1, 3, 4]  # Without the cut.
    assert end_point_difference(got[keep], want[keep]) < 0.02


def test_tvl1_is_opencvs_on_real_frames(tvl1, shared):
    path = shared / "real_clips" / "video" / "701.AVI"
    frames = itertools.islice(video.frames(path), 100, 107)
    grays = np.stack([flow.gray(frame) for frame in frames])
    got = compute(tvl1, grays)
    want = compute(flow.Flow("opencv"), grays)
    assert np.abs(want).mean() > 0.05
    assert end_point_difference(got, want) < 0.02


@pytest.mark.parametrize("name", flow.METHODS)
def test_the_number_of_threads_changes_nothing(name):
    # Slices of larger frames, which DIS refuses as they are.
    grays = textures.moving(6, 0.7, 0.2)[:, 8:72, 20:90]
    serial = compute(make(name, 1), grays)
    parallel = compute(make(name, 3), grays)
    np.testing.assert_array_equal(serial, parallel)


def test_batches_change_nothing_but_rounding():
    """Seven pairs, four a call, so that the last call is filled up."""
    grays = np.stack(
        [frame[:19, :19] for frame in textures.moving(8, 0.7, 0.2)]
    )
    single = compute(make("tvl1", 1), grays)
    batched = compute(make("tvl1", 2, batch=4), grays)
    assert batched.shape == (7, 19, 19, 2)
    assert np.abs(single).mean() > 0.1
    assert end_point_difference(single, batched) < 1e-3


def test_pairs_reads_no_further_than_it_must():
    read = 0

    def grays():
        nonlocal read
        for gray in itertools.cycle(textures.moving(2, 1, 0)):
            read += 1
            yield gray

    flows = make("dis", 2).pairs(grays())
    next(flows)
    assert read <= 5
    flows.close()


@pytest.mark.parametrize(
    ("frames", "message"),
    [
        ([np.zeros((40, 40), np.float32)], "uint8"),
        ([np.zeros((40, 40, 3), np.uint8)], r"Received.*\[40, 40, 3\]"),
        ([np.zeros((40, n), np.uint8) for n in (40, 41)], "one size"),
    ],
)
def test_wrong_frames_are_refused(frames, message):
    with pytest.raises(ValueError, match=message):
        list(flow.Flow("dis").pairs(frames))


def test_another_method_is_refused():
    with pytest.raises(ValueError, match="farneback"):
        flow.Flow("farneback")


def test_missing_contrib_is_explained(monkeypatch):
    """Another wheel leaves an `optflow` behind that has no DualTVL1."""
    monkeypatch.setattr(cv2, "optflow", object())
    with pytest.raises(ImportError, match="opencv-contrib-python-headless"):
        flow.Flow("opencv")


def test_opencv_has_the_parameters_that_ours_has():
    default = cv2.optflow.DualTVL1OpticalFlow_create()
    assert flow.Flow("opencv").describe() == {
        "method": "opencv",
        "opencv": cv2.__version__.split(".")[0],
        "tau": default.getTau(),
        "lambda_": default.getLambda(),
        "theta": default.getTheta(),
        "scales": default.getScalesNumber(),
        "scale_step": default.getScaleStep(),
        "warps": default.getWarpingsNumber(),
        "epsilon": default.getEpsilon(),
        "inner": default.getInnerIterations(),
        "outer": default.getOuterIterations(),
    }
    assert default.getMedianFiltering() == 5
    assert default.getGamma() == 0
