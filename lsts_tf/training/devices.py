"""On which devices, of one machine or of several, a run trains.

A replica is a copy of the model on a device; a worker is a process with one
replica or more. Every worker runs the same program with the same flags, reads
its own part of each batch (`rows`), and only the chief writes. Workers of
several machines see one file system.

The environment variable TF_CONFIG tells a worker of the others:

    {"cluster": {"worker": ["host0:5000", "host1:5000"]},
     "task": {"type": "worker", "index": 0}}
"""

from collections.abc import Callable, Iterator, Sequence
import contextlib
import faulthandler
import functools
import os
import signal
from typing import Any

from absl import logging
import numpy as np
import tensorflow as tf

# Seconds that workers wait for each other at the start.
START = 600.0


class WorkerLostError(RuntimeError):
    """Another worker ended or did not start, so this one cannot continue."""


@functools.cache
def choose_strategy(name: str) -> tf.distribute.Strategy:
    """The devices of `--strategy`.

    "auto" is one device, or a MirroredStrategy over all GPUs where there are
    several, or "multi_worker" where TF_CONFIG names several workers;
    "mirrored" mirrors over all GPUs or, without any, over all logical CPUs.
    One strategy a process: a second one's collectives would be taken for the
    first one's.

    Raises:
        ValueError: "multi_worker" without a TF_CONFIG, or with one that does
            not say which worker this is.
        WorkerLostError: The workers could not be connected.
    """
    resolver = tf.distribute.cluster_resolver.TFConfigClusterResolver()
    workers = _workers(resolver)
    if name == "multi_worker" or (name == "auto" and len(workers) > 1):
        return _connect(workers, f"{resolver.task_type} {resolver.task_id}")
    gpus = tf.config.list_logical_devices("GPU")
    if name == "one" or (name == "auto" and len(gpus) < 2):
        return tf.distribute.get_strategy()
    found = gpus or tf.config.list_logical_devices("CPU")
    return tf.distribute.MirroredStrategy([d.name for d in found])


def _workers(resolver: Any) -> dict[str, str]:
    """{name: address} of all workers, the chief first."""
    cluster = resolver.cluster_spec().as_dict() if resolver else {}
    return {
        f"{kind} {number}": address
        for kind in ("chief", "worker")
        for number, address in enumerate(cluster.get(kind, ()))
    }


def _connect(workers: dict[str, str], here: str) -> tf.distribute.Strategy:
    """A strategy over the workers of TF_CONFIG, once all have started."""
    if here not in workers:
        raise ValueError(
            "--strategy=multi_worker needs TF_CONFIG in the environment of "
            "each worker, which names its task in the cluster, such as "
            "{'cluster': {'worker': ['host0:5000', 'host1:5000']}, 'task': "
            "{'type': 'worker', 'index': 0}}. "
            f"Received: {os.environ.get('TF_CONFIG', '')!r}"
        )
    logging.info(
        "%s waits at most %g s for all workers to start: %s.",
        here,
        START,
        ", ".join(f"{name} at {address}" for name, address in workers.items()),
    )
    # TensorFlow itself waits without end, and holds Python's lock: signals
    # take effect by the system's own handler only, and this watchdog alone
    # can end the process.
    before = signal.signal(signal.SIGINT, signal.SIG_DFL)
    faulthandler.dump_traceback_later(START, exit=True)
    try:
        return tf.distribute.MultiWorkerMirroredStrategy()
    except tf.errors.OpError as error:
        error.add_note(f"Is {workers[here]} in use by an earlier run?")
        raise _lost(error) from error
    finally:
        faulthandler.cancel_dump_traceback_later()
        signal.signal(signal.SIGINT, before)


def _lost(error: tf.errors.OpError) -> WorkerLostError:
    notes = " ".join(["", *getattr(error, "__notes__", [])])
    return WorkerLostError(
        f"Another worker ended: {str(error).splitlines()[0]}{notes} Start all "
        "workers again with the same commands; they continue from the last "
        "checkpoint."
    )


