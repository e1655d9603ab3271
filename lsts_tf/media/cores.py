"""How many cores there are to work with."""

import os
import sys


def usable() -> int:
    """The cores that this process may use, not those of the machine.

    A container, a queue or `taskset` may have given it fewer.
    """
    if sys.platform == "linux":
        return len(os.sched_getaffinity(0))
    else:  # noqa: RET505 - mypy checks one system's branch only
        return os.cpu_count() or 1
