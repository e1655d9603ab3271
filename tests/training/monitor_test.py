import contextlib
import pathlib
import resource

import numpy as np
import pytest
from tensorboard.plugins.hparams import plugin_data_pb2
import tensorflow as tf

from lsts_tf.training import checkpoints, monitor
from tests import run_folder


def log(folder, first, last, note=""):
    watch = monitor.Monitor(folder, first_step=first, note=note)
    watch.text(first, "experiment", "--a=1")
    for step in range(first + 1, last + 1):
        watch.scalars(step, "train", {"loss": step + first / 100})
    watch.flush()
    return watch


def test_a_run_that_goes_on_has_each_point_once(tmp_path):
    # Killed twice, and so never closed.
    for place, (first, last) in enumerate([(0, 7), (4, 6), (4, 9)]):
        log(tmp_path, first, last)
        run_folder.put_events_first(tmp_path, place)
    points = run_folder.events(tmp_path).Tensors("train/loss")
    assert [point.step for point in points] == list(range(1, 10))
    values = [float(tf.make_ndarray(point.tensor_proto)) for point in points]
    # Up to step 4 those of the first run, from there on of the last one.
    want = [1, 2, 3, 4, 5.04, 6.04, 7.04, 8.04, 9.04]
    np.testing.assert_allclose(values, want, rtol=1e-6)


def test_what_is_flushed_is_on_disk(tmp_path, monkeypatch):
    synced = []
    monkeypatch.setattr(monitor.files, "sync", synced.append)
    log(tmp_path, 0, 5).close()
    assert synced == [*tmp_path.glob("*tfevents*"), tmp_path]


def trial(folder):
    """What TensorBoard takes this run for a repetition of."""
    watch = monitor.Monitor(folder, first_step=0)
    watch.settings(0, {"loss": "mse"})
    watch.close()
    content = run_folder.events(folder).SummaryMetadata(
        "_hparams_/session_start_info"
    )
    plugin = plugin_data_pb2.HParamsPluginData.FromString(
        content.plugin_data.content
    )
    return plugin.session_start_info.group_name


def test_each_run_is_a_trial_of_its_own(tmp_path, monkeypatch):
    first = trial(tmp_path / "a")
    assert first != trial(tmp_path / "b")
    # The same one when it goes on, from another folder, too.
    monkeypatch.chdir(tmp_path)
    assert trial(pathlib.Path("a")) == first


@contextlib.contextmanager
def full_disk(size=2000):
    """Files cannot become longer than this."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.mark.parametrize(
    "write",
    [
        lambda watch: [watch.text(k, "a", "b" * 3000) for k in range(99)],
        lambda watch: [
            watch.scalars(k, "train", {"loss": 1.0}) for k in range(9999)
        ],
        lambda watch: (watch.text(1, "a", "b" * 3000), watch.flush()),
    ],
)
def test_a_full_disk_ends_clearly(tmp_path, write):
    """And closing does not hide the first failure by another one."""
    watch = monitor.Monitor(tmp_path, first_step=0)
    with full_disk():
        with pytest.raises(checkpoints.StoppedError, match=str(tmp_path)):
            write(watch)
        watch.close()
