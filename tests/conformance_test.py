"""Every model, by enumeration: saved, exported, replicated, in half precision.

Tiny ones on two windows; half precision at the full number of channels, too.
"""

import functools
import itertools

import keras
import numpy as np
import pytest
import tensorflow as tf

from lsts_tf import parts
from lsts_tf.networks import decoder

# Each kind of model, by name: a new one has to be entered here.
STREAMS = (("rgb",), ("flow",), ("rgb", "flow"))
HEADS = ("paper", "released")
DESIGNS = ("paper", "skip", "readout")
# Recipes besides the paper's, by the arguments of `decoder.build`; tiny.
SKIPS = {"Mixed_4f": (4, 4, 8), "Conv3d_2c_3x3": (8, 8, 4)}
RECIPES = {
    "plus": {"dropout": 0.2, "blur": 3.0, "centre_prior": "gaussian"},
    "plus_learnt_blur": {"blur": 3.0, "learn_blur": True},
    "plus_wide": {"map_size": (72, 96)},
    "plus_8": {"targets": 8, "centre_prior": "neutral", "blur": 3.0},
    "plus_skip": {"design": "skip", "skip_shapes": SKIPS},
    "plus_skip_8": {"design": "skip", "skip_shapes": SKIPS, "targets": 8},
    "plus_readout": {
        "design": "readout",
        "skip_shapes": SKIPS,
        "centre_prior": "gaussian",
        "sharpen": 1.3,
        "centre": 0.5,
    },
}
# The paper's network, of a size that no layer has to bring to the map's.
PAPERS = {
    f"{'_'.join(streams)}-{head}": {
        "streams": streams,
        "head": head,
        "map_size": (144, 256),
    }
    for streams, head in itertools.product(STREAMS, HEADS)
}


def _predict(model, x, training=False):
    return np.asarray(model(x, training=training))


def _assert_nearly_equal(exact, mixed, x, training, bound):
    """Half precision makes a difference, and a small one."""
    expected, got = (_predict(model, x, training) for model in (exact, mixed))
    assert got.dtype == "float32"
    error = np.sqrt(np.mean(np.square(got - expected)))
    assert 0 < error <= bound * np.ptp(expected)


def test_every_model_is_listed():
    assert set(HEADS) == set(decoder.LAST) == set(parts.HEADS)
    assert set(DESIGNS) == set(decoder.DESIGNS) == set(parts.DECODERS)


def _recipe(recipe, **arguments):
    """A model of a recipe and two windows of features."""
    arguments = {
        "streams": ("rgb",),
        "feature_shape": (3, 2, 2, 16),
        "map_size": (72, 128),
        "seed": 3,
        **(RECIPES | PAPERS)[recipe],
        **arguments,
    }
    model = decoder.build(**arguments)
    rng = np.random.default_rng(4)
    dtype = arguments.get("dtype", "float32").removeprefix("mixed_")
    x = {
        name: rng.random((2, *given.shape[1:])).astype(
            "float64" if dtype == "float64" else "float32"
        )
        for name, given in model.input.items()
    }
    return model, x


@pytest.mark.parametrize("recipe", RECIPES | PAPERS)
def test_models_are_saved_and_exported(recipe, tmp_path):
    model, x = _recipe(recipe)
    expected = _predict(model, x)
    model.save(tmp_path / "model.keras")
    again = keras.models.load_model(tmp_path / "model.keras")
    np.testing.assert_array_equal(_predict(again, x), expected)
    model.export(tmp_path / "exported", verbose=False)
    exported = tf.saved_model.load(tmp_path / "exported")
    np.testing.assert_allclose(exported.serve(x), expected, atol=1e-6)


@pytest.mark.parametrize("recipe", RECIPES)
def test_recipes_in_half_precision(recipe):
    exact, x = _recipe(recipe, dropout=0.0)
    mixed, _ = _recipe(recipe, dropout=0.0, dtype="mixed_bfloat16")
    _assert_nearly_equal(exact, mixed, x, True, 0.05)


