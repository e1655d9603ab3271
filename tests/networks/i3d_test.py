import json

import keras
import numpy as np
import pytest
import tensorflow as tf

from lsts_tf.networks import i3d, i3d_weights
from tests.networks import conftest


def _assert_recorded(found, golden):
    difference = found - golden
    assert found.shape == golden.shape
    assert np.abs(difference).max() < 2e-3
    assert np.linalg.norm(difference) < 1e-4 * np.linalg.norm(golden)


@pytest.mark.parametrize("frames", [9, 16, 79])
def test_network_gives_the_recorded_outputs(recorded, frames):
    model, weights, clip, golden = recorded
    mixed_5c = model.predict_on_batch(clip[None, :frames])
    _assert_recorded(mixed_5c, golden[f"mixed_5c_{frames}"])
    if f"logits_{frames}" in golden:
        reader = tf.train.load_checkpoint(weights)
        classifier = [
            reader.get_tensor(name)
            for part in "wb"
            for name in reader.get_variable_to_shape_map()
            if name.endswith(f"{conftest.UNIT}/conv_3d/{part}")
        ]
        logits = conftest.logits(mixed_5c, *classifier)
        _assert_recorded(logits, golden[f"logits_{frames}"])


def test_units_are_those_of_the_released_checkpoints(shared):
    path = shared / "i3d" / "released_checkpoints.json"
    released = json.loads(path.read_text())
    statistics = ("beta", "moving_mean", "moving_variance")
    parts = ("conv_3d/w", *(f"batch_norm/{p}" for p in statistics))
    names = {f"{unit.name}/{part}" for unit in i3d.units() for part in parts}
    names |= {f"{conftest.UNIT}/conv_3d/{p}" for p in "wb"}
    for checkpoint, scope in (
        ("rgb_imagenet", "RGB/inception_i3d/"),
        ("flow_imagenet", "Flow/inception_i3d/"),
    ):
        variables = released[checkpoint]["variables"]
        assert {name.removeprefix(scope) for name in variables} == names


@pytest.mark.parametrize(
    "size", [(79, 224, 224), (64, 64, 64), (16, 65, 40), (1, 32, 33)]
)
def test_shapes_of_the_table_are_those_of_the_model(size):
    frames, height, width = size
    model = i3d.build(2, frames=frames, height=height, width=width)
    for name, shape in i3d.shapes(*size).items():
        assert model.get_layer(name).output.shape == (None, *shape)
    pooled = i3d.pool(model.output).shape
    assert pooled == (None, *i3d.feature_shape(*size))


def test_pool_averages_boxes_of_six_by_three_by_three():
    x = np.random.default_rng(0).random((2, 8, 4, 3, 5), np.float32)
    boxes = np.lib.stride_tricks.sliding_window_view(x, (6, 3, 3), (1, 2, 3))
    np.testing.assert_allclose(i3d.pool(x), boxes.mean((-3, -2, -1)), atol=1e-6)


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


@pytest.mark.parametrize("stream", i3d_weights.CHANNELS)
def test_of_a_still_is_the_middle_of_a_long_clip_of_it(stream):
    """Far from the ends, where no step sees a zero."""
    channels = i3d_weights.CHANNELS[stream]
    network = i3d.build(channels, height=32, width=48)
    i3d_weights.load(network, stream, ("random",))
    names = ("Conv3d_2c_3x3", "Mixed_3c", "Mixed_4f", "Mixed_5c")
    rng = np.random.default_rng(3)
    frame = rng.uniform(-1, 1, (32, 48, channels)).astype(np.float32)
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
