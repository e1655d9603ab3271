"""The command `lsts`: `lsts VERB ...` is `python -m lsts_tf.VERB ...`.

lsts predict in.mp4
lsts predict --help
"""

import argparse
import os
import runpy
import sys

import lsts_tf

VERBS = {
    "predict": "Where people look in a video: overlay, maps, report",
    "evaluate": "Score a model, or maps of any model",
    "train": "Train a model",
    "extract": "Store the features that training reads",
    "export": "A model for a hub, TensorFlow Serving or LiteRT",
    "sample": "Generate a small dataset",
    "app": "A page to drop films on, and a camera's overlay",
}


def main() -> None:
    """Runs a verb with the arguments behind it."""
    parser = argparse.ArgumentParser(
        prog="lsts",
        usage="lsts VERB [flags], such as: lsts predict in.mp4",
        description="Where people look in a video.",
        epilog="verbs; lsts VERB --help shows the flags of one:\n"
        + "\n".join(f"  {verb:12}{does}" for verb, does in VERBS.items()),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--version", action="version", version=f"lsts {lsts_tf.__version__}"
    )
    hidden = argparse.SUPPRESS
    parser.add_argument("verb", choices=VERBS, metavar="VERB", help=hidden)
    parser.add_argument("arguments", nargs=argparse.REMAINDER, help=hidden)
    given = parser.parse_args(sys.argv[1:] or ["--help"])
    sys.argv[1:] = given.arguments
    # As `python -m` does, so that processes that are spawned find the verb.
    try:
        runpy.run_module(
            f"lsts_tf.{given.verb}", None, "__main__", alter_sys=True
        )
    except BrokenPipeError:
        # `lsts predict --help | head` has read enough. What is left goes
        # nowhere, or Python would complain at its end.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


if __name__ == "__main__":
    main()
