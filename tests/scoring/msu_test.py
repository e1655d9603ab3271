"""The measures of AIM 2024, NTIRE 2026 and CrowdSAL."""

import itertools
import json

import cv2
import numpy as np
import pytest

from lsts_tf.scoring import msu


def slow(pred, truth, fixations):
    """The definitions, word by word; maps are read in float32."""

    def read(map_):
        map_ = (map_ if map_.ndim == 2 else map_.sum(axis=2)).astype(float)
        map_ = (map_ - map_.min()).astype(np.float32)
        return map_ / (map_.max() + np.finfo(np.float32).eps)

    q = read(truth)
    p = cv2.resize(read(pred), q.shape[::-1]).astype(np.float64)
    standard = [(m - m.mean()) / (m.std() + 1e-7) for m in (p, q)]
    a, b = standard
    n = len(fixations)
    tp, fp = [0.0], [0.0]
    columns = len({tuple(column) for column in np.transpose(fixations)})
    thresholds = sorted((p[r, c] for r, c in fixations), reverse=True)
    for rank, threshold in enumerate(thresholds, 1):
        tp.append(rank / n)
        fp.append(((p >= threshold).sum() - rank) / (p.size - columns))
    points = list(zip([*fp, 1.0], [*tp, 1.0], strict=True))
    area = sum(
        (right - left) * (low + high) / 2
        for (left, low), (right, high) in itertools.pairwise(points)
    )
    return {
        "auc_judd": area,
        "cc": (a * b).sum() / np.sqrt((a * a).sum() * (b * b).sum() + 1e-7),
        "sim": sum(
            np.minimum(x, y).sum()
            for x, y in [(p / (p.sum() + 1e-7), q / (q.sum() + 1e-7))]
        ),
        "nss": np.mean([a[r, c] for r, c in fixations]),
    }


def blobs(rng, size, top, dtype):
    map_ = cv2.GaussianBlur(rng.random(size), (0, 0), 6)
    map_ = (map_ - map_.min()) / (map_.max() - map_.min())
    return np.rint(map_**2 * top).astype(dtype)


RNG = np.random.default_rng(7)
SIZE = (54, 96)
TRUTH = blobs(RNG, SIZE, 1023, np.uint16)
POINTS = RNG.integers(0, SIZE, (40, 2))
CASES = {
    "10 bits": (blobs(RNG, SIZE, 1023, np.uint16), TRUTH, POINTS),
    "8 bits": (blobs(RNG, SIZE, 200, np.uint8), TRUTH, POINTS),
    "smaller": (blobs(RNG, (36, 64), 255, np.uint8), TRUTH, POINTS),
    "taller": (blobs(RNG, (108, 60), 255, np.uint8), TRUTH, POINTS),
    "colour": (RNG.integers(0, 256, (*SIZE, 3), np.uint8), TRUTH, POINTS),
    "floats": (RNG.random(SIZE) * 7 - 3, TRUTH, POINTS),
    "ties": ((TRUTH > 300).astype(np.uint8), TRUTH, POINTS),
    "duplicates": (TRUTH[::-1], TRUTH, np.repeat(POINTS[:9], 3, axis=0)),
    "one fixation": (TRUTH[:, ::-1], TRUTH, POINTS[:1]),
    "row is column": (TRUTH[::-1], TRUTH, np.array([[3, 3], [9, 9]])),
    "constant": (np.full(SIZE, 7, np.uint8), TRUTH, POINTS),
    "constant, resized": (np.full((9, 16), 7, np.uint8), TRUTH, POINTS),
    "constant truth": (TRUTH, np.full(SIZE, 7, np.uint16), POINTS),
}


@pytest.mark.parametrize("name", CASES)
def test_the_definitions(name):
    found, want = msu.score(*CASES[name]), slow(*CASES[name])
    assert tuple(found) == msu.MEASURES
    assert found == pytest.approx(want, abs=1e-5)


def test_recorded_scores_of_the_program(shared):
    folder = shared / "msu_golden"
    arrays = np.load(folder / "cases.npz")
    cases = json.loads((folder / "golden.json").read_text())
    assert len(cases) == 18
    for case in cases:
        name = case["name"]
        pred, truth, points = (
            arrays[f"{name}_{what}"] for what in ("pred", "gt", "fix")
        )
        found = msu.score(pred, truth, points)
        found["kld"] = msu.kld(pred, truth)
        want = {m: case[f"{m}_score"] for m in msu.MEASURES}
        want["kld"] = float(case["kldiv"])
        assert found == pytest.approx(want, abs=1e-5, nan_ok=True), name


def test_a_frame_that_nobody_looked_at():
    found = msu.score(TRUTH[::-1], TRUTH, np.zeros((0, 2), int))
    assert np.isnan([found["nss"], found["auc_judd"]]).all()
    assert np.isfinite([found["cc"], found["sim"]]).all()


@pytest.mark.parametrize("point", [[54, 0], [0, 96], [-1, 0], [0.5, 1.0]])
def test_fixations_outside(point):
    with pytest.raises(ValueError, match="inside a map of"):
        msu.score(TRUTH, TRUTH, np.array([point]))
