"""Plain programs that print ratios: `python -m benchmarks.<name>`."""

# Before anything of TensorFlow: it settles the same arithmetic (oneDNN) for
# benchmarks as for programs.
import lsts_tf  # noqa: F401
