"""Strategies, parts of a batch, and workers that wait for each other."""

import os
import subprocess
import sys

import pytest
import tensorflow as tf

from lsts_tf.training import devices
from tests import pages, tiny_training


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
