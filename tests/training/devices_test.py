"""Strategies, parts of a batch, and workers that wait for each other."""

import os
import subprocess
import sys

import numpy as np
import pytest
import tensorflow as tf

from lsts_tf.training import devices
from tests import pages, tiny_training


def test_each_replica_gets_its_own(mirrored):
    assert devices.rows(mirrored, 8) == [slice(0, 4), slice(4, 8)]
    each = [({"rgb": np.full(3, k)}, np.arange(k, k + 2)) for k in range(2)]
    features, truth = devices.spread(mirrored, each)
    for replica in range(2):
        found, local = (
            mirrored.experimental_local_results(x)[replica].numpy()
            for x in (features["rgb"], truth)
        )
        np.testing.assert_array_equal(found, each[replica][0]["rgb"])
        np.testing.assert_array_equal(local, each[replica][1])


def test_one_device_takes_all():
    strategy = tf.distribute.get_strategy()
    assert devices.rows(strategy, 8) == [slice(0, 8)]
    assert devices.spread(strategy, [np.arange(8)]).numpy().tolist() == [
        *range(8)
    ]
    assert devices.is_chief(strategy)
    assert devices.worker_count(strategy) == 1
    values = np.array([1.0, np.nan])
    np.testing.assert_array_equal(devices.total(strategy, values), values)
    assert devices.gathered(strategy, 3) == [3]


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ("", "TF_CONFIG"),
        ('{"task": {}}', "'cluster'"),
        (tiny_training.tf_config(["a:1", "b:1"], 2), "names its task"),
    ],
)
def test_workers_need_to_know_each_other(monkeypatch, config, message):
    monkeypatch.delenv("TF_CONFIG", raising=False)
    if config:
        monkeypatch.setenv("TF_CONFIG", config)
    with pytest.raises(ValueError, match=message):
        devices.choose_strategy.__wrapped__("multi_worker")


def test_workers_do_not_wait_without_end():
    """The watchdog ends a process whose other worker does not start."""
    hosts = tiny_training.free_addresses(2)
    code = (
        "from absl import logging\n"
        "logging.set_verbosity('info')\n"
        "from lsts_tf.training import devices\n"
        "devices.START = 3.0\n"
        "devices.choose_strategy('multi_worker')\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        check=False,
        capture_output=True,
        cwd=pages.ROOT,
        env={**os.environ, "TF_CONFIG": tiny_training.tf_config(hosts, 0)},
        text=True,
        timeout=120,
    )
    assert done.returncode == 1
    assert f"worker 1 at {hosts[1]}" in done.stderr
    assert "Timeout (0:00:03)!" in done.stderr
    assert "choose_strategy" in done.stderr


def test_a_lost_worker_is_only_lost_where_there_are_several():
    strategy = tf.distribute.get_strategy()
    with (
        pytest.raises(tf.errors.InternalError),
        devices.together(strategy),
    ):
        raise tf.errors.InternalError(None, None, "broken")
