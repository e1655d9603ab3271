"""RMSProp as the authors trained with it, and the paper's learning rate.

Keras' own RMSprop is another rule: its epsilon stands inside the root, so that
1e-8 acts like 1e-4 and throttles the small gradients of a mean over 230,400
pixels, and its weight decay is decoupled from the gradient.
"""

from typing import Any

import keras
from keras import ops


@keras.saving.register_keras_serializable(package="lsts_tf")
class RMSprop(keras.optimizers.Optimizer):
    """RMSProp by PyTorch's rule, without momentum.

    For each trainable variable p with gradient g, biases and BatchNorm's
    scales and offsets included:

        g <- g + l2 * p
        v <- rho * v + (1 - rho) * g^2
        p <- p - learning_rate * g / (sqrt(v) + epsilon)

    Args:
        learning_rate: a float or a `LearningRateSchedule`.
        rho: how much of the mean square stays each step, in [0, 1).
        epsilon: added outside the root; positive.
        l2: PyTorch's `weight_decay`, added to the gradient; not negative.
        **kwargs: of `keras.optimizers.Optimizer`, without `weight_decay`.

    Raises:
        ValueError: if a number is out of its range.
    """

    def __init__(
        self,
        learning_rate: Any = 1e-4,
        *,
        rho: float = 0.99,
        epsilon: float = 1e-8,
        l2: float = 0.0,
        name: str = "rmsprop",
        **kwargs: Any,
    ):
        if kwargs.pop("weight_decay", None):
            raise ValueError(
                "`weight_decay` is Keras' decoupled decay, which this rule "
                "does not have. Give `l2` instead."
            )
        if not 0 <= rho < 1:
            raise ValueError(f"`rho` must be in [0, 1). Received: {rho}")
        if not epsilon > 0:
            raise ValueError(f"`epsilon` must be positive. Received: {epsilon}")
        if not l2 >= 0:
            raise ValueError(f"`l2` must not be negative. Received: {l2}")
        super().__init__(learning_rate=learning_rate, name=name, **kwargs)
        self.rho = rho
        self.epsilon = epsilon
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
        v = self.rho * mean_square + (1 - self.rho) * ops.square(g)
        self.assign(mean_square, v)
        self.assign_sub(variable, rate * g / (ops.sqrt(v) + self.epsilon))

    def get_config(self) -> dict[str, Any]:
        """Arguments that make this optimizer again."""
        config = super().get_config()
        config.update(rho=self.rho, epsilon=self.epsilon, l2=self.l2)
        return config


def halving(
    learning_rate: float, *, steps: int
) -> keras.optimizers.schedules.LearningRateSchedule:
    """A learning rate that halves after each `steps` updates.

    The paper's words, "halved each 50 iterations", taken literally. All steps
    together then sum to 2 * steps * learning_rate.

    Args:
        learning_rate: of the first `steps` updates.
        steps: updates between two halvings, at least 1.

    Raises:
        ValueError: if `steps` is less than 1.
    """
    if steps < 1:
        raise ValueError(f"`steps` must be at least 1. Received: {steps}")
    return keras.optimizers.schedules.ExponentialDecay(
        learning_rate, decay_steps=steps, decay_rate=0.5, staircase=True
    )
