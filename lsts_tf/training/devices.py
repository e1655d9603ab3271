"""On which devices, of one machine or of several, a run trains.

A replica is a copy of the model on a device; a worker is a process with one
replica or more. Every worker runs the same program with the same flags, reads
its own part of each batch (`part`), and only the chief writes. Workers of
several machines see one file system.

The environment variable TF_CONFIG tells a worker of the others:

    {"cluster": {"worker": ["host0:5000", "host1:5000"]},
     "task": {"type": "worker", "index": 0}}
"""

from collections.abc import Callable
from collections.abc import Iterator
from collections.abc import Mapping
from collections.abc import Sequence
import contextlib
import faulthandler
import functools
import json
import os
import socket
import time
from typing import Any

from absl import logging
import numpy as np
import tensorflow as tf

from lsts_tf.training import input_pipeline

# Seconds that workers wait for each other at the start.
START = 600.0
# Seconds between two lines that say for whom.
REMIND = 30.0
# What TensorFlow says where workers add up tensors of several shapes.
_DIFFERS = "Shape mismatch in the collective"


class WorkerLostError(RuntimeError):
    """Another worker ended or did not start, so this one cannot go on."""


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
        WorkerLostError: Another worker did not start within `START` seconds,
            or ended while they were being connected.
        OSError: This worker's port is taken.
    """
    workers = _workers()
    if name == "multi_worker" or (name == "auto" and workers > 1):
        if not workers:
            raise ValueError(
                "--strategy=multi_worker needs TF_CONFIG in the environment "
                "of each worker, such as {'cluster': {'worker': "
                "['host0:5000', 'host1:5000']}, 'task': {'type': 'worker', "
                f"'index': 0}}. Received: {os.environ.get('TF_CONFIG', '')!r}"
            )
        return _connect()
    gpus = tf.config.list_logical_devices("GPU")
    if name == "one" or (name == "auto" and len(gpus) < 2):
        return tf.distribute.get_strategy()
    found = gpus or tf.config.list_logical_devices("CPU")
    return tf.distribute.MirroredStrategy([d.name for d in found])


def _connect() -> tf.distribute.Strategy:
    """A strategy over the workers of TF_CONFIG, once all have started."""
    resolver = tf.distribute.cluster_resolver.TFConfigClusterResolver()
    addresses = {
        f"{kind} {number}": address
        for kind in ("chief", "worker")
        for number, address in enumerate(
            resolver.cluster_spec().as_dict().get(kind, ())
        )
    }
    here = f"{resolver.task_type} {resolver.task_id}"
    if here not in addresses:
        raise ValueError(
            "The task in TF_CONFIG must be a chief or a worker of its cluster, "
            f"one of {', '.join(addresses)}. Received: {here}"
        )
    meet(addresses, here)
    # TensorFlow holds Python's lock until all are connected, so no signal and
    # no other thread is heard: only this watchdog can end the process, with a
    # traceback, if a worker is lost on the way.
    logging.info("Connecting the workers, for at most %g s.", START)
    faulthandler.dump_traceback_later(START, exit=True)
    try:
        return tf.distribute.MultiWorkerMirroredStrategy()
    except tf.errors.OpError as error:
        raise _lost(error) from error
    finally:
        faulthandler.cancel_dump_traceback_later()


def meet(
    addresses: Mapping[str, str], here: str, *, limit: float | None = None
) -> None:
    """Wait until each worker has been reached at its address.

    Each listens at its own until it has reached all others; then TensorFlow
    does. Without this a worker that does not start is waited for without a
    word, and without an end.

    Args:
        addresses: "host:port" of each worker, by its name.
        here: Name of this one.
        limit: Seconds to wait; None is `START`.

    Raises:
        WorkerLostError: Some were not reached in time.
        OSError: This worker's port is taken.
    """
    limit = START if limit is None else limit
    start = told = time.monotonic()
    left = {name: a for name, a in addresses.items() if name != here}
    try:
        listening = _listen(addresses[here])
    except OSError as error:
        error.add_note(
            f"{here} listens at {addresses[here]}, as TF_CONFIG says. Does an "
            "earlier run of it still live?"
        )
        raise
    with listening:
        while True:
            left = {n: a for n, a in left.items() if not _answers(a)}
            waited = time.monotonic() - start
            if not left:
                logging.info("All %d workers have started.", len(addresses))
                return
            names = ", ".join(f"{n} at {a}" for n, a in left.items())
            if waited > limit:
                raise WorkerLostError(
                    f"All workers must start within {limit:g} seconds. Not "
                    f"reached: {names}. See why they did not start, or whether "
                    "TF_CONFIG's addresses are right, and start all of them "
                    "again by the same command."
                )
            if told == start or time.monotonic() - told > REMIND:
                told = time.monotonic()
                logging.warning(
                    "%s waits for %s; gives up in %.0f s.",
                    here,
                    names,
                    limit - waited,
                )
            time.sleep(min(1.0, limit / 10))


def _parse(address: str) -> tuple[str, int]:
    """(host, port) of "host:port", or of "[host]:port" with IPv6."""
    host, _, port = address.rpartition(":")
    return host.strip("[]"), int(port)


def _listen(address: str) -> socket.socket:
    """Listens at this port of all of this machine's addresses."""
    everywhere = ("", _parse(address)[1])
    if not socket.has_dualstack_ipv6():
        return socket.create_server(everywhere)
    return socket.create_server(
        everywhere, family=socket.AF_INET6, dualstack_ipv6=True
    )


