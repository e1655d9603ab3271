"""TV-L1 optical flow by OpenCV's DualTVL1, as one compiled kernel.

The algorithm is that of C. Zach, T. Pock and H. Bischof, "A Duality Based
Approach for Realtime TV-L1 Optical Flow" (DAGM 2007), in the variant that
OpenCV's `DualTVL1OpticalFlow` computes: warping on a pyramid, a median filter
between the passes, and a stopping rule for each warp. Its parameters, borders
and interpolation are kept, so that the flow is the one Flow-I3D was trained
on; OpenCV's own cost comes from one core's scalar code.

In this module a *plane* is [N, H, W] float32, one image for each of N pairs.
u1 and u2 are the flow in x and y, p11, p12, p21, p22 the dual variables: pij
belongs to ui and to the direction x (j = 1) or y (j = 2).

What the compiler (XLA on a CPU) makes of it decides the speed, so:
planes are separate tensors and not stacked; the loops are not unrolled,
because it would fuse across iterations and compute stencils many times; sums
over a plane are written as sums of row blocks, because it adds up a plain
`sum` one element at a time.
"""

from collections.abc import Iterator
import functools

from keras import ops
import numpy as np

_SMALLEST_LEVEL = 16
# A cubic tap may lie four pixels outside, where everything is zero.
_MARGIN = 4
_CUBIC = -0.75
# Below this squared gradient OpenCV moves nothing (FLT_EPSILON).
_FLAT = 2.0**-23

# The optimal network that sorts five values in place: nine comparators.
_SORT5 = (
    (0, 1),
    (3, 4),
    (2, 4),
    (2, 3),
    (1, 4),
    (0, 3),
    (0, 2),
    (1, 3),
    (1, 2),
)


def flow(
    first,
    second,
    *,
    tau: float = 0.25,
    lambda_: float = 0.15,
    theta: float = 0.3,
    scales: int = 5,
    scale_step: float = 0.8,
    warps: int = 5,
    epsilon: float = 0.01,
    inner: int = 30,
    outer: int = 10,
):
    """Computes the motion from one image to the next, for N pairs.

    Every pair is computed as if it was alone: it stops by its own error and
    is then left as it is while the others go on. One pair a call is the
    fastest on a CPU, many a call on a GPU.

    The defaults are DualTVL1's. H and W must be known when this is traced.

    Args:
        first: [N, H, W], grey values in 0 to 255, any type.
        second: The same, one frame later.
        tau: Step of the dual ascent.
        lambda_: Weight of the images against the smoothness of the flow.
        theta: How tightly the two halves of the problem are coupled.
        scales: Levels of the pyramid; fewer where a side would fall below 16.
        scale_step: Size of a level relative to the next finer one.
        warps: How often the second image is warped on each level.
        epsilon: A warp ends when the mean squared update is no larger than
            the square of this, in pixels.
        inner: Most steps between two median filters.
        outer: Most median filters in a warp.

    Returns:
        float32 [N, H, W, 2]: (x, y) in pixels.
    """
    levels = _pyramid(first, second, scales, scale_step)
    u1 = u2 = ops.zeros_like(levels[-1][0])
    for image, moved in reversed(levels):
        height, width = image.shape[1:]
        if u1.shape != image.shape:
            u1, u2 = (
                _resize(u, height, width) * np.float32(1 / scale_step)
                for u in (u1, u2)
            )
        u1, u2 = _solve_level(
            image,
            moved,
            u1,
            u2,
            warps=warps,
            inner=inner,
            outer=outer,
            step=functools.partial(
                _step,
                limit=np.float32(lambda_ * theta),
                theta=np.float32(theta),
                ascent=np.float32(tau / theta),
            ),
            enough=np.float32(epsilon * epsilon * height * width),
        )
    return ops.stack([u1, u2], axis=-1)


