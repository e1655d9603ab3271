"""I3D as a PyTorch user writes it: the other side of a comparison.

PyTorch is no dependency of ours. To compare, in an environment of its own:

    python -m venv bench
    bench/bin/pip install -r requirements.txt torch==2.13.0
    bench/bin/python -m benchmarks.extract --pytorch
"""

from collections.abc import Callable

import keras
import numpy as np
import torch

from lsts_tf import i3d


class Unit(torch.nn.Module):
    """Convolution with TensorFlow's SAME padding, BatchNorm, ReLU."""

    def __init__(self, unit: i3d.Conv, model: keras.Model):
        super().__init__()
        kernel = np.asarray(
            model.get_layer(i3d.layer_name(unit.name, "conv_3d")).kernel
        )
        self.unit = unit
        self.conv = torch.nn.Conv3d(
            kernel.shape[3], kernel.shape[4], unit.kernel, unit.stride,
            bias=False,
        )  # fmt: skip
        self.norm = torch.nn.BatchNorm3d(kernel.shape[4], eps=i3d.EPSILON)
        norm = model.get_layer(i3d.layer_name(unit.name, "batch_norm"))
        with torch.no_grad():
            self.conv.weight.copy_(
                torch.tensor(kernel.transpose(4, 3, 0, 1, 2).copy())
            )
            self.norm.weight.fill_(1.0)
            for target, source in (
                (self.norm.bias, norm.beta),
                (self.norm.running_mean, norm.moving_mean),
                (self.norm.running_var, norm.moving_variance),
            ):
                target.copy_(torch.tensor(np.asarray(source)))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Returns [batch, filters, steps, rows, columns]."""
        x = same(x, self.unit)
        return torch.relu(self.norm(self.conv(x)))


class Pooling(torch.nn.Module):
    """Max pooling with TensorFlow's SAME padding, which it does not see."""

    def __init__(self, pool: i3d.Pool):
        super().__init__()
        self.pool = pool

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Returns the largest of each neighbourhood."""
        x = same(x, self.pool, float("-inf"))
        return torch.nn.functional.max_pool3d(
            x, self.pool.kernel, self.pool.stride
        )


class Mixed(torch.nn.Module):
    """An Inception block."""

    def __init__(self, block: i3d.Mixed, model: keras.Model):
        super().__init__()
        self.branches = torch.nn.ModuleList(
            torch.nn.Sequential(*(module(part, model) for part in branch))
            for branch in i3d.branches(block)
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Returns the branches side by side, along the channels."""
        return torch.cat([branch(x) for branch in self.branches], 1)


def module(layer: i3d.Layer, model: keras.Model) -> torch.nn.Module:
    """The layer of the table with the weights of the Keras model."""
    if isinstance(layer, i3d.Conv):
        return Unit(layer, model)
    if isinstance(layer, i3d.Pool):
        return Pooling(layer)
    return Mixed(layer, model)


def same(
    x: torch.Tensor, layer: i3d.Conv | i3d.Pool, value: float = 0.0
) -> torch.Tensor:
    """Pads as TensorFlow's SAME does."""
    sides = [
        i3d.same_padding(size, kernel, stride)
        for size, kernel, stride in zip(
            x.shape[2:], layer.kernel, layer.stride, strict=True
        )
    ]
    flat = [amount for side in reversed(sides) for amount in side]
    return torch.nn.functional.pad(x, flat, value=value) if any(flat) else x


def window(model: keras.Model) -> Callable[[np.ndarray], np.ndarray]:
    """I3D of one window, pooled.

    Args:
        model: What `i3d.build(..., pooled=True)` made.

    Returns:
        A function from float32 [1, frames, height, width, channels] to
        [1, 5, 5, 5, 1024].
    """
    network = torch.nn.Sequential(
        *(module(layer, model) for layer in i3d.layers())
    ).eval()

    def run(clip: np.ndarray) -> np.ndarray:
        with torch.inference_mode():
            x = torch.from_numpy(np.ascontiguousarray(clip))
            x = network(x.permute(0, 4, 1, 2, 3))
            x = torch.nn.functional.avg_pool3d(
                x, i3d.pooling_kernel(*x.shape[2:]), 1
            )
            return x.permute(0, 2, 3, 4, 1).numpy()

    return run
