"""OpenCV's resizing of 8-bit images in a TensorFlow graph.

`preprocess.squeeze` and `flow.gray` resize by OpenCV. TensorFlow's means over
areas are the same but for a grey level in one pixel of a hundred, which moves
maps of flow by some thousandths. Its bilinear filter is not: OpenCV cuts
products to whole numbers, which changes one pixel of eight by a level and maps
by up to 0.017, more than `export` allows, so `linear` cuts them too. Sizes may
be unknown when a graph is traced. A size is rows and columns.
"""

import tensorflow as tf


def gray(frame: tf.Tensor, size: tuple[int, int]) -> tf.Tensor:
    """As `flow.gray`, uint8 [H, W, 3] to [*size], but for few pixels' levels.

    Not for frames of which one side is shorter than wanted and the other one
    longer: there OpenCV skips pixels, and this takes means.
    """
    # The weights of BT.601 in units of 2^-15.
    weights = tf.constant([9798, 19235, 3735], tf.int32)
    total = tf.reduce_sum(
        tf.cast(frame, tf.int32) * weights, axis=-1, keepdims=True
    )
    return _area(_halve(total + 2**14, 15), size)[..., 0]


def squeeze(frame: tf.Tensor, size: tuple[int, int]) -> tf.Tensor:
    """As `preprocess.squeeze`, uint8 [H, W, 3] to [*size, 3].

    In few pixels of large frames it is another level.
    """
    return tf.cond(
        tf.reduce_all(tf.shape(frame)[:2] >= 2 * tf.constant(size)),
        lambda: _area(frame, size),
        lambda: linear(frame, size),
    )


def _area(image: tf.Tensor, size: tuple[int, int]) -> tf.Tensor:
    mean = tf.image.resize(image, size, method="area")
    # Of 2 x 2 pixels OpenCV rounds halves up, of others to even levels.
    is_half = tf.reduce_all(tf.shape(image)[:2] == 2 * tf.constant(size))
    rounded = tf.where(is_half, tf.floor(mean + 0.5), tf.round(mean))
    return tf.cast(rounded, tf.uint8)


def linear(image: tf.Tensor, size: tuple[int, int]) -> tf.Tensor:
    """`cv2.resize` bit for bit, bilinear: uint8 [H, W, C] to [*size, C]."""
    height, width = tf.unstack(tf.shape(image)[:2])
    pixels = tf.cast(image, tf.int32)
    left, weight = _places(width, size[1])
    # Columns outside do not count; rows outside are the border's, and their
    # two products are cut one by one.
    inside = (left >= 0) & (left < width - 1)
    near, far = _fixed(tf.where(inside, weight, 0.0)[:, None])
    pixels = _halve(
        _taken(pixels, left, 1) * near + _taken(pixels, left + 1, 1) * far, 4
    )
    top, weight = _places(height, size[0])
    near, far = _fixed(weight[:, None, None])
    total = _halve(_taken(pixels, top, 0) * near, 16)
    total += _halve(_taken(pixels, top + 1, 0) * far, 16)
    result = tf.cast(_halve(total + 2, 2), tf.uint8)
    return tf.ensure_shape(result, (*size, image.shape[2]))


def _places(length: tf.Tensor, size: int) -> tuple[tf.Tensor, tf.Tensor]:
    """The left of two neighbours, and the weight of the right one."""
    scale = 1 / (size / tf.cast(length, tf.float64))
    exact = (tf.range(size, dtype=tf.float64) + 0.5) * scale - 0.5
    exact = tf.cast(exact, tf.float32)
    left = tf.floor(exact)
    return tf.cast(left, tf.int32), exact - left


def _taken(pixels: tf.Tensor, places: tf.Tensor, axis: int) -> tf.Tensor:
    last = tf.shape(pixels)[axis] - 1
    return tf.gather(pixels, tf.clip_by_value(places, 0, last), axis=axis)


def _fixed(weight: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
    """The weights of both neighbours, as whole multiples of 1 / 2048."""
    return (
        tf.cast(tf.round((1 - weight) * 2048), tf.int32),
        tf.cast(tf.round(weight * 2048), tf.int32),
    )


def _halve(number: tf.Tensor, times: int) -> tf.Tensor:
    return tf.bitwise.right_shift(number, tf.constant(times, tf.int32))