def _pyramid(first, second, scales: int, scale_step: float) -> list[tuple]:
    """Returns (first, second) of each level, the finest first."""
    levels = [(ops.cast(first, "float32"), ops.cast(second, "float32"))]
    while len(levels) < scales:
        height, width = (
            int(np.rint(size * scale_step)) for size in levels[-1][0].shape[1:]
        )
        if min(height, width) < _SMALLEST_LEVEL:
            break
        # The step is that of the scale and not the ratio of the two sizes.
        levels.append(
            tuple(
                _resize(image, height, width, step=1 / scale_step)
                for image in levels[-1]
            )
        )
    return levels


def _solve_level(
    image, moved, u1, u2, *, warps, inner, outer, step, enough
) -> tuple:
    """Improves the flow on one level; returns u1 and u2."""
    sources = [_with_margin(plane) for plane in (moved, *_gradient(moved))]
    alone = image.shape[0] == 1

    def keep(active, new, old):
        # With one pair the loops end when it is done; there is nothing to
        # keep, and choosing would cost as much as a third of a step.
        if alone:
            return new
        active = active[:, None, None]
        return tuple(
            ops.where(active, a, b) for a, b in zip(new, old, strict=True)
        )

    def warp(count, u1, u2, *dual):
        terms = _linearise(image, sources, u1, u2)

        def iterate(count, active, *state):
            new, error = step(terms, *state)
            still = ops.logical_and(active, error > enough)
            return (count + 1, still, *keep(active, new, state))

        def smooth_then_iterate(count, active, u1, u2, *dual):
            u1, u2 = keep(active, (median5(u1), median5(u2)), (u1, u2))
            state = ops.while_loop(
                lambda count, active, *_: ops.logical_and(
                    count < inner, ops.any(active)
                ),
                iterate,
                (0, active, u1, u2, *dual),
            )[1:]
            return (count + 1, *state)

        state = ops.while_loop(
            lambda count, active, *_: ops.logical_and(
                count < outer, ops.any(active)
            ),
            smooth_then_iterate,
            (0, ops.ones(image.shape[:1], "bool"), u1, u2, *dual),
        )[2:]
        return (count + 1, *state)

    zero = ops.zeros_like(image)
    return ops.while_loop(
        lambda count, *_: count < warps,
        warp,
        (0, u1, u2, zero, zero, zero, zero),
    )[1:3]


def _linearise(image, sources, u1, u2) -> tuple:
    """Linearises the brightness difference around the present flow.

    Returns:
        Planes (constant, gx, gy, inverse): at the flow (v1, v2) the
        difference is constant + gx * v1 + gy * v2, and inverse is
        1 / (gx^2 + gy^2), 0 where the image is flat.
    """
    warped, gx, gy = _warp(sources, u1, u2)
    constant = warped - gx * u1 - gy * u2 - image
    square = gx * gx + gy * gy
    inverse = ops.where(square > _FLAT, 1 / ops.maximum(square, _FLAT), 0.0)
    return constant, gx, gy, inverse


def _step(terms, u1, u2, p11, p12, p21, p22, *, limit, theta, ascent) -> tuple:
    """Takes one primal and one dual step.

    Returns:
        The new (u1, u2, p11, p12, p21, p22), and for each pair the sum of
        the squared changes of its flow.
    """
    constant, gx, gy, inverse = terms
    difference = constant + gx * u1 + gy * u2
    # The thresholding step of Zach et al., eq. 15: its three cases are one
    # clipped value, times the gradient.
    move = ops.clip(-difference * inverse, -limit, limit)
    new1 = u1 + move * gx + theta * _divergence(p11, p12)
    new2 = u2 + move * gy + theta * _divergence(p21, p22)
    error = _sum(ops.square(new1 - u1) + ops.square(new2 - u2))
    return (
        new1,
        new2,
        *_ascend(new1, p11, p12, ascent),
        *_ascend(new2, p21, p22, ascent),
    ), error


