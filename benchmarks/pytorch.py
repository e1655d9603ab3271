"""I3D and the decoder as a PyTorch user writes them, to be compared with.

PyTorch is no dependency of ours. To compare, in an environment of its own:

    python -m venv bench
    bench/bin/pip install -r requirements.txt torch==2.13.0
    bench/bin/python -m benchmarks.extract --pytorch
    bench/bin/python -m benchmarks.train --pytorch
"""

from collections.abc import Callable

import keras
import numpy as np
import torch

from lsts_tf import experiment
from lsts_tf.networks import decoder, i3d


class Unit(torch.nn.Module):
    """Convolution with TensorFlow's SAME padding, BatchNorm, ReLU."""

    def __init__(self, unit: i3d.Conv, model: keras.Model):
        super().__init__()
        kernel = weight(model, i3d.layer_name(unit.name, "conv_3d"))
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
        model: What `i3d.build` made, and `i3d.pool` behind it.

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


class Decoder(torch.nn.Module):
    """The paper's decoder of one stream, with the weights of a Keras model.

    Features float32 [N, channels, time, height, width] to maps [N, 1, h, w].
    """

    def __init__(self, model: keras.Model):
        super().__init__()
        kernel = weight(model, "conv3d")
        self.conv3d = torch.nn.Conv3d(
            kernel.shape[3], kernel.shape[4], kernel.shape[:3], bias=False
        )
        self.conv3d_norm = torch.nn.BatchNorm2d(kernel.shape[4])
        stages: list[torch.nn.Module] = []
        filters = kernel.shape[4]
        for layer in (*decoder.DECONVOLUTIONS, decoder.LAST["paper"]):
            # What is cut at the start of each axis.
            surplus = tuple(
                k - s for k, s in zip(layer.kernel, layer.strides, strict=True)
            )
            stage = torch.nn.ConvTranspose2d(
                filters,
                layer.filters,
                layer.kernel,
                layer.strides,
                padding=surplus,
                output_padding=surplus,
            )
            filters = layer.filters
            with torch.no_grad():
                stage.weight.copy_(
                    torch.tensor(
                        weight(model, layer.name).transpose(3, 2, 0, 1).copy()
                    )
                )
                stage.bias.copy_(
                    torch.tensor(np.asarray(model.get_layer(layer.name).bias))
                )
            stages.append(stage)
            if layer in decoder.DECONVOLUTIONS:
                stages += [torch.nn.ReLU(), torch.nn.BatchNorm2d(filters)]
        self.stages = torch.nn.Sequential(*stages)
        with torch.no_grad():
            self.conv3d.weight.copy_(
                torch.tensor(kernel.transpose(4, 3, 0, 1, 2).copy())
            )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Returns the maps, in [0, 1]."""
        x = self.conv3d_norm(self.conv3d(x).squeeze(2))
        return torch.sigmoid(self.stages(torch.relu(x)))


def weight(model: keras.Model, name: str) -> np.ndarray:
    """A layer's kernel."""
    return np.asarray(model.get_layer(name).kernel)


def training(
    model: keras.Model,
    settings: experiment.Experiment,
    features: np.ndarray,
    truth: np.ndarray,
) -> tuple[Callable[[], float], np.ndarray]:
    """A step of the paper's training: MSE, RMSProp with weight decay.

    Args:
        model: The decoder of one stream that PyTorch's begins as.
        settings: Rate, decay and precision.
        features: float32 [N, time, height, width, channels].
        truth: float32 [N, h, w], in [0, 1].

    Returns:
        A function that takes one step and returns its loss, and the maps
        before the first step, float32 [N, h, w].
    """
    network = Decoder(model).train()
    optimizer = torch.optim.RMSprop(
        network.parameters(),
        lr=settings.learning_rate,
        weight_decay=settings.weight_decay,
    )
    x = torch.from_numpy(features).permute(0, 4, 1, 2, 3).contiguous()
    y = torch.from_numpy(truth)[:, None]
    reduced = torch.autocast(
        "cpu", torch.bfloat16, enabled=settings.precision != "float32"
    )

    def step() -> float:
        optimizer.zero_grad(set_to_none=True)
        with reduced:
            maps = network(x)
        loss = torch.mean((maps.float() - y) ** 2)
        loss.backward()
        optimizer.step()
        return loss.item()

    with torch.inference_mode():
        network.eval()
        first = network(x)[:, 0].numpy()
        network.train()
    return step, first
