"""Options: fields of dataclasses that are flags too, each said in one place.

`field` says what an option means and what is allowed, `check` refuses all else,
and `define_flags` makes flags of the same names.
"""

from collections.abc import Callable, Collection, Mapping
import dataclasses
import math
from typing import Any

from absl import flags

# A flag belongs to the module that calls `define_flags`.
flags.disclaim_key_flags()

_DEFINE: Mapping[type, Callable[..., Any]] = {
    bool: flags.DEFINE_boolean,
    int: flags.DEFINE_integer,
    float: flags.DEFINE_float,
    str: flags.DEFINE_string,
    tuple: flags.DEFINE_list,
}


def field(
    default: Any,
    help_text: str,
    *,
    choices: Collection[str] = (),
    least: float = -math.inf,
    most: float = math.inf,
    **more: Any,
) -> Any:
    """An option; `more` is metadata of the field.

    The type of the default is that of the flag; a tuple of texts is a list
    there. Only `choices`, or numbers from `least` to `most`, are allowed.
    """
    about = {"help": help_text, "choices": choices, "range": (least, most)}
    return dataclasses.field(default=default, metadata=about | more)


def of(*kinds: type) -> dict[str, dataclasses.Field]:
    """Options of some classes, by name; several classes may share one."""
    return {
        each.name: each
        for kind in kinds
        for each in dataclasses.fields(kind)
        if each.metadata
    }


def check(made: Any) -> None:
    """Raises ValueError if an option of an instance is not allowed."""
    for name, each in of(type(made)).items():
        value, choices = getattr(made, name), each.metadata["choices"]
        least, most = each.metadata["range"]
        rule = ""
        if choices and value not in choices:
            rule = f"one of {', '.join(choices)}"
        elif isinstance(each.default, int | float) and not (
            math.isfinite(value) and least <= value <= most
        ):
            rule = f"a number of at least {least:g}"
            rule += f", at most {most:g}" if most < math.inf else ""
        if rule:
            raise ValueError(f"--{name} must be {rule}. Received: {value!r}")


def define_flags(
    options: Mapping[str, dataclasses.Field],
    flag_values: flags.FlagValues = flags.FLAGS,
) -> None:
    """Defines a flag for each of some options, by name."""
    for name, each in options.items():
        default, text = each.default, each.metadata["help"]
        if choices := list(each.metadata["choices"]):
            flags.DEFINE_enum(
                name, default, choices, text, flag_values=flag_values
            )
            continue
        # absl's lists are lists, and nothing else has bounds than numbers.
        start = list(default) if isinstance(default, tuple) else default
        bounds = each.metadata["range"] if type(start) in (int, float) else ()
        _DEFINE[type(default)](
            name,
            start,
            text,
            *(None if math.isinf(bound) else bound for bound in bounds),
            flag_values=flag_values,
        )