def _ascend(u, px, py, ascent) -> tuple:
    """Takes the dual step of one component; zero beyond the last pixels."""
    dx = ops.pad(u[:, :, 1:] - u[:, :, :-1], ((0, 0), (0, 0), (0, 1)))
    dy = ops.pad(u[:, 1:] - u[:, :-1], ((0, 0), (0, 1), (0, 0)))
    shrink = 1 / (1 + ascent * ops.sqrt(dx * dx + dy * dy))
    return (px + ascent * dx) * shrink, (py + ascent * dy) * shrink


def _divergence(px, py):
    """Backward differences; zero outside."""
    left = ops.pad(px[:, :, :-1], ((0, 0), (0, 0), (1, 0)))
    above = ops.pad(py[:, :-1], ((0, 0), (1, 0), (0, 0)))
    return px - left + py - above


def _sum(plane):
    """Sums each image, in row blocks first; see the module's docstring."""
    blocks = min(8, plane.shape[1])
    rows = plane.shape[1] // blocks
    total = sum(plane[:, k * rows : (k + 1) * rows] for k in range(blocks))
    rest = plane[:, blocks * rows :]
    return ops.sum(total, axis=(1, 2)) + ops.sum(rest, axis=(1, 2))


def _gradient(plane) -> tuple:
    """Central differences, the border repeated."""
    across = ops.concatenate([plane[:, :, :1], plane, plane[:, :, -1:]], axis=2)
    down = ops.concatenate([plane[:, :1], plane, plane[:, -1:]], axis=1)
    return (
        0.5 * (across[:, :, 2:] - across[:, :, :-2]),
        0.5 * (down[:, 2:] - down[:, :-2]),
    )


def _with_margin(plane):
    margin = (_MARGIN, _MARGIN)
    return ops.pad(plane, ((0, 0), margin, margin))


def _warp(sources, u1, u2) -> list:
    """Samples planes at x + u1, y + u2, bicubically, zero outside.

    Args:
        sources: Planes with a margin of zeros around them.
        u1: Where to look, in x; a plane without the margin.
        u2: The same in y.

    Returns:
        Planes like u1.
    """
    count, height, width = u1.shape
    x, left = _locate(u1, np.arange(width, dtype=np.float32), width)
    y, top = _locate(u2, np.arange(height, dtype=np.float32)[:, None], height)
    stride = width + 2 * _MARGIN
    image = np.arange(count, dtype=np.int32)[:, None, None]
    corner = image * (stride * (height + 2 * _MARGIN)) + top * stride + left
    across, down = _cubic_weights(x), _cubic_weights(y)
    # One index a tap into a flat plane: it is the only form of a gather that
    # the compiler fuses with the arithmetic around it.
    indices = [
        [corner + (row * stride + column) for column in range(4)]
        for row in range(4)
    ]
    return [
        sum(
            down[row]
            * sum(
                across[column] * ops.take(flat, indices[row][column])
                for column in range(4)
            )
            for row in range(4)
        )
        for flat in (ops.reshape(source, (-1,)) for source in sources)
    ]


def _locate(u, grid, size: int) -> tuple:
    """Returns where in its cell each sample lies, and its first tap."""
    # Farther out nothing changes any more: all four taps are zeros.
    place = ops.clip(grid + u, 1.0 - _MARGIN, size + 1.0)
    cell = ops.floor(place)
    return place - cell, ops.cast(cell, "int32") + (_MARGIN - 1)


def _cubic_weights(t) -> tuple:
    """Weights of the taps at -1, 0, 1 and 2 for a sample at t in [0, 1)."""

    def near(t):
        return ((_CUBIC + 2) * t - (_CUBIC + 3)) * t * t + 1

    def far(t):
        return ((_CUBIC * t - 5 * _CUBIC) * t + 8 * _CUBIC) * t - 4 * _CUBIC

    return far(t + 1), near(t), near(1 - t), far(2 - t)


