"""Loss and gradient of a batch that is larger than the memory, exactly.

The batch goes through the model in micro-batches. BatchNorm takes its
statistics over the whole batch all the same, on all replicas: the model is
cut before each BatchNorm, and all micro-batches pass a piece before the first
of them enters the next one. Only what crosses a cut is kept for the whole
batch; inside of a piece everything is computed again on the way back. So

* the result is that of the whole batch up to rounding, however many
  micro-batches there are;
* it costs one more forward pass;
* memory is what crosses the cuts for the batch, with some slopes (8 MB a
  window of the paper's decoder, of 27 MB), and one piece's inside for a
  micro-batch: see `peak_bytes`.

On the way back a BatchNorm's mean and variance are inputs with gradients of
their own, summed over all micro-batches and replicas before they flow on.
"""

from collections.abc import Callable
from collections.abc import Iterable
from collections.abc import Mapping
from collections.abc import Sequence
import dataclasses
import math
from typing import Any

import keras
from keras import ops
import tensorflow as tf

from lsts_tf.networks import tuned_i3d

# Tensors by the name of what they are in the model: [n, b, ...], n
# micro-batches of b windows.
Tensors = dict[str, Any]

# (rows, maps) -> loss of each window, [b].
Loss = Callable[[Any, Any], Any]


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Step:
    """One operation of a model, and how it is called there.

    Attributes:
        operation: A layer.
        arguments: What it is called with, `tensors` among it.
        tensors: Its inputs.
        reads: Their names.
        makes: Names of its outputs.
    """

    operation: Any
    arguments: Any
    tensors: tuple[Any, ...]
    reads: tuple[str, ...]
    makes: tuple[str, ...]


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Piece:
    """A part of a model between two BatchNorms; tensors go by name.

    Attributes:
        norm: The BatchNorm in front of it; None for the first piece.
        entry: The BatchNorm's input.
        normalised: The BatchNorm's output.
        inputs: What else comes in.
        outputs: What goes out: first the next BatchNorm's input, or the
            model's output. It may have come in.
        reads: Inputs of `model`.
        makes: Outputs of `model`.
        model: The layers; None where there are none.
        specs: Shape of one window and dtype of each output.
    """

    norm: keras.layers.BatchNormalization | None
    entry: str
    normalised: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    reads: tuple[str, ...]
    makes: tuple[str, ...]
    model: keras.Model | None
    specs: tuple[tuple[tuple[int, ...], str], ...]

    @property
    def variables(self) -> list[keras.Variable]:
        """What is learnt in it."""
        norm = self.norm.trainable_variables if self.norm else []
        layers = self.model.trainable_variables if self.model else []
        return [*norm, *layers]

    @property
    def needs(self) -> tuple[str, ...]:
        """What comes in from other pieces."""
        return (self.entry, *self.inputs) if self.norm else self.inputs

    @property
    def seeds(self) -> list[keras.Variable]:
        """States of random layers, which a second pass has to repeat."""
        if self.model is None:
            return []
        weights = {id(v) for v in self.model.weights}
        return [v for v in self.model.variables if id(v) not in weights]

    def __call__(
        self, values: Mapping[str, Any], moments: Sequence[Any]
    ) -> list[Any]:
        """Outputs of a micro-batch, given the whole batch's moments."""
        known = dict(values)
        if self.norm is not None:
            known[self.normalised] = _normalise(
                self.norm, values[self.entry], *moments
            )
        if self.model is not None:
            found = self.model([known[n] for n in self.reads], training=True)
            # Keras gives a list of one as that one.
            made = keras.tree.flatten(found)
            known |= zip(self.makes, made, strict=True)
        return [known[name] for name in self.outputs]


def _normalise(
    norm: keras.layers.BatchNormalization, x: Any, mean: Any, variance: Any
) -> Any:
    x = ops.cast(x, mean.dtype)
    y = ops.batch_normalization(
        x,
        mean,
        variance,
        axis=norm.axis,
        offset=None if norm.beta is None else ops.cast(norm.beta, x.dtype),
        scale=None if norm.gamma is None else ops.cast(norm.gamma, x.dtype),
        epsilon=norm.epsilon,
    )
    return ops.cast(y, norm.compute_dtype)


