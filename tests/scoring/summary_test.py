import json

import numpy as np
import pandas as pd
import pytest

from lsts_tf.scoring import scorer
from lsts_tf.scoring import summary as summary_lib


def make(values, video, frame=None):
    frames = np.arange(len(video)) if frame is None else frame
    return pd.DataFrame(
        {"video": video, "frame": frames, "cc": np.array(values, float)}
    )


def summary(values, video, **options):
    return summary_lib.summary(make(values, video), **options)


def test_a_mean_of_nothing_is_null_in_json():
    found = summary([np.nan, np.nan], [1, 2])
    assert found["cc"]["mean"] is found["cc"]["ci95"] is None
    assert json.loads(json.dumps(found, allow_nan=False)) == found


@pytest.mark.parametrize("statistic", summary_lib.STATISTICS)
def test_intervals_are_those_of_whole_videos(statistic):
    """40 independent ones, not thousands of independent frames."""
    level, frames = np.random.default_rng(0).normal(size=40), np.full(40, 10)
    if statistic == "mean_of_videos":
        # The first is as long as the others together, and far from them; but
        # videos count alike, however many frames they have.
        level[0], frames[0] = 9, 390
    video = np.arange(40).repeat(frames)
    found = summary(level[video], video)["cc"]
    assert found[statistic] == pytest.approx(level.mean())
    low, high = found[summary_lib.STATISTICS[statistic]]
    half = 1.96 * level.std(ddof=1) / np.sqrt(40)
    assert (high - low) / 2 == pytest.approx(half, rel=0.15)
    assert low < level.mean() < high
    if statistic == "mean_of_videos":
        assert found["ci95"][1] - found["ci95"][0] > 2 * (high - low)


def test_a_video_without_a_valid_frame_is_no_video():
    values = [1, 1, 5, np.nan, np.nan]
    lacking = summary(values, [1, 1, 2, 2, 3])["cc"]
    assert lacking["mean_of_videos"] == 3
    assert lacking["mean_of_videos_ci95"] == (1, 5)
    one = summary([1, 3, np.nan], [1, 1, 2])["cc"]
    assert one["mean_of_videos_ci95"] is None


def test_by_video():
    table = make([1, 3, 5, np.nan], [9, 9, 2, 3])
    assert summary_lib.by_video(table) == {
        "0002": {"cc": 5.0},
        "0003": {"cc": None},
        "0009": {"cc": 2.0},
    }


def test_the_table():
    rows = {
        "ours": summary([1, 2, 3, 9], [1, 1, 1, 2]),
        "as many": summary([1, 2, 3, 9], [1, 1, 2, 2]),
        "none": summary([np.nan], [1]),
    }
    for statistic, interval in summary_lib.STATISTICS.items():
        lines = summary_lib.table(rows, statistic)
        low, high = rows["ours"]["cc"][interval]
        assert lines["cc"].to_dict() == {
            "ours": f"{rows['ours']['cc'][statistic]:.4f}",
            "95 % interval": f"{low:.4f}..{high:.4f}",
            "as many": "3.7500",
            "none": "-",
            "valid frames": "0",
        }
        # Only where they are not those of the row above.
        assert lines.index.tolist().count("valid frames") == 2
        named = statistic == "mean_of_videos"
        assert lines.columns.name == ("mean of videos" if named else None)


def test_what_rounds_to_zero_has_no_sign():
    """As the KLD of perfect maps."""
    lines = summary_lib.table({"ours": summary([-1e-9], [1])}, "mean")
    assert lines["cc"]["ours"] == "0.0000"


# === Comparisons ===


def models(shift, *, videos=30, frames=20, seed=0):
    """Two models whose videos differ much and whose difference is `shift`."""
    rng = np.random.default_rng(seed)
    video = np.repeat(np.arange(videos), frames)
    level = rng.normal(size=videos)[video]
    apart = (shift + 0.1 * rng.normal(size=videos))[video]
    frame = np.tile(np.arange(frames), videos)
    two = {"a": 0.0, "b": apart}
    return {name: make(level + by, video, frame) for name, by in two.items()}


def compared(tables, metric="cc"):
    """Ranking and pairs of models."""
    tables = {
        name: table.rename(columns={"cc": metric})
        for name, table in tables.items()
    }
    found = summary_lib.compare(tables)[metric]
    return found["ranking"], *found["pairs"]


def test_a_paired_difference_is_seen_through_differences_of_videos():
    ranking, pair = compared(models(0.1))
    assert [pair["better"], pair["worse"]] == ranking == ["b", "a"]
    assert pair["p"] == pair["p_holm"] < 0.001
    low, high = pair["ci95"]
    assert 0 < low < pair["difference"] < high
    assert pair["frames"] == 600


def test_of_kld_less_is_better():
    ranking, pair = compared(models(0.1), "kld")
    assert ranking == ["a", "b"]
    assert pair["difference"] < 0
    assert pair["p"] < 0.001


def test_no_difference_is_no_difference():
    """p is about uniform: one of twenty below 0.05."""
    p = [compared(models(0.0, seed=seed))[1]["p"] for seed in range(40)]
    assert np.mean(np.array(p) < 0.05) < 0.2
    assert 0.3 < np.mean(p) < 0.7


def test_equal_models_have_p_1():
    one = models(0.0)["a"]
    _, pair = compared({"x": one, "y": one})
    assert (pair["difference"], pair["p"]) == (0, 1)


def test_one_video_has_no_test():
    _, pair = compared(models(0.1, videos=1))
    assert pair["p"] is pair["ci95"] is pair["p_holm"] is None


def test_frames_that_one_of_them_lacks_are_left_out():
    two = models(0.1)
    two["a"].loc[:19, "cc"] = np.nan
    _, pair = compared(two)
    assert pair["frames"] == 580
    difference = two["b"]["cc"] - two["a"]["cc"]
    assert pair["difference"] == pytest.approx(np.nanmean(difference))


def test_holm_corrects_for_the_number_of_pairs():
    _, *pairs = compared(models(0.1) | {"c": models(0.06, seed=5)["b"]})
    p, holm = (sorted(pair[key] for pair in pairs) for key in ("p", "p_holm"))
    want = np.maximum.accumulate(np.minimum(1, np.multiply(p, [3, 2, 1])))
    assert holm == pytest.approx(want.tolist())


def test_the_means_of_videos_may_rank_otherwise():
    """b is better in one long video, a in each of the others."""
    video = np.repeat(np.arange(20), [400, *[10] * 19])
    rng = np.random.default_rng(0)
    level = rng.normal(size=20)[video]
    better = np.where(video == 0, 0.5, -0.3 + 0.01 * rng.normal(size=20)[video])
    two = {"a": make(level, video), "b": make(level + better, video)}
    for protocol, best in (("dhf1k", "b"), ("aim", "a")):
        scoring = scorer.Settings(protocol=protocol)
        given = {"first_frames": 9, "scoring": scoring, "about": {}}
        reports = {n: summary_lib.report(t, t, **given) for n, t in two.items()}
        joint = summary_lib.joint_report(reports, two)
        assert joint["best"] == joint["comparison"]["cc"]["ranking"][0] == best
        assert summary_lib.text(joint).splitlines()[1].startswith(best)
    (pair,) = joint["comparison"]["cc"]["pairs"]
    means = [better[video == one].mean() for one in range(20)]
    assert pair["difference"] == pytest.approx(-np.mean(means))
    low, high = pair["ci95"]
    assert 0 < low < pair["difference"] < high
    assert pair["p"] < 0.001
    assert pair["frames"] == 590
