import numpy as np
import pytest
import tensorflow as tf

from lsts_tf.training import checkpoints


def make(folder, variable, **keywords):
    return checkpoints.Checkpoints(
        folder, tf.train.Checkpoint(v=variable), keep=2, **keywords
    )


def cut(folder, step, size):
    (data,) = folder.glob(f"step-{step}.data*")
    data.write_bytes(data.read_bytes()[:size])


def kept(folder):
    return {p.stem for p in folder.glob("*.index")}


def test_the_newest_damaged_checkpoint_is_skipped(tmp_path):
    variable = tf.Variable(0.0)
    saved = make(tmp_path, variable)
    for step in (1, 2):
        variable.assign(step)
        saved.save(step)
    cut(tmp_path, 2, 3)
    variable.assign(9.0)
    make(tmp_path, variable).restore()
    assert float(variable) == 1
    cut(tmp_path, 1, 0)
    with pytest.raises(
        checkpoints.StoppedError, match="None of the checkpoints"
    ):
        make(tmp_path, variable).restore()


def test_a_checkpoint_is_on_disk_when_it_is_saved(tmp_path, monkeypatch):
    synced = []
    monkeypatch.setattr(checkpoints.files, "sync", synced.append)
    make(tmp_path, tf.Variable(0.0)).save(3)
    written = {*tmp_path.glob("step-3.*")}
    assert len(written) == 2
    assert written == {*synced[:-1]}
    assert synced[-1] == tmp_path


def test_a_damaged_checkpoint_takes_nobodys_place(tmp_path):
    variable = tf.Variable(0.0)
    saved = make(tmp_path, variable)
    for step in (1, 3):
        saved.save(step)
    cut(tmp_path, 3, 0)
    again = make(tmp_path, variable)
    again.restore()
    again.save(2)
    assert kept(tmp_path) == {"step-1", "step-2"}


def test_only_one_process_leaves_files(tmp_path):
    variable = tf.Variable(4.0)
    make(tmp_path, variable).save(1)
    before = sorted(tmp_path.iterdir())
    other = tf.Variable(0.0)
    reader = make(tmp_path, other, writes=False)
    reader.restore()
    assert float(other) == 4
    reader.save(2)
    assert sorted(tmp_path.iterdir()) == before


def test_what_a_kill_left_half_written_is_removed(tmp_path):
    variable = tf.Variable(4.0)
    make(tmp_path, variable).save(1)
    before = sorted(tmp_path.iterdir())
    (tmp_path / "step-2_temp").mkdir()
    (tmp_path / "step-2_temp" / "part-00000-of-00001.index").write_bytes(b"x")
    (tmp_path / "step-2.index.tempstate123").write_bytes(b"x")
    (tmp_path / "step-2.data-00000-of-00001").write_bytes(b"x")
    again = make(tmp_path, variable)
    again.restore()
    again.save(1)
    assert sorted(tmp_path.iterdir()) == before
    np.testing.assert_array_equal(variable, 4.0)
