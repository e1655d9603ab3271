import numpy as np
import pytest
import tensorflow as tf

from lsts_tf import checkpoints


def test_the_newest_damaged_checkpoint_is_skipped(tmp_path):
    variable = tf.Variable(0.0)
    manager = tf.train.CheckpointManager(
        tf.train.Checkpoint(v=variable), str(tmp_path), max_to_keep=3
    )
    for step in (1, 2):
        variable.assign(step)
        manager.save(checkpoint_number=step)
    (data,) = tmp_path.glob("ckpt-2.data*")
    data.write_bytes(data.read_bytes()[:3])
    variable.assign(9.0)
    checkpoints.restore(manager)
    assert float(variable) == 1
    (data,) = tmp_path.glob("ckpt-1.data*")
    data.write_bytes(b"")
    with pytest.raises(
        checkpoints.StoppedError, match="None of the checkpoints"
    ):
        checkpoints.restore(manager)


def make(folder, variable, **keywords):
    return checkpoints.Checkpoints(
        folder, tf.train.Checkpoint(v=variable), keep=2, **keywords
    )


def test_the_newest_are_kept(tmp_path):
    variable = tf.Variable(0.0)
    saved = make(tmp_path, variable)
    for step in (1, 2, 3):
        variable.assign(step)
        saved.save(step)
    variable.assign(9.0)
    make(tmp_path, variable).restore()
    assert float(variable) == 3
    assert {p.stem for p in tmp_path.glob("*.index")} == {"step-2", "step-3"}


def test_only_one_process_leaves_files(tmp_path):
    variable = tf.Variable(4.0)
    make(tmp_path, variable).save(1)
    before = sorted(tmp_path.iterdir())
    other = tf.Variable(0.0)
    reader = make(tmp_path, other, writes=False)
    reader.restore()
    assert float(other) == 4
    reader.save(2)
    reader.close()
    assert sorted(tmp_path.iterdir()) == before


def test_what_a_kill_left_half_written_is_removed(tmp_path):
    variable = tf.Variable(4.0)
    make(tmp_path, variable).save(1)
    before = sorted(tmp_path.iterdir())
    (tmp_path / "step-2_temp").mkdir()
    (tmp_path / "step-2_temp" / "part-00000-of-00001.index").write_bytes(b"x")
    (tmp_path / "step-2.index.tempstate123").write_bytes(b"x")
    make(tmp_path, variable).restore()
    assert sorted(tmp_path.iterdir()) == before
    np.testing.assert_array_equal(variable, 4.0)


def test_a_write_that_fails_says_where_and_what_stands(tmp_path):
    with (
        pytest.raises(checkpoints.StoppedError, match=str(tmp_path)),
        checkpoints.writing(tmp_path),
    ):
        raise OSError(28, "No space left on device")
