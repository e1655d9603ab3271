"""TV-L1 optical flow by OpenCV's DualTVL1, as one compiled kernel.

The algorithm is that of C. Zach, T. Pock and H. Bischof, "A Duality Based
Approach for Realtime TV-L1 Optical Flow" (DAGM 2007), in the variant that
OpenCV's `DualTVL1OpticalFlow` computes: warping on a pyramid, a median filter
between the passes, and a stopping rule for each warp. Its parameters, borders
and interpolation are kept, so that the flow is the one Flow-I3D was trained
on; OpenCV's own cost comes from one core's scalar code.

A *plane* is [N, H, W] float32, one image for each of N pairs. *Rows* are the
same with four zeros after each row, in one line: [N, H * (W + 4)]. u1 and u2
are the flow in x and y; p11, p12, p21, p22 the dual variables, where pij
belongs to ui and to the direction x (j = 1) or y (j = 2).

How it is written is decided by what XLA makes of it on a CPU:
- The solver works on rows, because one long loop has no ends of rows, which
  the compiler would treat pixel by pixel, for a third of the time.
- u1, u2 and the four p are separate tensors: few operands a kernel, or it
  is split over threads, which then cost more than the arithmetic.
- The loops are not unrolled: it would fuse across iterations and compute
  each stencil many times.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

from keras import ops
import numpy as np

# A tensor of Keras' backend.
Tensor = Any


class Parameters(NamedTuple):
    """DualTVL1's parameters; its defaults are the same in OpenCV 3, 4 and 5.

    Attributes:
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
    """

    tau: float = 0.25
    lambda_: float = 0.15
    theta: float = 0.3
    scales: int = 5
    scale_step: float = 0.8
    warps: int = 5
    epsilon: float = 0.01
    inner: int = 30
    outer: int = 10


PARAMETERS = Parameters()
_LIMIT = np.float32(PARAMETERS.lambda_ * PARAMETERS.theta)
_THETA = np.float32(PARAMETERS.theta)
_ASCENT = np.float32(PARAMETERS.tau / PARAMETERS.theta)
_SMALLEST_LEVEL = 16
# A cubic tap may lie four pixels outside, where everything is zero.
_MARGIN = 4
# Between the rows lie as many zeros as the median filter needs for a border.
_GAP = 4
_CUBIC = -0.75
# Below this squared gradient OpenCV moves nothing (FLT_EPSILON).
_FLAT = 2.0**-23

# The optimal network that sorts five values in place: nine comparators.
_SORT5 = (
    *((0, 1), (3, 4), (2, 4), (2, 3), (1, 4)),
    *((0, 3), (0, 2), (1, 3), (1, 2)),
)
# Brings the median of 25 to place 12, where place 5 r + c holds the r-th
# smallest of column c. Rows are sorted first. Then the median is among the
# thirteen places on and near the anti-diagonal, because every other has at
# least thirteen values on one side of it. They are sorted by odd-even
# transposition, without the comparators that never exchange anything (the test
# proves it by zeros and ones) or have no effect on place 12.
MEDIAN25 = (
    *((5 * row + a, 5 * row + b) for row in range(5) for a, b in _SORT5),
    *((9, 11), (17, 20), (4, 7), (8, 9), (11, 12), (13, 15), (16, 17)),
    *((20, 21), (3, 4), (7, 8), (9, 11), (12, 13), (15, 16), (4, 7), (8, 9)),
    *((11, 12), (13, 15), (16, 17), (7, 8), (9, 11), (12, 13), (15, 16)),
    *((17, 20), (8, 9), (11, 12), (13, 15), (16, 17), (7, 8), (9, 11)),
    *((12, 13), (15, 16), (8, 9), (11, 12), (13, 15), (9, 11), (12, 13)),
    (11, 12),
)


def flow(first: Tensor, second: Tensor, *, burst: int = 1) -> Tensor:
    """Computes the motion from one image to the next, for N pairs.

    No pair depends on the others: it stops by its own error and is then left
    as it is while they go on. (Another N is other machine code, though, which
    may round differently.) One pair a call is the fastest on a CPU, many a
    call on a GPU.

    Args:
        first: [N, H, W], grey values in 0 to 255, any type. N, H and W must
            be known when this is traced.
        second: The same, one frame later.
        burst: Of many pairs, how many steps are taken between two looks at
            whether any of them goes on; a divisor of `Parameters.inner`. The
            numbers are the same; a GPU waits for the processor at each look.

    Returns:
        float32 [N, H, W, 2]: (x, y) in pixels.
    """
    levels = _pyramid(first, second)
    u1 = u2 = ops.zeros_like(levels[-1][0])
    for image, moved in reversed(levels):
        height, width = image.shape[1:]
        if u1.shape != image.shape:
            u1, u2 = (
                _resize(u, height, width)
                * np.float32(1 / PARAMETERS.scale_step)
                for u in (u1, u2)
            )
        u1, u2 = _solve_level(image, moved, u1, u2, burst)
    return ops.stack([u1, u2], axis=-1)


def _pyramid(first: Tensor, second: Tensor) -> list[tuple[Tensor, Tensor]]:
    """Returns (first, second) of each level, the finest first."""
    levels = [(ops.cast(first, "float32"), ops.cast(second, "float32"))]
    step = PARAMETERS.scale_step
    while len(levels) < PARAMETERS.scales:
        height, width = (
            int(np.rint(size * step)) for size in levels[-1][0].shape[1:]
        )
        if min(height, width) < _SMALLEST_LEVEL:
            break
        # The step is that of the scale and not the ratio of the two sizes.
        levels.append(
            tuple(
                _resize(image, height, width, step=1 / step)
                for image in levels[-1]
            )
        )
    return levels


def _solve_level(
    image: Tensor, moved: Tensor, u1: Tensor, u2: Tensor, burst: int
) -> tuple[Tensor, Tensor]:
    """Improves the flow on one level: planes in, the planes u1, u2 out."""
    count, height, width = image.shape
    enough = np.float32(PARAMETERS.epsilon**2 * height * width)
    sources = [_with_margin(plane) for plane in (moved, *_gradient(moved))]
    image, u1, u2 = (_to_rows(plane) for plane in (image, u1, u2))
    alone = count == 1

    def keep(active: Tensor, new: Sequence, old: Sequence) -> Sequence:
        # With one pair the loops end when it is done; there is nothing to
        # keep, and choosing would cost as much as a third of a step.
        if alone:
            return new
        return tuple(
            ops.where(active[:, None], a, b)
            for a, b in zip(new, old, strict=True)
        )

    def warp(index: Tensor, u1: Tensor, u2: Tensor, *dual: Tensor) -> tuple:
        terms = _linearise(image, sources, u1, u2, width)

        def iterate(index: Tensor, active: Tensor, *state: Tensor) -> tuple:
            new, error = _step(terms, state, width)
            still = ops.logical_and(active, error > enough)
            return (index + 1, still, *keep(active, new, state))

        def iterate_often(*state: Tensor) -> tuple:
            # A pair that is done within a burst is left as it is.
            return ops.fori_loop(
                0, burst, lambda _, state: iterate(*state), state
            )

        def smooth_then_iterate(
            index: Tensor, active: Tensor, u1: Tensor, u2: Tensor, *dual: Tensor
        ) -> tuple:
            both = _median5(ops.concatenate([u1, u2], axis=0), width)
            smooth = (both[:count], both[count:])
            u1, u2 = keep(active, smooth, (u1, u2))
            state = ops.while_loop(
                lambda index, active, *_: ops.logical_and(
                    index < PARAMETERS.inner, ops.any(active)
                ),
                iterate if alone or burst == 1 else iterate_often,
                (0, active, u1, u2, *dual),
            )[1:]
            return (index + 1, *state)

        state = ops.while_loop(
            lambda index, active, *_: ops.logical_and(
                index < PARAMETERS.outer, ops.any(active)
            ),
            smooth_then_iterate,
            (0, ops.ones((count,), "bool"), u1, u2, *dual),
        )[2:]
        return (index + 1, *state)

    zero = ops.zeros_like(image)
    u1, u2 = ops.while_loop(
        lambda index, *_: index < PARAMETERS.warps,
        warp,
        (0, u1, u2, zero, zero, zero, zero),
    )[1:3]
    return _to_plane(u1, width), _to_plane(u2, width)


def _to_rows(plane: Tensor) -> Tensor:
    count, height, width = plane.shape
    plane = ops.pad(plane, ((0, 0), (0, 0), (0, _GAP)))
    return ops.reshape(plane, (count, height * (width + _GAP)))


def _to_plane(rows: Tensor, width: int) -> Tensor:
    return ops.reshape(rows, (rows.shape[0], -1, width + _GAP))[:, :, :width]


def _inside(rows: Tensor, width: int, *, but_last: bool = False) -> np.ndarray:
    """1 for pixels and 0 between the rows (and for each row's last pixel)."""
    mask = np.ones((1, rows.shape[1] // (width + _GAP), width + _GAP))
    mask[:, :, width - but_last :] = 0
    return mask.reshape(1, -1).astype(np.float32)


def _linearise(
    image: Tensor, sources: Sequence[Tensor], u1: Tensor, u2: Tensor, width: int
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Linearises the brightness difference around the present flow.

    Returns:
        Rows (constant, gx, gy, square): at the flow (v1, v2) the difference
        is constant + gx * v1 + gy * v2, and square is gx^2 + gy^2, or a
        little where the image is flat.
    """
    warped, gx, gy = _warp(sources, u1, u2, width)
    constant = warped - gx * u1 - gy * u2 - image
    return constant, gx, gy, ops.maximum(gx * gx + gy * gy, _FLAT)


def _step(
    terms: Sequence[Tensor], state: Sequence[Tensor], width: int
) -> tuple[tuple, Tensor]:
    """Takes one primal and one dual step.

    Returns:
        The new (u1, u2, p11, p12, p21, p22), and for each pair the sum of
        the squared changes of its flow.
    """
    constant, gx, gy, square = terms
    u1, u2, p11, p12, p21, p22 = state
    difference = constant + gx * u1 + gy * u2
    # The thresholding step of Zach et al., eq. 15: its three cases are one
    # clipped value, times the gradient. (Because it is divided here, in every
    # step, the compiler computes it once and not once for each component.)
    move = ops.clip(-difference / square, -_LIMIT, _LIMIT)
    new1 = u1 + move * gx + _THETA * _divergence(p11, p12, width)
    new2 = u2 + move * gy + _THETA * _divergence(p21, p22, width)
    error = _sum(ops.square(new1 - u1) + ops.square(new2 - u2))
    return (
        new1,
        new2,
        *_ascend(new1, p11, p12, width),
        *_ascend(new2, p21, p22, width),
    ), error


def _ascend(
    u: Tensor, px: Tensor, py: Tensor, width: int
) -> tuple[Tensor, Tensor]:
    """Takes the dual step of one component; zero beyond the last pixels."""
    dx = ops.pad(u[:, 1:] - u[:, :-1], ((0, 0), (0, 1)))
    dx *= _inside(u, width, but_last=True)
    row = width + _GAP
    dy = ops.pad(u[:, row:] - u[:, :-row], ((0, 0), (0, row)))
    shrink = 1 / (1 + _ASCENT * ops.sqrt(dx * dx + dy * dy))
    return (px + _ASCENT * dx) * shrink, (py + _ASCENT * dy) * shrink


def _divergence(px: Tensor, py: Tensor, width: int) -> Tensor:
    """Backward differences; zero outside."""
    row = width + _GAP
    left = ops.pad(px[:, :-1], ((0, 0), (1, 0)))
    above = ops.pad(py[:, :-row], ((0, 0), (row, 0)))
    return px - left + py - above


def _sum(rows: Tensor) -> Tensor:
    """Sums each image.

    Block by block first: a sum over all at once would be compiled to
    additions of one number at a time, at half the cost of a step.
    """
    size = rows.shape[1]
    blocks = min(8, size)
    length = size // blocks
    total = sum(rows[:, k * length : (k + 1) * length] for k in range(blocks))
    rest = rows[:, blocks * length :]
    return ops.sum(total, axis=1) + ops.sum(rest, axis=1)


def _gradient(plane: Tensor) -> tuple[Tensor, Tensor]:
    """Central differences, the border repeated."""
    across = ops.concatenate([plane[:, :, :1], plane, plane[:, :, -1:]], axis=2)
    down = ops.concatenate([plane[:, :1], plane, plane[:, -1:]], axis=1)
    return (
        0.5 * (across[:, :, 2:] - across[:, :, :-2]),
        0.5 * (down[:, 2:] - down[:, :-2]),
    )


def _with_margin(plane: Tensor) -> Tensor:
    margin = (_MARGIN, _MARGIN)
    return ops.pad(plane, ((0, 0), margin, margin))


def _warp(
    sources: Sequence[Tensor], u1: Tensor, u2: Tensor, width: int
) -> list[Tensor]:
    """Samples planes at x + u1, y + u2, bicubically, zero outside.

    From planes with a margin of zeros around them to rows like u1 and u2, zero
    between them.
    """
    count, size = u1.shape
    inside = _inside(u1, width)
    y, x = np.divmod(np.arange(size, dtype=np.int32), width + _GAP)
    height = size // (width + _GAP)
    x, left = _locate(u1, x, width)
    y, top = _locate(u2, y, height)
    stride = width + 2 * _MARGIN
    start = np.arange(count, dtype=np.int32)[:, None]
    corner = start * (stride * (height + 2 * _MARGIN)) + top * stride + left
    across, down = _cubic_weights(x), _cubic_weights(y)
    down = tuple(weight * inside for weight in down)
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


def _locate(u: Tensor, grid: np.ndarray, size: int) -> tuple[Tensor, Tensor]:
    """Returns where in its cell each sample lies, and its first tap."""
    # Farther out nothing changes any more: all four taps are zeros.
    place = ops.clip(u + grid.astype(np.float32), 1.0 - _MARGIN, size + 1.0)
    cell = ops.floor(place)
    return place - cell, ops.cast(cell, "int32") + (_MARGIN - 1)


def _cubic_weights(t: Tensor) -> tuple[Tensor, ...]:
    """Weights of the taps at -1, 0, 1 and 2 for a sample at t in [0, 1)."""

    def near(t: Tensor) -> Tensor:
        return ((_CUBIC + 2) * t - (_CUBIC + 3)) * t * t + 1

    def far(t: Tensor) -> Tensor:
        return ((_CUBIC * t - 5 * _CUBIC) * t + 8 * _CUBIC) * t - 4 * _CUBIC

    return far(t + 1), near(t), near(1 - t), far(2 - t)


def _resize(
    plane: Tensor, height: int, width: int, *, step: float | None = None
) -> Tensor:
    """Resizes bilinearly as OpenCV does: no smoothing, the border repeated.

    Two taps in each direction rather than a matrix product, which GPUs
    would round to ten bits. `step` is the distance between samples, the ratio
    of the sizes by default.
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


def _median5(rows: Tensor, width: int) -> Tensor:
    """Filters by the median of 5 x 5 pixels, the border repeated.

    Columns of five are sorted first, once for all windows that share them;
    `MEDIAN25` then merges five of them. What it leaves unread the compiler
    leaves out. Rows in, rows out, zero between them.
    """
    count, size = rows.shape
    stride = width + _GAP
    plane = ops.reshape(rows, (count, -1, stride))[:, :, :width]
    plane = _repeat_border(_repeat_border(plane, 1), 2)
    # Windows are runs of this: those that cross a row's end are not used.
    padded = ops.reshape(plane, (count, -1))
    column = [padded[:, k * stride : k * stride + size] for k in range(5)]
    _exchange(column, _SORT5)
    values = [rank[:, k : k + size - 4] for rank in column for k in range(5)]
    _exchange(values, MEDIAN25)
    return ops.pad(values[12], ((0, 0), (0, 4))) * _inside(rows, width)


def _repeat_border(plane: Tensor, axis: int) -> Tensor:
    first = plane[:, :1] if axis == 1 else plane[:, :, :1]
    last = plane[:, -1:] if axis == 1 else plane[:, :, -1:]
    return ops.concatenate([first, first, plane, last, last], axis=axis)


def _exchange(
    values: list[Tensor], comparators: Sequence[tuple[int, int]]
) -> None:
    for low, high in comparators:
        a, b = values[low], values[high]
        values[low], values[high] = ops.minimum(a, b), ops.maximum(a, b)
