import json

import hypothesis
import hypothesis.strategies as st
import keras
import numpy as np
import pytest
import tensorflow as tf

from lsts_tf.networks import i3d, i3d_weights
from tests import i3d_logits

CHANNELS = {"rgb": 3, "flow": 2}


@pytest.fixture(scope="module", params=["rgb", "flow"])
def recorded(request, shared):
    """Network, its classifier, recorded clip and recorded outputs."""
    stream = request.param
    folder = shared / "i3d" / stream
    model = i3d.build(CHANNELS[stream])
    i3d_weights.load(model, stream, (str(folder / "ckpt"),))
    reader = tf.train.load_checkpoint(str(folder / "ckpt"))
    classifier = [
        reader.get_tensor(name)
        for part in "wb"
        for name in reader.get_variable_to_shape_map()
        if name.endswith(f"{i3d_logits.UNIT}/conv_3d/{part}")
    ]
    with np.load(folder / "clip.npz") as file:
        if stream == "rgb":
            clip = file["frames"].astype(np.float32) * np.float32(2 / 255) - 1
        else:
            clip = file["flow"].astype(np.float32) / 32
    with np.load(folder / "golden.npz") as file:
        golden = dict(file)
    return model, classifier, clip[None], golden


def _assert_recorded(found, golden):
    difference = found - golden
    assert found.shape == golden.shape
    assert np.abs(difference).max() < 2e-3
    assert np.linalg.norm(difference) < 1e-4 * np.linalg.norm(golden)


@pytest.mark.parametrize("frames", [9, 16, 79])
def test_network_gives_the_recorded_outputs(recorded, frames):
    model, classifier, clip, golden = recorded
    mixed_5c = model.predict_on_batch(clip[:, :frames])
    _assert_recorded(mixed_5c, golden[f"mixed_5c_{frames}"])
    if f"logits_{frames}" in golden:
        logits = i3d_logits.logits(mixed_5c, *classifier)
        _assert_recorded(logits, golden[f"logits_{frames}"])


def test_units_are_those_of_the_released_checkpoints(shared):
    path = shared / "i3d" / "released_checkpoints.json"
    released = json.loads(path.read_text())
    statistics = ("beta", "moving_mean", "moving_variance")
    parts = ("conv_3d/w", *(f"batch_norm/{p}" for p in statistics))
    names = {f"{unit.name}/{part}" for unit in i3d.units() for part in parts}
    names |= {f"{i3d_logits.UNIT}/conv_3d/{p}" for p in "wb"}
    for checkpoint, scope in (
        ("rgb_imagenet", "RGB/inception_i3d/"),
        ("flow_imagenet", "Flow/inception_i3d/"),
    ):
        variables = released[checkpoint]["variables"]
        assert {name.removeprefix(scope) for name in variables} == names


@pytest.mark.parametrize(
    ("frames", "steps"), [(1, 1), (9, 1), (16, 1), (32, 1), (64, 3), (80, 5)]
)
def test_shorter_windows_are_averaged_whole(frames, steps):
    assert i3d.feature_shape(frames, 224, 224)[0] == steps


@pytest.mark.parametrize("size", [(79, 224, 224), (16, 65, 40), (1, 32, 33)])
def test_shapes_of_the_table_are_those_of_the_model(size):
    frames, height, width = size
    model = i3d.build(2, frames=frames, height=height, width=width)
    for name, shape in i3d.shapes(*size).items():
        assert model.get_layer(name).output.shape == (None, *shape)
    pooled = i3d.pool(model.output).shape
    assert pooled == (None, *i3d.feature_shape(*size))


@hypothesis.given(
    size=st.integers(1, 100), kernel=st.integers(1, 7), stride=st.integers(1, 3)
)
def test_same_padding_lets_the_last_window_end_at_the_end(size, kernel, stride):
    before, after = i3d.same_padding(size, kernel, stride)
    windows = range(-before, size + after - kernel + 1, stride)
    assert len(windows) == -(-size // stride)
    assert 0 <= after - before <= 1
    # No zeros are put where the last window does not reach.
    assert after == 0 or windows[-1] + kernel == size + after


def test_pool_averages_boxes_of_six_by_three_by_three():
    x = np.random.default_rng(0).normal(size=(2, 8, 4, 3, 5))
    found = keras.ops.convert_to_numpy(i3d.pool(x.astype(np.float32)))
    assert found.shape == (2, 3, 2, 1, 5)
    for t in range(3):
        for row in range(2):
            box = x[:, t : t + 6, row : row + 3, 0:3]
            np.testing.assert_allclose(
                found[:, t, row, 0], box.mean((1, 2, 3)), atol=1e-6
            )


def test_model_is_frozen_and_ignores_the_statistics_of_a_batch():
    model = i3d.build(2, frames=8, height=32, width=32)
    assert not model.trainable_variables
    x = np.random.default_rng(0).normal(size=(2, 8, 32, 32, 2))
    np.testing.assert_array_equal(model(x), model(x, training=True))


def test_batch_norm_has_the_published_epsilon_and_no_scale():
    model = i3d.build(2)
    norms = [x for x in model.layers if x.name.endswith("__batch_norm")]
    assert len(norms) == 57
    assert all(norm.epsilon == 1e-3 and not norm.scale for norm in norms)


def test_mixed_precision_of_others_leaves_the_front_end_alone(request):
    set_policy = keras.config.set_dtype_policy
    request.addfinalizer(lambda: set_policy("float32"))
    set_policy("mixed_bfloat16")
    model = i3d.build(2, frames=9)
    assert model.output.dtype == "float32"
    # The first layer is the input, which computes nothing.
    dtypes = {layer.compute_dtype for layer in model.layers[1:]}
    assert dtypes == {"float32"}


def test_multiply_adds_are_those_counted_by_hand():
    costs = i3d.multiply_adds(79, 3)
    first = 40 * 112 * 112 * 64 * 7 * 7 * 7 * 3
    assert costs["Conv3d_1a_7x7"] == first
    assert round(sum(costs.values()) / 1e9, 2) == 138.94
    assert round(sum(i3d.multiply_adds(79, 2).values()) / 1e9, 2) == 127.92


@pytest.mark.parametrize("stream", CHANNELS)
def test_of_a_still_is_the_middle_of_a_long_clip_of_it(stream):
    """Far from the ends, where no step sees a zero."""
    network = i3d.build(CHANNELS[stream], height=32, width=48)
    i3d_weights.load(network, stream, ("random",))
    names = ("Conv3d_2c_3x3", "Mixed_3c", "Mixed_4f", "Mixed_5c")
    rng = np.random.default_rng(3)
    frame = rng.uniform(-1, 1, (32, 48, CHANNELS[stream])).astype(np.float32)
    long = np.repeat(frame[None, None], 208, axis=1)
    want = i3d.at(network, names)(long)
    found = i3d.at(i3d.of_still(network), names)(frame[None, None])
    for name in names:
        steps = np.asarray(want[name])
        middle = steps[:, steps.shape[1] // 2]
        # Not a comparison of zeros, and not so at the ends.
        assert middle.std() > 0.01
        assert not np.allclose(steps[:, -1], middle, rtol=1e-2)
        np.testing.assert_allclose(
            found[name][:, 0], middle, atol=2e-6 * np.abs(middle).max()
        )