def worker_count(strategy: tf.distribute.Strategy) -> int:
    """Processes that train together."""
    return len(_workers(strategy.cluster_resolver)) or 1


def worker_number(strategy: tf.distribute.Strategy) -> int:
    """Number of this process among all that train together; 0 is the chief."""
    if worker_count(strategy) == 1:
        return 0
    resolver = strategy.cluster_resolver
    here = f"{resolver.task_type} {resolver.task_id}"
    return list(_workers(resolver)).index(here)


def is_chief(strategy: tf.distribute.Strategy) -> bool:
    """Whether this process writes: the chief, or the first worker."""
    return worker_number(strategy) == 0


def replicas(strategy: tf.distribute.Strategy) -> range:
    """Numbers of this worker's replicas among all of them."""
    here = strategy.num_replicas_in_sync // worker_count(strategy)
    first = worker_number(strategy) * here
    return range(first, first + here)


def rows(
    strategy: tf.distribute.Strategy, batch_size: int, accumulate: int = 1
) -> list[slice]:
    """Rows of a batch that this worker reads, block by block.

    A batch of `batch_size` windows is cut into equal blocks, one for each of
    `accumulate` micro-batches and, within it, one for each replica.

    Raises:
        ValueError: A batch has no equal blocks.
    """
    count = strategy.num_replicas_in_sync
    size, rest = divmod(batch_size, count * accumulate)
    if rest or not size:
        raise ValueError(
            f"--batch_size must be a multiple of the {count} devices "
            f"times --accumulate={accumulate}. Received: {batch_size}"
        )
    blocks = [
        micro * count + replica
        for micro in range(accumulate)
        for replica in replicas(strategy)
    ]
    return [slice(k * size, (k + 1) * size) for k in blocks]


def spread(strategy: tf.distribute.Strategy, each: Sequence[Any]) -> Any:
    """Hand each of this worker's replicas its own nested arrays of `each`."""
    each = tf.nest.map_structure(tf.convert_to_tensor, list(each))
    if strategy.num_replicas_in_sync == 1:
        return each[0]
    first = replicas(strategy).start
    return strategy.experimental_distribute_values_from_function(
        lambda context: each[context.replica_id_in_sync_group - first]
    )


def total(strategy: tf.distribute.Strategy, values: Any) -> np.ndarray:
    """Sum over all workers of one array each, float64."""
    values = np.asarray(values, np.float64)
    if worker_count(strategy) == 1:
        return values
    # Each of a worker's replicas says what the worker has.
    summed = _adder(strategy)(tf.constant(values)).numpy()
    return summed / len(replicas(strategy))


@functools.cache
def _adder(strategy: tf.distribute.Strategy) -> Callable[[tf.Tensor], Any]:
    """Sums over all replicas; made once, so that it is traced once a shape."""

    def add(values: tf.Tensor) -> tf.Tensor:
        said = strategy.run(tf.identity, args=(values,))
        return strategy.reduce("SUM", said, axis=None)

    return tf.function(add, autograph=False)


def gathered(strategy: tf.distribute.Strategy, value: float) -> list[float]:
    """A number of each worker, the chief's first."""
    each = np.zeros(worker_count(strategy))
    each[worker_number(strategy)] = value
    return total(strategy, each).tolist()


@contextlib.contextmanager
def chief_first(strategy: tf.distribute.Strategy) -> Iterator[None]:
    """The chief runs the block, and then the others do."""
    if not is_chief(strategy):
        total(strategy, 0)
    yield
    if is_chief(strategy):
        total(strategy, 0)


@contextlib.contextmanager
def together(strategy: tf.distribute.Strategy) -> Iterator[None]:
    """What is computed in the block needs all workers.

    Raises:
        WorkerLostError: Another one ended.
    """
    try:
        yield
    except (
        tf.errors.UnavailableError,
        tf.errors.AbortedError,
        tf.errors.CancelledError,
        tf.errors.DeadlineExceededError,
        tf.errors.InternalError,
    ) as error:
        if worker_count(strategy) == 1:
            raise
        raise _lost(error) from error
