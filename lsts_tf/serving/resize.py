"""OpenCV's resizing of 8-bit images as a TensorFlow graph, bit for bit.

`preprocess.squeeze` and `flow.gray` resize by OpenCV, whose arithmetic for
8-bit images is its own: weights of eleven bits, products cut to whole numbers,
sums in a fixed order. A graph that is to give the same maps has to compute the
same grey levels, so this follows OpenCV 5 step by step; sizes may be unknown
when it is traced. An image is uint8 [H, W, C], a grey one [H, W].
A size is rows and columns.
"""

import tensorflow as tf

# Weights of the bilinear filter are whole multiples of 1 / 2048.
_ONE = 2048.0
# A pixel that a cell covers by less than this is left out of its mean.
_SLIVER = 1e-3


def gray(images: tf.Tensor) -> tf.Tensor:
    """Grey levels: `cv2.cvtColor(image, cv2.COLOR_RGB2GRAY)`.

    Args:
        images: uint8 [..., 3], RGB.

    Returns:
        uint8 [...].
    """
    # The weights of BT.601 in units of 2^-15.
    weights = tf.constant([9798, 19235, 3735], tf.int32)
    total = tf.reduce_sum(tf.cast(images, tf.int32) * weights, axis=-1)
    return tf.cast(_halve(total + 2**14, 15), tf.uint8)


def squeeze(image: tf.Tensor, size: tuple[int, int]) -> tf.Tensor:
    """As `preprocess.squeeze`.

    Args:
        image: uint8 [H, W, 3].
        size: Rows and columns of the result.

    Returns:
        uint8 [*size, 3].
    """
    return tf.cond(
        tf.reduce_all(tf.shape(image)[:2] >= 2 * tf.constant(size)),
        lambda: tf.stack(
            [area(image[..., channel], size) for channel in range(3)], axis=-1
        ),
        lambda: linear(image, size),
    )


def linear(image: tf.Tensor, size: tuple[int, int]) -> tf.Tensor:
    """`cv2.resize(image, size[::-1], interpolation=cv2.INTER_LINEAR)`.

    Args:
        image: uint8 [H, W, C].
        size: Rows and columns of the result.

    Returns:
        uint8 [*size, C].
    """
    shape = tf.shape(image)
    return _linear(
        image, size, _centres(shape[1], size[1]), _centres(shape[0], size[0])
    )


def area(image: tf.Tensor, size: tuple[int, int]) -> tf.Tensor:
    """`cv2.resize(image, size[::-1], interpolation=cv2.INTER_AREA)`.

    Means over cells where both sides shrink; where one grows, OpenCV
    interpolates between neighbours instead.

    Args:
        image: uint8 [H, W].
        size: Rows and columns of the result.

    Returns:
        uint8 [*size].
    """
    shape = tf.shape(image)
    return tf.cond(
        tf.reduce_all(shape >= size),
        lambda: _means(image, size),
        lambda: _linear(
            image[..., None],
            size,
            _edges(shape[1], size[1]),
            _edges(shape[0], size[0]),
        )[..., 0],
    )


# The left of two neighbours, and the weight of the right one: [size] each.
_Places = tuple[tf.Tensor, tf.Tensor]


def _centres(length: tf.Tensor, size: int) -> _Places:
    place, _, scale = _grid(length, size)
    exact = tf.cast((place + 0.5) * scale - 0.5, tf.float32)
    left = tf.floor(exact)
    return tf.cast(left, tf.int32), exact - left


def _edges(length: tf.Tensor, size: int) -> _Places:
    place, inverse, scale = _grid(length, size)
    left = tf.floor(place * scale)
    weight = tf.cast(place + 1 - (left + 1) * inverse, tf.float32)
    weight = tf.where(weight <= 0, 0.0, weight - tf.floor(weight))
    return tf.cast(left, tf.int32), weight


def _grid(
    length: tf.Tensor, size: int
) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
    """Places 0 … size - 1, the magnification, and the pixels a place."""
    inverse = size / tf.cast(length, tf.float64)
    return tf.range(size, dtype=tf.float64), inverse, 1 / inverse


