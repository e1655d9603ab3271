"""Strategies, parts of a batch, and workers that wait for each other."""

import contextlib
import json
import os
import socket
import subprocess
import sys
import threading
import time

import numpy as np
import pytest
import tensorflow as tf

from lsts_tf.training import devices
from lsts_tf.training import input_pipeline
from tests import pages


def read(part):
    """Batches 0 … 3 of 8 rows; a row is ten times the batch and its place."""
    rows = part.rows(8)
    numbers = [[10 * k + np.arange(8)[r] for r in rows] for k in range(4)]
    flat = np.concatenate(numbers).astype(np.int64)
    return tf.data.Dataset.from_tensor_slices(flat)


def test_every_row_is_read_once_by_some_part():
    parts = [input_pipeline.Part(k, 2, 4) for k in (0, 2)]
    each = [list(read(p).as_numpy_iterator()) for p in parts]
    assert [len(e) for e in each] == [8, 8]
    for step in range(4):
        rows = np.concatenate([np.concatenate(e[2 * step :][:2]) for e in each])
        assert rows.tolist() == list(range(10 * step, 10 * step + 8))


@pytest.mark.parametrize("total", [3, 16])
def test_a_batch_without_equal_parts(total):
    with pytest.raises(ValueError, match=rf"{total}\. Received: 8"):
        input_pipeline.Part(total=total).rows(8)


def test_replicas_take_their_part_in_order(mirrored):
    for step, batch in enumerate(devices.distribute(mirrored, read)):
        found = mirrored.experimental_local_results(batch)
        assert [x.numpy()[0] - 10 * step for x in found] == [0, 4]
        assert [len(x) for x in found] == [4, 4]


def test_one_device_takes_all():
    strategy = tf.distribute.get_strategy()
    first = next(iter(devices.distribute(strategy, read)))
    assert first.numpy().tolist() == list(range(8))
    assert devices.is_chief(strategy)
    assert devices.worker_count(strategy) == 1
    values = np.array([1.0, np.nan])
    np.testing.assert_array_equal(devices.total(strategy, values), values)
    assert devices.gathered(strategy, [3, 4]).tolist() == [[3, 4]]


def test_several_workers_need_to_know_each_other(monkeypatch):
    monkeypatch.delenv("TF_CONFIG", raising=False)
    with pytest.raises(ValueError, match="TF_CONFIG"):
        devices.choose_strategy.__wrapped__("multi_worker")
    monkeypatch.setenv("TF_CONFIG", json.dumps({"task": {}}))
    with pytest.raises(ValueError, match="'cluster'"):
        devices.choose_strategy.__wrapped__("multi_worker")


def test_a_worker_needs_a_place_in_the_cluster(monkeypatch):
    config = {
        "cluster": {"worker": ["a:5000", "b:5000"]},
        "task": {"type": "worker", "index": 2},
    }
    monkeypatch.setenv("TF_CONFIG", json.dumps(config))
    with pytest.raises(ValueError, match=r"worker 1\. Received: worker 2"):
        devices.choose_strategy.__wrapped__("multi_worker")


def free_addresses(count):
    """Addresses of workers on this machine, by name."""
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for free in sockets:
            free.bind(("localhost", 0))
        return {
            f"worker {number}": f"localhost:{free.getsockname()[1]}"
            for number, free in enumerate(sockets)
        }


@pytest.mark.parametrize("host", ["[::1]", "127.0.0.1"])
def test_workers_meet_at_addresses_of_both_kinds(host):
    if ":" in host and not socket.has_dualstack_ipv6():
        pytest.skip("This machine has no IPv6.")
    addresses = {
        name: address.replace("localhost", host)
        for name, address in free_addresses(2).items()
    }
    met = []

    def start(name):
        devices.meet(addresses, name, limit=30)
        # From here on TensorFlow listens there.
        with devices._listen(addresses[name]):
            met.append(name)
            everybody.wait(30)

    everybody = threading.Event()
    threads = [threading.Thread(target=start, args=(n,)) for n in addresses]
    for thread in threads:
        thread.start()
    deadline = time.monotonic() + 30
    while len(met) < 2 and time.monotonic() < deadline:
        time.sleep(0.05)
    everybody.set()
    for thread in threads:
        thread.join(30)
    assert sorted(met) == sorted(addresses)


