"""What a training may minimise: metrics with gradients, in pure Keras.

Each is a function of (`y_true`, `y_pred`) that returns one float32 number a
frame, `[B]`. `y_true` is `[B, H, W, 2]`: density in 0 … 1 and fixated pixels, 0
or 1. `y_pred` is `[B, H, W, 1]`: 0 … 1 for `mse`, at least 0 for `kld`, of any
scale for the others.

On maps with something in them they equal `lsts_tf.scoring.metrics`. Where a
metric is NaN (a constant map, a frame that nobody looked at) they are 0, and
so is their gradient: such a frame teaches nothing, and does no harm. They
compute in float32 whatever the policy, because a float16 sum over a frame
overflows.

`cc`, `nss` and `sim` are better the larger they are: give them a negative
weight, as in `weighted("kld-cc")`.
"""

from collections.abc import Callable
import re
from typing import Any

from keras import ops

_EPSILON = 2.0**-52


def mse(y_true, y_pred):
    """Mean squared error against the density, 0 … 1."""
    pred, density, _ = _flat(y_true, y_pred)
    return ops.mean(ops.square(pred - density), axis=-1)


def kld(y_true, y_pred):
    """Kullback-Leibler divergence from the density, in nats, at least 0.

    Maps are scaled to sum 1; negative predictions count as 0. An all-zero
    density scores 0. (Bylinskii et al., arXiv 1604.03605, section 4.2.5.)
    """
    pred, density, _ = _flat(y_true, y_pred)
    q = _share(density)
    p = _share(ops.relu(pred))
    # Q log(eps + Q / (P + eps)) as a difference: no term is 0 * infinity.
    entropy = q * ops.log(ops.where(q > 0, q, 1.0))
    return ops.sum(entropy - q * ops.log(p + _EPSILON), axis=-1)


def cc(y_true, y_pred):
    """Pearson's correlation with the density, -1 … 1; 0 if one is constant."""
    pred, density, _ = _flat(y_true, y_pred)
    return ops.sum(_standard(pred) * _standard(density), axis=-1)


def nss(y_true, y_pred):
    """Mean standard score at the fixated pixels; 0 without any.

    The standard deviation divides by N - 1. A constant map scores 0.
    """
    pred, _, fixated = _flat(y_true, y_pred)
    fixated = ops.cast(fixated > 0, "float32")
    count = ops.maximum(ops.sum(fixated, axis=-1), 1.0)
    total = ops.sum(_standard(pred) * fixated, axis=-1)
    return total / count * (pred.shape[-1] - 1) ** 0.5


def sim(y_true, y_pred):
    """Sum of the minima of both maps, each less its minimum and with sum 1.

    It is 0 … 1. An all-zero or constant map scores 0.
    """
    pred, density, _ = _flat(y_true, y_pred)
    p, q = (
        _share(x - ops.min(x, axis=-1, keepdims=True)) for x in (pred, density)
    )
    return ops.sum(ops.minimum(p, q), axis=-1)


LOSSES = {f.__name__: f for f in (mse, kld, cc, nss, sim)}


def weighted(terms: str) -> Callable[[Any, Any], Any]:
    """A weighted sum of losses, from text.

    Args:
        terms: names of `LOSSES` with signs between them, each with a number
            and `*` before it or none: "mse", "kld-cc", "10*kld-2*cc-1e-1*nss".

    Returns:
        A function (`y_true`, `y_pred`) -> `[B]`. Of several maps a window,
        `[B, maps, H, W, …]`, it is the mean over the maps.

    Raises:
        ValueError: if `terms` is anything else.
    """
    parsed = _parse(terms)

    def loss(y_true: Any, y_pred: Any) -> Any:
        maps = y_pred.shape[1] if len(y_pred.shape) == 5 else 1
        y_true, y_pred = (
            ops.reshape(y, (-1, *y.shape[-3:])) for y in (y_true, y_pred)
        )
        each = sum(w * LOSSES[name](y_true, y_pred) for w, name in parsed)
        return ops.mean(ops.reshape(each, (-1, maps)), axis=-1)

    return loss


# Sign, weight or none, name.
_TERM = r"\s*([+-])\s*(?:(\d+\.?\d*(?:e[+-]?\d+)?|\.\d+)\s*\*)?\s*([a-z]+)\s*"


def _parse(terms: str) -> list[tuple[float, str]]:
    signed = terms if terms.lstrip()[:1] in ("+", "-") else f"+{terms}"
    found = re.findall(_TERM, signed)
    is_whole = re.fullmatch(f"(?:{_TERM})+", signed)
    if not is_whole or any(name not in LOSSES for _, _, name in found):
        raise ValueError(
            f"A loss is one of {', '.join(LOSSES)}, or a weighted sum such as "
            f"'kld-cc' or '10*kld-2*cc'. Received: {terms!r}"
        )
    return [(float(f"{sign}{n or 1}"), name) for sign, n, name in found]


def _flat(y_true, y_pred):
    """Prediction, density and fixated pixels, float32 `[B, H * W]`."""
    pixels = y_pred.shape[1] * y_pred.shape[2]
    channels = (y_pred[..., 0], y_true[..., 0], y_true[..., 1])
    return tuple(
        ops.reshape(ops.cast(channel, "float32"), (-1, pixels))
        for channel in channels
    )


def _share(x):
    """A map as shares of its sum; an all-zero map stays zero."""
    total = ops.sum(x, axis=-1, keepdims=True)
    return x / ops.where(total > 0, total, 1.0)


def _standard(x):
    """A map less its mean, of length 1; a constant map becomes zero."""
    about = x - ops.mean(x, axis=-1, keepdims=True)
    constant = ops.equal(
        ops.max(x, axis=-1, keepdims=True), ops.min(x, axis=-1, keepdims=True)
    )
    # A constant's mean may be rounded; and a root has no gradient at 0.
    about = ops.where(constant, 0.0, about)
    squares = ops.sum(ops.square(about), axis=-1, keepdims=True)
    return about / ops.sqrt(ops.where(squares > 0, squares, 1.0))
