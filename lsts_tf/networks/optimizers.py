"""RMSProp as the authors used it, AdamW, and learning rates.

Keras' own RMSprop is another rule: its epsilon stands inside the root, so that
1e-8 acts like 1e-4 and throttles the small gradients of a mean over 230,400
pixels, and its weight decay is decoupled from the gradient.
"""

import dataclasses
import math
from typing import Any

import keras
from keras import ops

# PyTorch's defaults.
RHO = 0.99
EPSILON = 1e-8
# Keras searches the names for this pattern. What `tuned_i3d` trains of a
# kernel is its change.
_NO_KERNEL = r"^(?!.*(kernel|change)(:\d+)?$)"


class RMSprop(keras.optimizers.Optimizer):
    """RMSProp by PyTorch's rule, without momentum.

    For each trainable variable p with gradient g, biases and BatchNorm's
    scales and offsets included:

        g <- g + l2 * p
        v <- RHO * v + (1 - RHO) * g^2
        p <- p - learning_rate * g / (sqrt(v) + EPSILON)

    Args:
        learning_rate: A float or a `LearningRateSchedule`.
        l2: PyTorch's `weight_decay`, added to the gradient. Keras' own is
            decoupled from it.
    """

    def __init__(self, learning_rate: Any, *, l2: float = 0.0) -> None:
        super().__init__(learning_rate=learning_rate, name="rmsprop")
        self.l2 = l2
        self._mean_squares: list[keras.Variable] = []

    def build(self, variables: list[keras.Variable]) -> None:
        """Makes the mean squares, zero at first."""
        if self.built:
            return
        super().build(variables)
        self._mean_squares = self.add_optimizer_variables(
            variables, "mean_square"
        )

    def update_step(
        self, gradient: Any, variable: keras.Variable, learning_rate: Any
    ) -> None:
        """Updates one variable in place."""
        index = self._get_variable_index(variable)
        mean_square = self._mean_squares[index]
        rate = ops.cast(learning_rate, variable.dtype)
        g = ops.cast(gradient, variable.dtype) + self.l2 * variable
        v = RHO * mean_square + (1 - RHO) * ops.square(g)
        self.assign(mean_square, v)
        self.assign_sub(variable, rate * g / (ops.sqrt(v) + EPSILON))


@dataclasses.dataclass(eq=False)
class Schedule(keras.optimizers.schedules.LearningRateSchedule):
    """A learning rate with a warm-up, and constant or falling after it.

    At step t, from 0, the rate is `learning_rate` times

    * min(1, (t + 1) / warmup_steps): the warm-up;
    * 2 ** -floor(t / halving_steps): the paper's words, "halved each 50
      iterations", taken literally;
    * (1 + cos(pi t / cosine_steps)) / 2, which ends at zero.

    A factor whose number of steps is 0 is left out. Keras' CosineDecay begins
    its cosine only after the warm-up, which is another rate.

    Args:
        learning_rate: After the warm-up.
        warmup_steps: Updates until the whole rate is reached.
        halving_steps: Updates between two halvings.
        cosine_steps: Updates of the whole run.
    """

    learning_rate: float
    _: dataclasses.KW_ONLY
    warmup_steps: int = 0
    halving_steps: int = 0
    cosine_steps: int = 0

    def __call__(self, step: Any) -> Any:
        """The rate of update number `step`, from 0; float32."""
        step = ops.cast(step, "float32")
        rate = ops.convert_to_tensor(self.learning_rate, "float32")
        if self.warmup_steps:
            rate = rate * ops.minimum(1.0, (step + 1.0) / self.warmup_steps)
        if self.halving_steps:
            rate = rate * ops.power(0.5, ops.floor(step / self.halving_steps))
        if self.cosine_steps:
            part = ops.minimum(1.0, step / self.cosine_steps)
            rate = rate * 0.5 * (1.0 + ops.cos(math.pi * part))
        return rate


def make(
    name: str, learning_rate: Any, *, weight_decay: float
) -> keras.optimizers.Optimizer:
    """An optimiser by name.

    Args:
        name: "rmsprop": `weight_decay` is an L2 term in each gradient, as in
            PyTorch's rule. "adamw": it is decoupled (Loshchilov & Hutter,
            arXiv 1711.05101), and of kernels only, I3D's trained ones
            included: it spares biases, BatchNorm, the blur's width and the
            centre prior. Its epsilon is 1e-8, since gradients of a mean over
            230,400 pixels are small.
        learning_rate: A float or a `LearningRateSchedule`.
        weight_decay: Not negative.
    """
    if name == "rmsprop":
        return RMSprop(learning_rate, l2=weight_decay)
    optimizer = keras.optimizers.AdamW(
        learning_rate, weight_decay=weight_decay, epsilon=1e-8
    )
    optimizer.exclude_from_weight_decay(var_names=[_NO_KERNEL])
    return optimizer