class Accumulation:
    """Loss and gradient of a model over several micro-batches.

    Args:
        model: A functional model with one output. Its layers are used once.
        loss: Loss of each window, given a micro-batch of the truth.
        count: Micro-batches in a replica's part of a batch.
    """

    def __init__(self, model: keras.Model, loss: Loss, *, count: int) -> None:
        self._model = model
        self._loss = loss
        self._count = count
        self._pieces = _cut(model)

    def __call__(
        self, features: Mapping[str, Any], truth: Any, windows: Any, scale: Any
    ) -> tuple[Any, list[Any]]:
        """The loss, and the gradient of `scale` times the loss.

        Args:
            features: Inputs of the model by name, [B, ...] each.
            truth: What the loss takes, [B, ...].
            windows: Windows of the whole batch, over all replicas: float.
            scale: Factor of the gradient, for half precision.

        Returns:
            Sum of this replica's losses divided by `windows`, and gradients
            in the order of the model's trainable variables. Summed over
            replicas, both are the whole batch's.
        """
        rows = self._micro(truth)
        kept: Tensors = {name: self._micro(features[name]) for name in features}
        moments: list[Sequence[Any]] = [()]
        seeds: list[list[Any]] = []
        elements: list[Any] = []
        for piece, after in zip(
            self._pieces[:-1], self._pieces[1:], strict=True
        ):
            seeds.append([tf.identity(v.value) for v in piece.seeds])
            sums = self._forward(piece, kept, moments[-1])
            found, number = _global_moments(sums, kept[after.entry], windows)
            elements.append(number)
            moments.append(found)
            _follow(after.norm, *found)
        # And back. What a tensor adds to the loss, by its name.
        slopes: Tensors = {}
        gradients: dict[int, Any] = {}
        loss, of_moments = self._last(
            kept, rows, moments[-1], windows, scale, slopes, gradients
        )
        for place in range(len(self._pieces) - 2, -1, -1):
            piece = self._pieces[place]
            of_sums = _through_moments(
                of_moments, moments[place + 1], elements[place]
            )
            for variable, value in zip(piece.seeds, seeds[place], strict=True):
                variable.assign(value)
            of_moments = self._back(
                piece, kept, moments[place], of_sums, slopes, gradients
            )
        return loss, [
            gradients.get(id(v), tf.zeros_like(v.value))
            for v in self._model.trainable_variables
        ]

    def _micro(self, x: Any) -> Any:
        """[B, ...] as [n, b, ...]."""
        x = tf.convert_to_tensor(x)
        size = -1 if x.shape[0] is None else x.shape[0] // self._count
        return tf.reshape(x, (self._count, size, *x.shape[1:]))

    def _forward(
        self, piece: _Piece, kept: Tensors, moments: Sequence[Any]
    ) -> list[Any]:
        """Adds the outputs to `kept`; sums of the first one and its square."""

        def body(number: Any) -> tuple[list[Any], list[Any]]:
            values = {name: kept[name][number] for name in piece.needs}
            outputs = piece(values, moments)
            return list(_sums(outputs[0])), outputs

        channels = piece.specs[0][0][-1]
        dtype = _exact(piece.specs[0][1])
        sums, outputs = self._loop(
            body,
            [tf.zeros(channels, dtype), tf.zeros(channels, dtype)],
            self._arrays(piece.specs, kept),
        )
        kept.update(zip(piece.outputs, outputs, strict=True))
        return sums

    def _last(
        self,
        kept: Tensors,
        rows: Any,
        moments: Sequence[Any],
        windows: Any,
        scale: Any,
        slopes: Tensors,
        gradients: dict[int, Any],
    ) -> tuple[Any, Sequence[Any]]:
        """The loss; the moments' slopes; the others go into the dicts."""
        piece = self._pieces[-1]
        watched = self._inner(piece)

        def body(number: Any) -> tuple[list[Any], list[Any]]:
            values = {name: kept[name][number] for name in piece.needs}
            stats = [tf.identity(m) for m in moments]
            with tf.GradientTape() as tape:
                tape.watch([stats, [values[name] for name in watched]])
                (maps,) = piece(values, stats)
                losses = self._loss(rows[number], maps)
                loss = tf.reduce_sum(losses) / tf.cast(windows, losses.dtype)
                scaled = loss * tf.cast(scale, loss.dtype)
            found = _gradient(tape, scaled, None, piece, stats, values, watched)
            return [tf.cast(loss, tf.float32), *found[0]], found[1]

        totals, found = self._loop(
            body,
            [tf.zeros(()), *_zeros(piece, moments)],
            self._arrays_like(watched, kept),
        )
        loss, *rest = totals
        return loss, _collect(
            piece, moments, rest, watched, found, slopes, gradients
        )

    def _back(
        self,
        piece: _Piece,
        kept: Tensors,
        moments: Sequence[Any],
        of_sums: Sequence[Any],
        slopes: Tensors,
        gradients: dict[int, Any],
    ) -> Sequence[Any]:
        watched = self._inner(piece)
        known = [slopes.pop(name, None) for name in piece.outputs]

        def body(number: Any) -> tuple[list[Any], list[Any]]:
            values = {name: kept[name][number] for name in piece.needs}
            stats = [tf.identity(m) for m in moments]
            with tf.GradientTape() as tape:
                tape.watch([stats, [values[name] for name in watched]])
                outputs = piece(values, stats)
                targets = [*_sums(outputs[0]), *outputs]
            towards = [
                *of_sums,
                *(
                    tf.zeros_like(x) if slope is None else slope[number]
                    for x, slope in zip(outputs, known, strict=True)
                ),
            ]
            return _gradient(
                tape, targets, towards, piece, stats, values, watched
            )

        totals, found = self._loop(
            body, _zeros(piece, moments), self._arrays_like(watched, kept)
        )
        return _collect(
            piece, moments, totals, watched, found, slopes, gradients
        )

    def _inner(self, piece: _Piece) -> list[str]:
        """What comes in from other pieces, and not from outside."""
        outside = {tensor.name for tensor in self._model.inputs}
        return [name for name in piece.needs if name not in outside]

    def _loop(
        self,
        body: Callable[[Any], tuple[list[Any], list[Any]]],
        sums: list[Any],
        arrays: list[tf.TensorArray],
    ) -> tuple[list[Any], list[Any]]:
        """Sums and stacks what `body` returns of each micro-batch, in turn."""

        def step(number: Any, sums: list[Any], arrays: list[Any]) -> Any:
            addends, rows = body(number)
            return (
                number + 1,
                [s + a for s, a in zip(sums, addends, strict=True)],
                [
                    a.write(number, row)
                    for a, row in zip(arrays, rows, strict=True)
                ],
            )

        _, sums, arrays = tf.while_loop(
            lambda number, *_: number < self._count,
            step,
            (tf.constant(0), sums, arrays),
            # One after the other: that is the point.
            parallel_iterations=1,
        )
        return sums, [array.stack() for array in arrays]

    def _arrays(
        self, specs: Sequence[tuple[tuple[int, ...], str]], kept: Tensors
    ) -> list[tf.TensorArray]:
        size = next(iter(kept.values())).shape[1]
        return [
            tf.TensorArray(
                dtype, self._count, element_shape=tf.TensorShape((size, *shape))
            )
            for shape, dtype in specs
        ]

    def _arrays_like(
        self, names: Sequence[str], kept: Tensors
    ) -> list[tf.TensorArray]:
        specs = [(kept[n].shape[2:], kept[n].dtype.name) for n in names]
        return self._arrays(specs, kept)