def test_workers_wait_until_all_have_started(caplog):
    addresses = free_addresses(3)
    met = []

    def start(name):
        devices.meet(addresses, name, limit=60)
        # From here on TensorFlow listens there.
        port = int(addresses[name].rpartition(":")[2])
        with socket.create_server(("", port)):
            met.append(name)
            everybody.wait(60)

    everybody = threading.Event()
    threads = [threading.Thread(target=start, args=(n,)) for n in addresses]
    *early, late = threads
    for thread in early:
        thread.start()
    waits_for = f"waits for worker 2 at {addresses['worker 2']}"
    deadline = time.monotonic() + 30
    while waits_for not in caplog.text and time.monotonic() < deadline:
        time.sleep(0.05)
    assert waits_for in caplog.text
    assert met == []
    late.start()
    while len(met) < 3 and time.monotonic() < deadline:
        time.sleep(0.05)
    everybody.set()
    for thread in threads:
        thread.join(30)
    assert sorted(met) == sorted(addresses)


def test_a_worker_that_does_not_start_is_named():
    addresses = free_addresses(2)
    with pytest.raises(
        devices.WorkerLostError,
        match=rf"Not reached: worker 1 at {addresses['worker 1']}\.",
    ):
        devices.meet(addresses, "worker 0", limit=0.1)


def test_a_worker_that_is_lost_while_tensorflow_connects():
    """Its place answers, and says nothing: the watchdog ends the process."""
    here, other = free_addresses(2).values()
    port = int(other.rpartition(":")[2])
    code = (
        "from lsts_tf.training import devices\n"
        "devices.START = 3.0\n"
        "devices.choose_strategy('multi_worker')\n"
    )
    cluster = {"worker": [here, other]}
    task = {"type": "worker", "index": 0}
    with socket.create_server(("", port)):
        done = subprocess.run(
            [sys.executable, "-c", code],
            check=False,
            capture_output=True,
            cwd=pages.ROOT,
            env={
                **os.environ,
                "TF_CONFIG": json.dumps({"cluster": cluster, "task": task}),
            },
            text=True,
            timeout=120,
        )
    assert done.returncode == 1
    assert "Timeout (0:00:03)!" in done.stderr
    assert "choose_strategy" in done.stderr


def test_a_port_that_is_taken():
    addresses = free_addresses(2)
    port = int(addresses["worker 0"].rpartition(":")[2])
    with (
        socket.create_server(("", port)),
        pytest.raises(OSError, match="in use") as caught,
    ):
        devices.meet(addresses, "worker 0")
    assert "an earlier run" in caught.value.__notes__[0]


def test_workers_that_compute_something_else_are_named(monkeypatch):
    def fails(expected, message):
        strategy = tf.distribute.get_strategy()
        with pytest.raises(expected) as caught, devices.together(strategy):
            raise tf.errors.InvalidArgumentError(None, None, message)
        return str(caught.value)

    told = "Shape mismatch in the collective instance 7: [2] and [3]"
    fails(tf.errors.InvalidArgumentError, told)
    monkeypatch.setattr(devices, "worker_count", lambda _: 2)
    assert "the same flags" in fails(devices.WorkerLostError, told)
    fails(tf.errors.InvalidArgumentError, "Something else.")


def test_a_lost_worker_is_only_lost_where_there_are_several():
    strategy = tf.distribute.get_strategy()
    with (
        pytest.raises(tf.errors.InternalError),
        devices.together(strategy),
    ):
        raise tf.errors.InternalError(None, None, "broken")
