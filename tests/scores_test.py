import json

import numpy as np
import pytest

from lsts_tf import scores


def make(values, video, frame=None):
    video = np.array(video)
    return scores.Scores(
        video=video,
        frame=np.arange(len(video)) if frame is None else np.array(frame),
        values={"cc": np.array(values, np.float64)},
    )


def test_mean_leaves_out_what_is_not_defined():
    summary = make([0.5, np.nan, 0.25, 0.0], [1, 1, 2, 2]).summary()["cc"]
    assert summary["mean"] == pytest.approx(0.25)
    assert summary["n_valid"] == 3
    # Video 1 has one valid frame, video 2 two.
    assert summary["mean_of_videos"] == pytest.approx((0.5 + 0.125) / 2)


def test_a_mean_of_nothing_is_null_in_json():
    summary = make([np.nan, np.nan], [1, 2]).summary()
    assert summary["cc"]["mean"] is None
    assert summary["cc"]["ci95"] is None
    assert json.loads(json.dumps(summary, allow_nan=False)) == summary


def test_interval_is_that_of_whole_videos():
    rng = np.random.default_rng(0)
    level = rng.normal(size=40)
    video = np.repeat(np.arange(40), 50)
    values = level[video] + 0.01 * rng.normal(size=2000)
    low, high = make(values, video).summary()["cc"]["ci95"]
    # 40 independent videos, not 2,000 independent frames.
    half = 1.96 * level.std(ddof=1) / np.sqrt(40)
    assert (high - low) / 2 == pytest.approx(half, rel=0.15)
    assert low < values.mean() < high


def test_interval_needs_two_videos_and_repeats():
    assert make([1, 2, 3], [7, 7, 7]).summary()["cc"]["ci95"] is None
    two = make([1, 2, 3, 9], [1, 1, 2, 2])
    assert two.summary(seed=3) == two.summary(seed=3)


def test_by_video_and_parts():
    joined = scores.Scores.joined(
        [make([1, 3], [9, 9], [0, 1]), make([5], [2], [0])]
    )
    assert joined.by_video() == {"0002": {"cc": 5.0}, "0009": {"cc": 2.0}}
    first = joined.where(joined.frame < 1)
    assert first.summary()["cc"]["mean"] == 3


def test_centre_prior_peaks_in_the_middle_and_is_symmetric():
    prior = scores.centre_prior(360, 640)
    assert prior.shape == (360, 640)
    row, column = np.unravel_index(prior.argmax(), prior.shape)
    assert abs(row - 179.5) < 1
    assert abs(column - 319.5) < 1
    np.testing.assert_allclose(prior, prior[::-1, ::-1])
    # A quarter of a side away from the middle: one standard deviation.
    assert prior[90, 320] / prior[180, 320] == pytest.approx(
        np.exp(-0.5), rel=0.01
    )


def test_table_shows_every_row():
    text = scores.table(
        {"ours": make([0.5], [1]).summary(), "none": {"cc": {"mean": None}}}
    )
    lines = text.splitlines()
    assert lines[0].split() == ["cc"]
    assert lines[1].split() == ["ours", "0.5000"]
    assert lines[2].split() == ["none", "-"]