def _exact(dtype: str) -> str:
    return "float64" if dtype == "float64" else "float32"


def _sums(x: Any) -> tuple[Any, Any]:
    """Sum of each channel, and of its square."""
    x = tf.cast(x, _exact(x.dtype.name))
    axes = list(range(x.shape.rank - 1))
    return tf.reduce_sum(x, axes), tf.reduce_sum(tf.square(x), axes)


def _global_moments(
    sums: Sequence[Any],
    entry: Any,
    windows: Any,
) -> tuple[tuple[Any, Any], Any]:
    """Mean and variance over all replicas, and of how many elements."""
    context = tf.distribute.get_replica_context()
    sums = [context.all_reduce("SUM", s) for s in sums]
    of_window = math.prod(entry.shape[2:-1])
    elements = tf.cast(windows, sums[0].dtype) * of_window
    mean = sums[0] / elements
    # Rounding may leave a constant channel a little below zero.
    variance = tf.maximum(sums[1] / elements - tf.square(mean), 0.0)
    return (mean, variance), elements


def _through_moments(
    of_moments: Sequence[Any], moments: Sequence[Any], elements: Any
) -> list[Any]:
    """Slopes of sum and sum of squares, from those of mean and variance."""
    context = tf.distribute.get_replica_context()
    of_mean, of_variance = (context.all_reduce("SUM", s) for s in of_moments)
    mean, _ = moments
    return [
        (of_mean - 2.0 * mean * of_variance) / elements,
        of_variance / elements,
    ]


def _follow(
    norm: keras.layers.BatchNormalization, mean: Any, variance: Any
) -> None:
    """Move the averages that serve after training, as Keras does."""
    for variable, value in (
        (norm.moving_mean, mean),
        (norm.moving_variance, variance),
    ):
        variable.assign(
            variable * norm.momentum
            + ops.cast(value, variable.dtype) * (1.0 - norm.momentum)
        )


