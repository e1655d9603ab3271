"""What processes that share the work of this machine do first."""

import multiprocessing
import multiprocessing.connection
import os
import sys
import threading
from typing import Any

import tensorflow as tf


def begin(place: int, workers: int) -> None:
    """To be called in worker `place`, from 0, before TensorFlow computes.

    It ends with the process that started it, and takes a part of the cores,
    and one GPU where there are some. All workers have the same number of
    threads, because that decides the last bits of a feature.
    """
    threading.Thread(target=_die_with_parent, daemon=True).start()
    if sys.platform == "linux":  # Others cannot choose cores.
        cores = sorted(os.sched_getaffinity(0))
        each = max(len(cores) // workers, 1)
        first = place * each % len(cores)
        os.sched_setaffinity(0, cores[first : first + each])
    gpus = tf.config.list_physical_devices("GPU")
    if gpus:
        chosen = gpus[place % len(gpus)]
        tf.config.set_visible_devices([chosen], "GPU")
        # Workers may share it.
        tf.config.experimental.set_memory_growth(chosen, True)


def _die_with_parent() -> None:
    """End this process as soon as the one that started it has ended."""
    parent: Any = multiprocessing.parent_process()
    multiprocessing.connection.wait([parent.sentinel])
    os._exit(1)
