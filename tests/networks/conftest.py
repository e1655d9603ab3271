"""Networks of I3D: recorded ones, with their classifier, and lively ones."""

import keras
import numpy as np
import pytest

from lsts_tf.networks import i3d, i3d_weights

# The classifier behind Mixed_5c, which the recorded networks end with.
UNIT = "Logits/Conv3d_0c_1x1"


def logits(mixed_5c, kernel, bias):
    """Mean over time of the classes of boxes of 2 x 7 x 7, [batch, classes].

    Args:
        mixed_5c: [batch, steps, 7, 7, 1024].
        kernel: [1, 1, 1, 1024, classes].
        bias: [classes].
    """
    x = np.asarray(mixed_5c, np.float64).mean((2, 3))
    x = (x[:, :-1] + x[:, 1:]) / 2
    return (x @ kernel[0, 0, 0] + bias).mean(1)


@pytest.fixture(scope="session", params=["rgb", "flow"])
def recorded(request, shared):
    """Network, place of its weights, recorded clip and recorded outputs."""
    stream = request.param
    folder = shared / "i3d" / stream
    model = i3d.build(i3d_weights.CHANNELS[stream])
    i3d_weights.load(model, stream, (str(folder / "ckpt"),))
    with np.load(folder / "clip.npz") as file:
        if stream == "rgb":
            clip = file["frames"].astype(np.float32) * np.float32(2 / 255) - 1
        else:
            clip = file["flow"].astype(np.float32) / 32
    with np.load(folder / "golden.npz") as file:
        return model, str(folder / "ckpt"), clip, dict(file)


def lively(channels, size):
    """A network with random weights, and BatchNorm that does something."""
    network = i3d.build(channels, height=size, width=size)
    i3d_weights.load(network, {3: "rgb", 2: "flow"}[channels], ("random",))
    rng = np.random.default_rng(channels)
    for layer in network.layers:
        if isinstance(layer, keras.layers.BatchNormalization):
            count = layer.beta.shape[0]
            layer.beta.assign(rng.uniform(-0.2, 0.5, count))
            layer.moving_mean.assign(rng.uniform(-0.3, 0.3, count))
            layer.moving_variance.assign(rng.uniform(0.5, 2, count))
    return network
