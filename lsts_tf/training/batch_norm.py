"""BatchNorm by TensorFlow's one operation, which Keras does not call.

Keras composes it of many, each of which reads and writes whole tensors, which
takes longest on a CPU. Networks do not know TensorFlow, so training puts it
into their layers. Only `call` changes: variables, names and what is saved
remain Keras'.
"""

import functools
from typing import Any

import keras
import tensorflow as tf


def fuse(model: keras.Model) -> None:
    """Lets the model's BatchNorms train by TensorFlow's fused operation.

    Those that see all replicas remain as they are: it sees its own only.

    Args:
        model: Whose layers change, those of nested models excepted.
    """
    for layer in model.layers:
        if (
            isinstance(layer, keras.layers.BatchNormalization)
            and not layer.synchronized
        ):
            layer.call = functools.partial(_call, layer, layer.call)


def _call(
    layer: keras.layers.BatchNormalization,
    by_keras: Any,
    x: Any,
    training: bool | None = None,
    mask: Any = None,
) -> Any:
    if not training or not layer.trainable:
        return by_keras(x, training=training, mask=mask)
    # The operation takes [batch, height, width, channels].
    pictures = tf.reshape(x, (tf.shape(x)[0], -1, *x.shape[-2:]))
    y, mean, variance, *_ = tf.compat.v1.nn.fused_batch_norm(
        pictures,
        layer.gamma.value,
        layer.beta.value,
        epsilon=layer.epsilon,
        is_training=True,
    )
    # It divides by one less than the number of places; Keras does not.
    places = tf.cast(tf.size(x) // x.shape[-1], variance.dtype)
    variance *= (places - 1.0) / places
    for moving, batch in (
        (layer.moving_mean, mean),
        (layer.moving_variance, variance),
    ):
        moving.assign(
            moving * layer.momentum
            + tf.stop_gradient(batch) * (1.0 - layer.momentum)
        )
    return tf.reshape(y, tf.shape(x))