def _zeros(piece: _Piece, moments: Sequence[Any]) -> list[Any]:
    return [
        *(tf.zeros_like(m) for m in moments),
        *(tf.zeros_like(v.value) for v in piece.variables),
    ]


def _gradient(
    tape: tf.GradientTape,
    targets: Any,
    towards: Sequence[Any] | None,
    piece: _Piece,
    stats: Sequence[Any],
    values: Mapping[str, Any],
    watched: Sequence[str],
) -> tuple[list[Any], list[Any]]:
    """Slopes of (moments and variables), and of what came in."""
    found = tape.gradient(
        targets,
        [
            list(stats),
            [v.value for v in piece.variables],
            [values[n] for n in watched],
        ],
        output_gradients=towards,
        unconnected_gradients=tf.UnconnectedGradients.ZERO,
    )
    return [*found[0], *found[1]], found[2]


def _collect(
    piece: _Piece,
    moments: Sequence[Any],
    totals: Sequence[Any],
    watched: Sequence[str],
    found: Sequence[Any],
    slopes: Tensors,
    gradients: dict[int, Any],
) -> Sequence[Any]:
    """Puts slopes where they belong; returns those of the moments."""
    of_variables = totals[len(moments) :]
    for variable, gradient in zip(piece.variables, of_variables, strict=True):
        key = id(variable)
        before = gradients.get(key)
        gradients[key] = gradient if before is None else before + gradient
    for name, slope in zip(watched, found, strict=True):
        before = slopes.get(name)
        slopes[name] = slope if before is None else before + slope
    return totals[: len(moments)]


def _cut(model: keras.Model) -> list[_Piece]:
    """The pieces of a model between its BatchNorms."""
    calls = _nodes(model)
    nodes = [calls[id(operation)] for operation in model.operations]
    names = {
        id(tensor): f"{node.operation.name}:{number}"
        for node in nodes
        for number, tensor in enumerate(node.output_tensors)
    }
    names |= {id(tensor): tensor.name for tensor in model.inputs}
    steps = [
        _Step(
            operation=node.operation,
            arguments=node.arguments,
            tensors=tuple(node.input_tensors),
            reads=tuple(names[id(t)] for t in node.input_tensors),
            makes=tuple(names[id(t)] for t in node.output_tensors),
        )
        for node in nodes
    ]
    made = {
        names[id(tensor)]: tensor
        for node in nodes
        for tensor in node.output_tensors
    }
    norms = [
        place
        for place, step in enumerate(steps)
        if isinstance(step.operation, keras.layers.BatchNormalization)
        and step.operation.trainable
    ]
    return [
        _piece(steps, made, begin, end, names[id(model.outputs[0])])
        for begin, end in zip([None, *norms], [*norms, None], strict=True)
    ]


def _nodes(model: keras.Model) -> dict[int, Any]:
    """The call of each operation in this model, by the operation's id.

    An operation knows all calls of it, those in other models too (I3D's
    layers that are trained have one there), and does not say which is whose.
    """
    found: dict[int, Any] = {}
    tensors = list(model.outputs)
    while tensors:
        operation, number, _ = tensors.pop()._keras_history
        if id(operation) not in found:
            found[id(operation)] = operation._inbound_nodes[number]
            tensors += found[id(operation)].input_tensors
    return found


def _piece(
    steps: Sequence[_Step],
    made: Mapping[str, Any],
    begin: int | None,
    end: int | None,
    output: str,
) -> _Piece:
    """What stands between steps `begin` and `end`, two BatchNorms.

    None is the model's beginning or its end.
    """
    stop = len(steps) if end is None else end
    # A model's inputs come from outside, although an operation gives them.
    inside = [
        step
        for step in steps[0 if begin is None else begin + 1 : stop]
        if step.reads
    ]
    inner = {name for step in inside for name in step.makes}
    norm, entry, normalised = None, "", ""
    if begin is not None:
        norm = steps[begin].operation
        (entry,), (normalised,) = steps[begin].reads, steps[begin].makes
        inner.add(normalised)
    first = output if end is None else steps[end].reads[0]
    read = [name for step in inside for name in step.reads]
    later = {name for step in steps[stop:] for name in step.reads}
    outputs = (first, *sorted((inner & later) - {first}))
    inputs = tuple(dict.fromkeys(n for n in (*read, first) if n not in inner))
    # Keras cannot hand an input through, so that is done outside of it.
    reads = tuple(n for n in (normalised, *inputs) if n in read)
    makes = tuple(n for n in outputs if n in inner and n != normalised)
    return _Piece(
        norm=norm,
        entry=entry,
        normalised=normalised,
        inputs=inputs,
        outputs=outputs,
        reads=reads,
        makes=makes,
        model=_model(inside, made, reads, makes) if makes else None,
        specs=tuple((tuple(made[n].shape[1:]), made[n].dtype) for n in outputs),
    )


