"""How many cores there are to work with."""

import os
import pathlib
import sys


def usable() -> int:
    """The cores that this process may use, not those of the machine.

    A container, a queue or `taskset` may have given it fewer.
    """
    if sys.platform == "linux":
        return len(os.sched_getaffinity(0))
    else:  # noqa: RET505 - mypy checks one system's branch only
        return os.cpu_count() or 1


def compute_bfloat16() -> bool:
    """Whether this machine's processor says that it computes in bfloat16."""
    about = pathlib.Path("/proc/cpuinfo")
    words = about.read_text().split() if about.is_file() else []
    return not {"avx512_bf16", "amx_bf16"}.isdisjoint(words)