def _linear(
    image: tf.Tensor,
    size: tuple[int, int],
    across: _Places,
    down: _Places,
) -> tf.Tensor:
    shape = tf.shape(image)
    left, weight = across
    # Columns outside do not count; rows outside are the border's, and their
    # two products are cut one by one.
    inside = (left >= 0) & (left < shape[1] - 1)
    near, far = _fixed(tf.where(inside, weight, 0.0))

    def row(index: tf.Tensor) -> tf.Tensor:
        some = tf.gather(image, tf.clip_by_value(index, 0, shape[0] - 1))
        both = [
            tf.gather(
                tf.cast(some, tf.int32),
                tf.clip_by_value(left + step, 0, shape[1] - 1),
                axis=1,
            )
            for step in (0, 1)
        ]
        total = both[0] * near[:, None] + both[1] * far[:, None]
        return _halve(total, 4)

    top, weight = down
    near_row, far_row = _fixed(weight)
    total = _halve(row(top) * near_row[:, None, None], 16)
    total += _halve(row(top + 1) * far_row[:, None, None], 16)
    result = tf.cast(_halve(total + 2, 2), tf.uint8)
    return tf.ensure_shape(result, (*size, image.shape[2]))


def _fixed(weight: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
    """The weights of both neighbours as whole numbers."""
    return (
        tf.cast(tf.round((1 - weight) * _ONE), tf.int32),
        tf.cast(tf.round(weight * _ONE), tf.int32),
    )


def _halve(number: tf.Tensor, times: int) -> tf.Tensor:
    return tf.bitwise.right_shift(number, tf.constant(times, tf.int32))


def _means(image: tf.Tensor, size: tuple[int, int]) -> tf.Tensor:
    shape = tf.shape(image)
    # Where cells are whole pixels, OpenCV adds up whole numbers and divides
    # once, and rounds halves of 2 x 2 pixels up.
    whole = tf.reduce_all(shape % size == 0)
    total = tf.cast(image, tf.float32)
    for axis in (1, 0):
        total = _add_up(total, axis, size[axis], whole)
    count = tf.cast(tf.reduce_prod(shape // size), tf.float64)
    mean = tf.round(total * tf.cast(1 / count, tf.float32))
    four = tf.floor((total + 2) / 4)
    mean = tf.where(tf.reduce_all(shape == 2 * tf.constant(size)), four, mean)
    result = tf.cast(tf.where(whole, mean, tf.round(total)), tf.uint8)
    return tf.ensure_shape(result, size)


def _add_up(
    image: tf.Tensor, axis: int, size: int, whole: tf.Tensor
) -> tf.Tensor:
    """Sums along an axis, pixel by pixel in OpenCV's order."""
    length = tf.shape(image)[axis]
    indices, weights = _cells(length, size)
    weights = tf.where(whole, tf.sign(weights), weights)

    def add(k: tf.Tensor, total: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        weight = weights[k] if axis else weights[k][:, None]
        return k + 1, total + tf.gather(image, indices[k], axis=axis) * weight

    shape = tf.shape(image)
    shape = tf.stack([shape[0], size] if axis else [size, shape[1]])
    return tf.while_loop(
        lambda k, _: k < tf.shape(indices)[0],
        add,
        (0, tf.zeros(shape)),
        shape_invariants=(tf.TensorShape([]), tf.TensorShape([None, None])),
        parallel_iterations=1,
    )[1]


def _cells(length: tf.Tensor, size: int) -> tuple[tf.Tensor, tf.Tensor]:
    """Pixels of each cell and their weights: [K, size] each."""
    place, _, scale = _grid(length, size)
    exact = tf.cast(length, tf.float64)
    begin = place * scale
    end = begin + scale
    cell = tf.minimum(scale, exact - begin)
    last = tf.minimum(tf.floor(end), exact - 1)
    first = tf.minimum(tf.math.ceil(begin), last)
    taps = tf.range(tf.math.ceil(scale) + 2, dtype=tf.float64)
    index = first - 1 + taps[:, None]
    weight = tf.where((index >= first) & (index < last), 1 / cell, 0)
    before = tf.where(first - begin > _SLIVER, (first - begin) / cell, 0)
    rest = tf.minimum(tf.minimum(end - last, 1), cell)
    behind = tf.where(end - last > _SLIVER, rest / cell, 0)
    weight = tf.where(index == first - 1, before, weight)
    weight = tf.where(index == last, behind, weight)
    index = tf.clip_by_value(index, 0, exact - 1)
    return tf.cast(index, tf.int32), tf.cast(weight, tf.float32)