def _model(
    steps: Sequence[_Step],
    made: Mapping[str, Any],
    reads: Sequence[str],
    makes: Sequence[str],
) -> keras.Model:
    """The steps once more, on inputs of their own.

    `keras.Model` between tensors of the whole model would spoil that: it
    could not be saved any more where a piece reads one of its inputs.
    """
    known = {
        name: keras.Input(made[name].shape[1:], dtype=made[name].dtype)
        for name in reads
    }
    for step in steps:
        arguments, options = step.arguments.fill_in(
            {
                id(tensor): known[name]
                for tensor, name in zip(step.tensors, step.reads, strict=True)
            }
        )
        result = step.operation(*arguments, **options)
        known |= zip(step.makes, keras.tree.flatten(result), strict=True)
    return keras.Model([known[n] for n in reads], [known[n] for n in makes])


def peak_bytes(model: keras.Model, *, windows: int, micro: int) -> int:
    """Most bytes of activations and their slopes at once, by count.

    Follows what is alive while each piece is worked on. What crosses the cuts
    is there for all windows, and so are its slopes on the way back; while the
    micro-batches' results are put together they are there twice. Inside of a
    piece are a micro-batch's activations and as much for their slopes.

    The convolutions' own scratch memory is not in it, nor the model's inputs.

    Args:
        model: As for `Accumulation`.
        windows: Windows of a replica's part of a batch.
        micro: Windows of a micro-batch.
    """
    pieces = _cut(keras.models.clone_model(model))
    size = {
        name: _bytes(shape, dtype)
        for piece in pieces
        for name, (shape, dtype) in zip(piece.outputs, piece.specs, strict=True)
    }

    def total(names: Iterable[str]) -> int:
        # Without the model's inputs, which no piece makes.
        return sum(size.get(name, 0) for name in set(names))

    peak = 0
    kept: set[str] = set()
    for piece in pieces[:-1]:
        inside = _inside(piece, total(piece.needs))
        peak = max(
            peak,
            windows * total([*kept, *piece.outputs]) + micro * inside // 2,
            windows * (total(kept) + 2 * total(piece.outputs)),
        )
        kept |= {*piece.outputs}
    slopes: set[str] = set()
    for place, piece in reversed([*enumerate(pieces)]):
        kept = {name for p in pieces[: place + 1] for name in p.needs}
        there = total(kept) + total(slopes)
        found = total(piece.needs)
        inside = _inside(piece, found)
        peak = max(
            peak,
            windows * (there + found) + micro * inside,
            windows * (there + 2 * found),
        )
        slopes = (slopes - {*piece.outputs}) | {*piece.needs}
    return peak


def _inside(piece: _Piece, entering: int) -> int:
    """Bytes of a window's activations in a piece, and of their slopes."""
    made, inside = _made(piece.model) if piece.model else (0, 0)
    return 2 * (entering + made + inside)


def activation_bytes(model: keras.Model) -> int:
    """Bytes of all that the layers of a model make of one window.

    Its inputs are among it. Of blocks that are computed again on the way back
    the inside counts only of the largest one, with its slopes.
    """
    made, inside = _made(model)
    return made + 2 * inside


def _made(model: keras.Model) -> tuple[int, int]:
    """(bytes of the outputs of all layers, the most inside of one of them)."""
    made, inside = 0, 0
    for operation in model.operations:
        if isinstance(operation, keras.Model):
            # Its inputs are what a layer outside has made, its outputs what
            # its own last layers make.
            there, within = _made(operation)
            made += there - sum(map(_bytes_of, operation.inputs))
            inside = max(inside, within)
            continue
        made += sum(map(_bytes_of, keras.tree.flatten(operation.output)))
        if isinstance(operation, tuned_i3d.Block):
            within = operation.inner_bytes(operation.input.shape)
            inside = max(inside, within)
    return made, inside


def _bytes_of(tensor: Any) -> int:
    return _bytes(tensor.shape[1:], tensor.dtype)


def _bytes(shape: Sequence[int], dtype: str) -> int:
    return math.prod(shape) * tf.as_dtype(dtype).size