def _train_one_step(strategy, build, x, y, traced):
    """One step of gradient descent, with synchronised BatchNorm.

    Plain descent, because it shows the gradients themselves: RMSProp's first
    step is little more than their sign.

    Returns:
        The loss, and {variable: its change}.
    """
    with strategy.scope():
        model = build()
        optimizer = keras.optimizers.SGD(1.0)
        optimizer.build(model.trainable_variables)
    before = {v.path: np.asarray(v) for v in model.variables}
    windows = len(y)

    def replica(x, y):
        with tf.GradientTape() as tape:
            error = tf.square(model(x, training=True) - y)
            axes = list(range(1, len(error.shape)))
            loss = tf.reduce_sum(tf.reduce_mean(error, axes)) / windows
        gradients = tape.gradient(loss, model.trainable_variables)
        optimizer.apply(gradients, model.trainable_variables)
        return loss

    step = functools.partial(strategy.run, replica)
    if traced:
        step = tf.function(step)
    batches = tf.data.Dataset.from_tensor_slices((x, y)).batch(windows)
    (batch,) = strategy.experimental_distribute_dataset(batches)
    loss = float(strategy.reduce("SUM", step(args=batch), axis=None))
    return loss, {
        v.path: np.asarray(v) - before[v.path] for v in model.variables
    }


@pytest.mark.parametrize("recipe", ["plus", "plus_8", "plus_skip_8", *PAPERS])
def test_two_replicas_equal_one(recipe, mirrored):
    """In float64; dropout's masks alone are not one replica's."""

    def build():
        model, _ = _recipe(
            recipe, dtype="float64", synchronized=True, dropout=0.0
        )
        return model

    model, x = _recipe(recipe, dtype="float64")
    rng = np.random.default_rng(1)
    y = rng.uniform(size=(2, *model.output_shape[1:]))
    # Not traced is quicker, and traced is how training runs.
    traced = recipe == "rgb_flow-released"
    one_loss, one = _train_one_step(
        tf.distribute.get_strategy(), build, x, y, traced
    )
    two_loss, two = _train_one_step(mirrored, build, x, y, traced)
    assert two_loss == pytest.approx(one_loss, rel=1e-5)
    assert one.keys() == two.keys()
    # TensorFlow resizes in float32, and so do the prior's gradients. Otherwise
    # BatchNorm's two square sums cancel; that is what remains.
    bound = 1e-10 if recipe in PAPERS else 1e-6
    for path, change in one.items():
        size = np.linalg.norm(change)
        assert size > 0, path
        assert np.linalg.norm(two[path] - change) <= bound * size, path


@pytest.mark.parametrize(
    # Root mean square over range; about twice what was seen, and eight times
    # apart as the significands are (8 and 11 bits).
    ("policy", "bound"),
    [("mixed_bfloat16", 0.03), ("mixed_float16", 0.004)],
)
@pytest.mark.parametrize("recipe", PAPERS)
def test_mixed_precision(recipe, policy, bound):
    full = {"feature_shape": (5, 2, 2, 1024), "map_size": (360, 640), "seed": 2}
    exact, x = _recipe(recipe, **full)
    mixed, _ = _recipe(recipe, **full, dtype=policy)
    assert mixed.get_layer("d1").compute_dtype == policy.removeprefix("mixed_")
    # As I3D leaves them: not negative, many zeros.
    rng = np.random.default_rng(4)
    x = {
        s: np.maximum(rng.normal(-0.1, 0.5, of.shape), 0).astype("float32")
        for s, of in x.items()
    }
    # In training BatchNorm stretches an untrained network's nearly flat maps.
    for training in (True, False):
        _assert_nearly_equal(exact, mixed, x, training, bound)
    assert np.ptp(_predict(exact, x, training=True)) > 0.2
