import pickle

import numpy as np
import pytest

from lsts_tf.scoring import truth


@pytest.fixture
def found():
    rng = np.random.default_rng(0)
    return truth.FixationSet(
        [
            (9, 0, rng.integers(0, 20, (3, 2)), (20, 30)),
            (2, 4, rng.integers(0, 20, (2, 2)), (20, 30)),
            (2, 1, np.zeros((0, 2), int), (20, 30)),
            (2, 2, np.array([[39, 59], [0, 0]]), (40, 60)),
        ]
    )


def test_rows_follow_videos_and_frames(found):
    assert len(found) == 4
    assert found.videos.tolist() == [2, 2, 2, 9]
    assert found.frames.tolist() == [1, 2, 4, 0]
    assert found.rows(2) == range(3)
    assert found.rows(9) == range(3, 4)
    assert [len(found[row]) for row in range(4)] == [0, 2, 2, 3]
    assert found.size(1) == (40, 60)
    assert [found.row(2, frame) for frame in (1, 2, 4)] == [0, 1, 2]
    for absent in ((2, 3), (2, 5), (3, 1)):
        with pytest.raises(KeyError):
            found.row(*absent)


def test_neighbours_stay_in_their_video(found):
    assert [found.neighbour(row) for row in range(4)] == [1, 2, 1, 3]


def test_fixations_of_another_size_are_scaled(found):
    scaled = found.gathered([0, 1], (20, 30))
    assert scaled.tolist() == [[19, 29], [0, 0]]
    assert found.gathered([1], (40, 60)).tolist() == [[39, 59], [0, 0]]


def test_it_is_the_same_in_another_process(found):
    again = pickle.loads(pickle.dumps(found))
    for row in range(4):
        np.testing.assert_array_equal(found[row], again[row])
        assert found.size(row) == again.size(row)


def test_nobody_looked_anywhere():
    empty = truth.FixationSet([(1, 0, np.zeros((0, 2)), (4, 4))])
    assert empty[0].shape == (0, 2)


def test_of_maps_of_several_sizes():
    maps = [np.zeros((4, 5), np.uint8), np.zeros((3, 7), np.uint8)]
    maps[0][1, 2] = maps[1][2, 6] = 255
    found = truth.FixationSet.of_maps(
        [(7, 1, maps[1]), (7, 0, maps[0]), (2, 3, np.zeros((4, 5)))]
    )
    assert found.videos.tolist() == [2, 7, 7]
    assert found.frames.tolist() == [3, 0, 1]
    assert [found[row].tolist() for row in range(3)] == [[], [[1, 2]], [[2, 6]]]
    assert found.size(2) == (3, 7)