def _answers(address: str) -> bool:
    try:
        with socket.create_connection(_parse(address), timeout=1.0) as reached:
            # Where nobody listens, a port may be connected with itself.
            return reached.getsockname() != reached.getpeername()
    except OSError:
        return False


def _lost(error: tf.errors.OpError) -> WorkerLostError:
    return WorkerLostError(
        f"Another worker ended: {str(error).splitlines()[0]} Start all "
        "of them again by the same command; they go on from the last "
        "checkpoint."
    )


def _workers() -> int:
    """Workers that TF_CONFIG names; 0 without one."""
    try:
        cluster = json.loads(os.environ.get("TF_CONFIG") or "{}")["cluster"]
        return sum(len(cluster.get(kind, ())) for kind in ("chief", "worker"))
    except (KeyError, ValueError):
        return 0


def _task(strategy: tf.distribute.Strategy) -> tuple[str, int]:
    resolver = strategy.cluster_resolver
    if resolver is None or not resolver.cluster_spec():
        return "", 0
    return resolver.task_type, resolver.task_id


def worker_count(strategy: tf.distribute.Strategy) -> int:
    """Processes that train together."""
    if _task(strategy)[0]:
        return _workers()
    return 1


def worker_number(strategy: tf.distribute.Strategy) -> int:
    """Number of this process among all that train together; 0 is the chief."""
    kind, number = _task(strategy)
    return number + (kind == "worker" and _has_chief(strategy))


def is_chief(strategy: tf.distribute.Strategy) -> bool:
    """Whether this process writes: the chief, or the first worker."""
    return worker_number(strategy) == 0


def _has_chief(strategy: tf.distribute.Strategy) -> bool:
    return "chief" in strategy.cluster_resolver.cluster_spec().jobs


def distribute(
    strategy: tf.distribute.Strategy,
    read: Callable[[input_pipeline.Part], tf.data.Dataset],
) -> Any:
    """Batches, each replica's part of each.

    Nothing is sharded by TensorFlow: `read` makes the data of the parts that
    this worker's replicas take, one after the other.
    """

    def of_worker(context: tf.distribute.InputContext) -> tf.data.Dataset:
        total = context.num_replicas_in_sync
        count = total // context.num_input_pipelines
        first = context.input_pipeline_id * count
        return read(input_pipeline.Part(first, count, total))

    return strategy.distribute_datasets_from_function(of_worker)


def total(strategy: tf.distribute.Strategy, values: np.ndarray) -> np.ndarray:
    """Sum over all workers of one array each, float64."""
    values = np.asarray(values, np.float64)
    if worker_count(strategy) == 1:
        return values
    replicas = strategy.num_replicas_in_sync // worker_count(strategy)

    def of_replica(here: tf.Tensor) -> tf.Tensor:
        context = tf.distribute.get_replica_context()
        # One replica of each worker says what the worker has.
        speaks = context.replica_id_in_sync_group % replicas == 0
        here = tf.where(speaks, here, tf.zeros_like(here))
        return context.all_reduce("SUM", here)

    reduced = tf.function(
        lambda here: strategy.run(of_replica, args=(here,)), autograph=False
    )
    found = reduced(tf.constant(values))
    return strategy.experimental_local_results(found)[0].numpy()


def gathered(
    strategy: tf.distribute.Strategy, values: Sequence[float]
) -> np.ndarray:
    """What each worker has: float64 [workers, values], the chief's first."""
    each = np.zeros((worker_count(strategy), len(values)))
    each[worker_number(strategy)] = values
    return total(strategy, each)


@contextlib.contextmanager
def chief_first(strategy: tf.distribute.Strategy) -> Iterator[None]:
    """The chief does what stands inside, and then the others do."""
    if not is_chief(strategy):
        total(strategy, np.zeros(1))
    yield
    if is_chief(strategy):
        total(strategy, np.zeros(1))


@contextlib.contextmanager
def together(strategy: tf.distribute.Strategy) -> Iterator[None]:
    """What is computed inside needs all workers.

    Raises:
        WorkerLostError: Another one ended, or computes something else.
    """
    try:
        yield
    except tf.errors.InvalidArgumentError as error:
        if worker_count(strategy) == 1 or _DIFFERS not in str(error):
            raise
        raise WorkerLostError(
            "All workers must train the same model on the same data, and "
            "another one computes something of another shape: "
            f"{str(error).splitlines()[0]} Give all of them the same flags, "
            "the same data and the same version of this program, and start "
            "all of them again."
        ) from error
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
