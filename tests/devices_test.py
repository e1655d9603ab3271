import json

import numpy as np
import pytest
import tensorflow as tf

from lsts_tf import devices
from lsts_tf import input_pipeline


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


def test_several_workers_need_to_know_each_other(monkeypatch):
    monkeypatch.delenv("TF_CONFIG", raising=False)
    with pytest.raises(ValueError, match="TF_CONFIG"):
        devices.choose_strategy.__wrapped__("multi_worker")
    monkeypatch.setenv("TF_CONFIG", json.dumps({"task": {}}))
    with pytest.raises(ValueError, match="'cluster'"):
        devices.choose_strategy.__wrapped__("multi_worker")


def test_a_lost_worker_is_only_lost_where_there_are_several():
    strategy = tf.distribute.get_strategy()
    with (
        pytest.raises(tf.errors.InternalError),
        devices.together(strategy),
    ):
        raise tf.errors.InternalError(None, None, "broken")
