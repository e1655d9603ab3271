"""Plain programs that print ratios: `python -m benchmarks.<name>`."""

import resource

# Before anything of TensorFlow: it settles the same arithmetic (oneDNN) for
# benchmarks as for programs.
import lsts_tf  # noqa: F401


def peak_bytes() -> int:
    """The most memory that this process has had."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