def _resize(plane, height: int, width: int, *, step: float | None = None):
    """Resizes bilinearly as OpenCV does: no smoothing, the border repeated.

    Two taps in each direction rather than a matrix product, which GPUs
    would round to ten bits.

    Args:
        plane: [N, H, W].
        height: Rows of the result.
        width: Columns of the result.
        step: Distance between samples; the ratio of the sizes by default.

    Returns:
        [N, height, width].
    """
    for axis, size in ((2, width), (1, height)):
        present = plane.shape[axis]
        place = (np.arange(size) + 0.5) * (step or present / size) - 0.5
        cell = np.floor(place)
        weight = np.where((cell < 0) | (cell >= present - 1), 0, place - cell)
        cell = np.clip(cell, 0, present - 1).astype(np.int32)
        following = np.minimum(cell + 1, present - 1)
        weight = weight.astype(np.float32)
        if axis == 1:
            weight = weight[:, None]
        plane = ops.take(plane, cell, axis=axis) * (1 - weight) + (
            ops.take(plane, following, axis=axis) * weight
        )
    return plane


def median5(plane):
    """Filters by the median of 5 x 5 pixels, the border repeated.

    Columns of five are sorted first, once for all windows that share them;
    a network of comparators then merges five of them as far as the middle
    value needs it.

    Args:
        plane: [N, H, W].

    Returns:
        [N, H, W].
    """
    height, width = plane.shape[1:]
    plane = _repeat_border(_repeat_border(plane, 1), 2)
    column = [plane[:, k : k + height] for k in range(5)]
    for low, high in _SORT5:
        column[low], column[high] = (
            ops.minimum(column[low], column[high]),
            ops.maximum(column[low], column[high]),
        )
    values = [rank[:, :, k : k + width] for rank in column for k in range(5)]
    for low, high, wants_low, wants_high in _median_network():
        a, b = values[low], values[high]
        if wants_low:
            values[low] = ops.minimum(a, b)
        if wants_high:
            values[high] = ops.maximum(a, b)
    return values[12]


def _repeat_border(plane, axis: int):
    first = plane[:, :1] if axis == 1 else plane[:, :, :1]
    last = plane[:, -1:] if axis == 1 else plane[:, :, -1:]
    return ops.concatenate([first, first, plane, last, last], axis=axis)


@functools.cache
def _median_network() -> tuple[tuple[int, int, bool, bool], ...]:
    """Finds the comparators that bring the median of 25 to place 12.

    Place 5 r + c holds the r-th smallest of column c. Rows are sorted next;
    then the median is among the thirteen places on and near the
    anti-diagonal, because every other has at least thirteen values on one
    side of it. Those are sorted. By the 0-1 principle it is enough to look
    at zeros and ones: comparators that never exchange are left out, and so
    are outputs that nobody reads.

    Returns:
        (place of the smaller, place of the larger, whether the smaller is
        read later, whether the larger is).
    """
    fillings = np.stack(
        np.meshgrid(*[np.arange(6)] * 5, indexing="ij"), axis=-1
    ).reshape(-1, 1, 5)
    rank = np.arange(5)[:, None]
    places = (rank >= 5 - fillings).reshape(-1, 25)
    median = places.sum(axis=1) >= 13
    kept = []
    for low, high in _comparators():
        swaps = places[:, low] & ~places[:, high]
        if swaps.any():
            kept.append((low, high))
            places[swaps, low], places[swaps, high] = False, True
    if not np.array_equal(places[:, 12], median):
        raise RuntimeError("The median network is wrong.")
    read = {12}
    network = []
    for low, high in reversed(kept):
        if read & {low, high}:
            network.append((low, high, low in read, high in read))
            read |= {low, high}
    return tuple(reversed(network))


def _comparators() -> Iterator[tuple[int, int]]:
    for row in range(5):
        for low, high in _SORT5:
            yield 5 * row + low, 5 * row + high
    middle = [
        5 * r + c
        for r in range(5)
        for c in range(5)
        if (r + 1) * (c + 1) <= 13 and (5 - r) * (5 - c) <= 13
    ]
    # Six places lie below these thirteen, so their middle is the median; an
    # odd-even transposition sort of them has the median in place 12.
    for start in range(len(middle)):
        for k in range(start % 2, len(middle) - 1, 2):
            yield middle[k], middle[k + 1]
