"""Against the official program's values, slow oracles, and invariants.

`metrics_golden/README.md` says what each value is. Its folder is a copy of
what the official functions returned.
"""

import functools
import itertools
import json
import pathlib

import hypothesis
import hypothesis.extra.numpy as hnp
import numpy as np
import pytest

from lsts_tf.scoring import levels, metrics

GOLDEN = pathlib.Path(__file__).parents[1] / "metrics_golden"
VALUES = json.loads((GOLDEN / "golden.json").read_text())
CASES = VALUES["cases"]
AUCS = ("auc_judd", "sauc", "auc_borji")
# The fixations that gave this case's "paper" values are not those of the
# file: they are those of as many pixels of value 0, and the file's have the
# largest values. Its official NSS, 5.73, is the file's.
WRONG_PAPER = "perfect"

properties = hypothesis.settings(deadline=None, max_examples=30)


@functools.cache
def case(name):
    with np.load(GOLDEN / "cases" / f"{name}.npz") as data:
        return dict(data)


@functools.cache
def centre():
    with np.load(GOLDEN / "baseline.npz") as data:
        return data["centre"]


def prediction(name, dtype):
    pred = case(name)["pred"]
    return pred if dtype == "as it is" else pred.astype(dtype)


def truth(name):
    inputs = case(name)
    given = {
        "density": inputs["gt"],
        "fixations": inputs["fixations"],
        "others": inputs["other_fixations"],
    }
    if inputs["gt"].shape == centre().shape:
        given["baseline"] = metrics.distribution(centre())
    return given


def dense(points, shape):
    maps = np.zeros(shape, np.uint8)
    maps[tuple(np.asarray(points).T)] = 1
    return maps


def one(metric, pred, *ground_truth, protocol="dhf1k"):
    """One metric of one frame, its ground truth in the order of its needs."""
    alone = metrics.PROTOCOLS[protocol][metric].needs
    given = zip(alone, ground_truth, strict=True)
    options = {"metrics": [metric], "protocol": protocol}
    return metrics.score(pred, **dict(given), **options)[metric]


def equal(value, golden, tolerance):
    """Equal within a tolerance, NaN for None."""
    want = np.nan if golden is None else golden
    np.testing.assert_allclose(value, want, rtol=0, atol=tolerance)


# === Goldens ===


@pytest.mark.parametrize("dtype", ["as it is", "float64"])
@pytest.mark.parametrize("name", CASES)
def test_golden(name, dtype, monkeypatch):
    golden, given = CASES[name], truth(name)
    pred = prediction(name, dtype)
    scores = metrics.score(pred, **given)

    want = {"kld": golden.get("kld_clipped", golden["kld"])}
    if name == "constant_gt":
        want["cc"] = None  # Officially rounding noise; see the README.
    for metric in scores.keys() - AUCS:
        equal(scores[metric], want.get(metric, golden[metric]), 1e-9)
    fixated = dense(case(name)["fixations"], case(name)["gt"].shape)
    equal(one("cc", pred, fixated), golden["cc_fixations"], 1e-9)

    tolerance = 1e-12
    if name.startswith("resize"):
        tolerance = 1e-5
        resized = metrics.resize(pred, case(name)["gt"].shape)
        equal(resized.min(), golden["resized_min"], 1e-9)
    for auc in AUCS:
        equal(scores[auc], golden[auc]["expected"], tolerance)
    # MATLAB's colon counts from both ends and rounds up one threshold only.
    values = np.arange(11) / 10
    values[3] = 3 * 0.1
    monkeypatch.setattr(levels, "THRESHOLDS", values)
    matlab = metrics.score(pred, **given)
    for auc in AUCS[1:]:
        expected = golden[auc]["expected_matlab_thresholds"]
        equal(matlab[auc], expected, tolerance)


@pytest.mark.parametrize("dtype", ["as it is", "float64"])
@pytest.mark.parametrize("name", CASES)
def test_golden_on_given_splits(name, dtype):
    """Each split has as many pixels, so their mean is that of all of them."""
    inputs = case(name)
    size = inputs["gt"].shape
    pred = prediction(name, dtype)
    if pred.shape != size:
        pred = metrics.resize(pred, size)
    for auc in AUCS[1:]:
        # Linear pixels, because a pixel may be in several splits.
        drawn = inputs[f"{auc.removeprefix('auc_')}_split_pixels"].ravel()
        fixated = np.ravel_multi_index(inputs["fixations"].T, size)
        frame = levels.Frame(pred, fixated=fixated, others=drawn)
        value = metrics.sauc(frame)
        if auc == "auc_borji" and fixated.size < 2:
            value = NAN
        near = 1e-5 if name.startswith("resize") else 1e-12
        equal(value, CASES[name][auc]["splits"], near)


@pytest.mark.parametrize("name", CASES)
def test_golden_expectation_is_the_mean_of_the_official_draws(name):
    scores = metrics.score(case(name)["pred"], **truth(name))
    for auc, runs in zip(AUCS, ("jitter", "random", "random"), strict=True):
        golden = CASES[name][auc][runs]
        if golden["mean"] is not None:
            sd = golden["sd"] / golden["runs"] ** 0.5
            equal(scores[auc], golden["mean"], 4.5 * sd + 1e-6)
    golden = CASES[name]["auc_judd"]["no_jitter"]
    # "aim" has its own rules of what is constant, and of another size.
    if golden is not None and not name.startswith("resize"):
        given = case(name)["pred"], case(name)["fixations"]
        equal(one("auc_judd", *given, protocol="aim"), golden, 1e-12)


@pytest.mark.parametrize(
    "name", [name for name, values in CASES.items() if "paper" in values]
)
def test_golden_paper(name):
    inputs, golden = case(name), CASES[name]["paper"]
    given = {
        "others": inputs["other_fixations"][inputs["other_frame"] == 0],
        "protocol": "paper",
    }
    scores = metrics.score(
        inputs["pred"], fixations=inputs["fixations"], **given
    )
    assert tuple(scores) == ("auc_judd", "sauc", "nss", "cc")
    if name == WRONG_PAPER:
        factor = (inputs["gt"].size / (inputs["gt"].size - 1)) ** 0.5
        equal(scores["nss"], CASES[name]["nss"] * factor, 1e-9)
        equal(scores["cc"], CASES[name]["cc_fixations"], 1e-9)
        zeros = np.argwhere(inputs["pred"] == 0)[: len(inputs["fixations"])]
        scores = metrics.score(inputs["pred"], fixations=zeros, **given)
        equal(golden["nss"], -1.0536, 5e-5)
    for metric, value in golden.items():
        # "error": the program stopped.
        equal(scores[metric], None if value == "error" else value, 1e-6)


# === Edge cases, as the docstrings have them ===

NAN = float("nan")
RAMP = np.arange(48, dtype=np.uint8).reshape(6, 8)
ZERO = np.zeros_like(RAMP)
FLAT = np.full_like(RAMP, 7)
POINTS = np.array([[0, 1], [2, 3], [5, 5]])
NONE = np.zeros((0, 2), int)
EVERY = np.argwhere(np.ones((6, 8)))


@pytest.mark.parametrize("dtype", [np.uint8, np.float64])
@pytest.mark.parametrize(
    ("metric", "pred", "ground_truth", "protocol", "value"),
    [
        ("auc_judd", RAMP, (NONE,), "dhf1k", NAN),
        ("auc_judd", RAMP, (EVERY,), "dhf1k", NAN),
        ("auc_judd", FLAT, (POINTS,), "dhf1k", 0.5 + 0.5 / 4),
        ("auc_judd", ZERO, (POINTS,), "dhf1k", 0.5 + 0.5 / 4),
        ("auc_judd", RAMP, (NONE,), "aim", 0.5),
        ("auc_judd", RAMP, (NONE,), "paper", 0.5),
        ("auc_judd", FLAT, (POINTS,), "paper", 0.5),
        ("auc_judd", RAMP, (EVERY,), "paper", NAN),
        ("sauc", RAMP, (NONE, POINTS), "dhf1k", NAN),
        ("sauc", RAMP, (POINTS, NONE), "dhf1k", NAN),
        ("sauc", FLAT, (POINTS, POINTS), "dhf1k", NAN),
        ("sauc", ZERO, (POINTS, POINTS), "dhf1k", NAN),
        ("sauc", RAMP, (POINTS, POINTS), "dhf1k", 0.5),
        ("sauc", RAMP, (NONE, POINTS), "paper", NAN),
        ("auc_borji", RAMP, (NONE,), "dhf1k", NAN),
        ("auc_borji", RAMP, (POINTS[:1],), "dhf1k", NAN),
        ("auc_borji", FLAT, (POINTS,), "dhf1k", NAN),
        ("auc_borji", RAMP, (EVERY,), "dhf1k", 0.5),
        ("nss", RAMP, (NONE,), "dhf1k", NAN),
        ("nss", FLAT, (POINTS,), "dhf1k", NAN),
        ("nss", ZERO, (POINTS,), "dhf1k", NAN),
        ("nss", FLAT, (POINTS,), "aim", 0.0),
        ("nss", RAMP, (EVERY,), "dhf1k", 0.0),
        ("cc", FLAT, (RAMP,), "dhf1k", NAN),
        ("cc", RAMP, (FLAT,), "dhf1k", NAN),
        ("cc", RAMP, (ZERO,), "dhf1k", NAN),
        ("cc", ZERO, (ZERO,), "dhf1k", NAN),
        ("cc", FLAT, (RAMP,), "aim", 0.0),
        ("sim", RAMP, (ZERO,), "dhf1k", 0.0),
        ("sim", ZERO, (RAMP,), "dhf1k", 0.0),
        ("sim", ZERO, (ZERO,), "dhf1k", 0.0),
        ("sim", FLAT, (RAMP,), "dhf1k", NAN),
        ("sim", RAMP, (FLAT,), "dhf1k", NAN),
        ("sim", FLAT, (FLAT,), "aim", 1.0),
        ("kld", RAMP, (ZERO,), "dhf1k", 0.0),
        ("kld", ZERO, (ZERO,), "dhf1k", 0.0),
        ("kld", FLAT, (FLAT,), "dhf1k", 0.0),
        ("kld", ZERO, (FLAT,), "dhf1k", np.log(1 / 48) + 52 * np.log(2)),
        ("kld", RAMP, (ZERO,), "aim", NAN),
        ("kld", ZERO, (RAMP,), "aim", NAN),
        ("infogain", RAMP, (NONE, RAMP), "dhf1k", NAN),
        ("infogain", FLAT, (POINTS, RAMP), "dhf1k", NAN),
        ("infogain", ZERO, (POINTS, RAMP), "dhf1k", NAN),
        ("infogain", RAMP, (POINTS, FLAT), "dhf1k", NAN),
        ("infogain", RAMP, (POINTS, RAMP), "dhf1k", 0.0),
    ],
)
def test_edge_case(metric, pred, ground_truth, protocol, value, dtype):
    if metric == "infogain":
        points, baseline = ground_truth
        ground_truth = points, metrics.distribution(baseline)
    found = one(metric, pred.astype(dtype), *ground_truth, protocol=protocol)
    np.testing.assert_allclose(found, value, rtol=0, atol=1e-6)


def test_constant_floats_are_constant_although_their_mean_is_rounded():
    scores = metrics.score(
        np.full((6, 8), 0.1),
        *(RAMP, POINTS),
        others=POINTS,
        baseline=metrics.distribution(RAMP),
        metrics=["sauc", "auc_borji", "nss", "cc", "sim", "infogain"],
    )
    assert np.isnan([*scores.values()]).all()


def test_negative_values_count_as_zero_in_kld():
    pred = RAMP - 5.0
    assert one("kld", pred, RAMP) == one("kld", np.maximum(pred, 0), RAMP)


def test_paper_is_nan_where_the_program_leaves_the_frame():
    for point, is_inside in (([7, 5], False), ([0, 0], True)):
        others = np.array([point])
        found = one("sauc", RAMP.T, POINTS, others, protocol="paper")
        assert np.isfinite(found) == is_inside


# === Against slow oracles ===


def slow_auc_judd(pred, fixated):
    values = np.sort(pred[fixated])[::-1]
    n, ranks = values.size, np.arange(1, values.size + 1)
    alarms = [np.sum(pred >= value) for value in values] - ranks
    return np.trapezoid(
        [0, *ranks / n, 1.0], [0, *alarms / (pred.size - n), 1.0]
    )


def slow_threshold_auc(pred, fixated, negatives):
    unit = (pred - pred.min()) / (pred.max() - pred.min())
    hits, alarms = (
        [0.0, *(np.mean(unit[at] >= k * 0.1) for k in range(10, -1, -1)), 1.0]
        for at in (fixated, negatives)
    )
    return np.trapezoid(hits, alarms)


AWKWARD = {
    "noise": lambda rng: rng.random((24, 40)),
    "float32": lambda rng: rng.random((24, 40), np.float32),
    "float16": lambda rng: rng.random((24, 40)).astype(np.float16),
    "16 bits": lambda rng: rng.integers(0, 65536, (24, 40), np.uint16),
    "few levels": lambda rng: rng.integers(0, 4, (24, 40)) / 3,
    "thresholds": lambda rng: rng.integers(0, 11, (24, 40)) * 0.1,
    "an outlier": lambda rng: np.where(
        np.arange(960).reshape(24, 40) == 77, 1e9, rng.random((24, 40))
    ),
    "an offset": lambda rng: 1e9 + rng.random((24, 40)),
    "negative": lambda rng: -rng.random((24, 40)) - 3,
    "tiny": lambda rng: rng.random((24, 40)) * 1e-100,
    "steep": lambda rng: np.exp(60 * rng.random((24, 40))),
}


@pytest.mark.parametrize("kind", AWKWARD)
def test_float_maps_against_loops(kind):
    rng = np.random.default_rng(5)
    for _ in range(5):
        pred = AWKWARD[kind](rng)
        density = rng.random(pred.shape)
        fixated, others = rng.random((2, *pred.shape)) < 0.03
        points = np.argwhere(fixated)
        given = {"others": np.argwhere(others)}
        scores = metrics.score(pred, density, points, **given)
        aim = metrics.score(pred, density, points, protocol="aim")
        # Ties count as in the loop, where there are any.
        scores["auc_judd"] = aim["auc_judd"]
        pred = pred.astype(np.float64)
        everywhere = np.ones(pred.shape, bool)
        about_mean = np.mean((pred - pred.mean())[fixated])
        shares = [map_ / map_.sum() for map_ in (pred, density)]
        expected = {
            "auc_judd": slow_auc_judd(pred, fixated),
            "sauc": slow_threshold_auc(pred, fixated, others),
            "auc_borji": slow_threshold_auc(pred, fixated, everywhere),
            "nss": about_mean / pred.std(ddof=1),
            "cc": np.corrcoef(pred.ravel(), density.ravel())[0, 1],
        }
        found = {metric: scores[metric] for metric in expected}
        assert found == pytest.approx(expected, rel=0, abs=1e-9, nan_ok=True)
        equal(aim["nss"], about_mean / pred.std(), 1e-9)
        equal(aim["cc"], expected["cc"], 1e-9)
        equal(aim["sim"], np.minimum(*shares).sum(), 1e-9)


@pytest.mark.parametrize("scale", [1e-306, 1e-170, 1e200, 1e307])
@pytest.mark.parametrize("protocol", metrics.PROTOCOLS)
def test_the_scale_of_a_map_does_not_matter(protocol, scale):
    """Though its squares, its sum or its quotients leave float64."""
    rng = np.random.default_rng(5)
    pred, density, base = rng.random((3, 24, 40))
    points, others = map(np.argwhere, rng.random((2, 24, 40)) < 0.05)
    # The paper's shuffled AUC cuts the map as it is.
    names = [*metrics.PROTOCOLS[protocol]]
    if protocol == "paper":
        names.remove("sauc")
    want, *found = (
        metrics.score(
            *(pred * by_pred, density * by_truth, points),
            others=others,
            baseline=metrics.distribution(base * by_truth),
            protocol=protocol,
            metrics=names,
        )
        for by_pred, by_truth in itertools.product((1, scale), repeat=2)
    )
    for scores in found:
        assert scores == pytest.approx(want, rel=0, abs=1e-12, nan_ok=True)


def test_every_8bit_range_has_the_thresholds_of_its_scaled_values():
    shades = np.arange(256)
    for low in (0, 1, 100):
        for high in range(low + 1, 256, 3):
            pred = np.clip(shades, low, high).astype(np.uint8).reshape(16, 16)
            points = np.argwhere(pred >= (low + high) // 2)
            fast = one("auc_borji", pred, points)
            assert fast == one("auc_borji", pred.astype(float), points)


def slow_resize_axis(values, length):
    """Weights at each output pixel by the kernel's formula, one by one."""
    scale = length / len(values)
    stretch = max(1.0, 1 / scale)
    mirrored = [*values, *values[::-1]]
    result = []
    for i in range(length):
        centre, total, weights = (i + 0.5) / scale - 0.5, 0.0, 0.0
        for at in range(-3 * len(values), 4 * len(values)):
            x, weight = abs(centre - at) / stretch, 0.0
            if x <= 1:
                weight = 1.5 * x**3 - 2.5 * x**2 + 1
            elif x < 2:
                weight = -0.5 * x**3 + 2.5 * x**2 - 4 * x + 2
            total += weight * mirrored[at % len(mirrored)]
            weights += weight
        result.append(total / weights)
    return np.array(result)


@pytest.mark.parametrize("size", [(5, 7), (9, 12), (3, 2), (13, 3), (1, 1)])
def test_resize_against_loops(size):
    maps = np.random.default_rng(1).random((2, 5, 7))
    slow = np.apply_along_axis(slow_resize_axis, 1, maps, size[0])
    slow = np.apply_along_axis(slow_resize_axis, 2, slow, size[1])
    np.testing.assert_allclose(metrics.resize(maps, size), slow, atol=1e-12)


def test_other_protocols_resize_bilinearly():
    small = np.array([[0, 100, 20]], np.uint8)
    wide = np.array([[0, 25, 75, 80, 40, 20]])
    density = np.array([[0, 1, 2, 9, 3, 5]], np.uint8)
    for protocol in ("aim", "dhf1k"):
        given = one("cc", small, density, protocol=protocol)
        same = np.isclose(given, one("cc", wide, density))
        assert same == (protocol == "aim")


def test_arrays_of_another_size_are_resized():
    """Also those that have as many pixels."""
    pred = np.random.default_rng(0).integers(0, 256, (4, 4), np.uint8)
    truth = RAMP[:2], np.argwhere(RAMP[:2] > 5)
    found = metrics.score(pred, *truth)
    want = metrics.score(metrics.resize(pred, (2, 8)), *truth)
    assert found == pytest.approx(want, rel=0, abs=1e-12, nan_ok=True)


# === Invariants ===

maps_8bit = hnp.arrays(np.uint8, (9, 12))
masks = hnp.arrays(bool, (9, 12))


@properties
@hypothesis.given(maps_8bit, maps_8bit, masks, masks)
@pytest.mark.parametrize("protocol", ["dhf1k", "aim"])
def test_levels_and_pixels_agree(protocol, pred, density, fixated, others):
    given = {
        "fixations": np.argwhere(fixated),
        "others": np.argwhere(others),
        "baseline": metrics.distribution(density),
        "protocol": protocol,
    }
    fast = metrics.score(pred, density, **given)
    exact = metrics.score(pred.astype(np.float32), density, **given)
    assert tuple(fast) == tuple(metrics.PROTOCOLS[protocol])
    for metric, value in fast.items():
        np.testing.assert_allclose(value, exact[metric], rtol=1e-9, atol=1e-9)


def test_a_pixel_given_twice_counts_once():
    twice = np.concatenate([POINTS, POINTS[1:]]).astype(np.int16)
    for points in (twice, twice[::-1]):
        scores = metrics.score(RAMP, RAMP, points, others=points)
        assert scores == metrics.score(RAMP, RAMP, POINTS, others=POINTS)


# === Negatives of shuffled AUC ===


def test_other_frames():
    draws = [metrics.other_frames(i, 50, seed=1) for i in range(200)]
    assert all(len(set(frames)) == 10 for frames in draws)
    assert all(0 <= frames.min() <= frames.max() < 50 for frames in draws)
    # The frame itself may be drawn, and every frame is.
    assert any(i in frames for i, frames in enumerate(draws[:50]))
    counts = np.bincount(np.concatenate(draws), minlength=50)
    assert counts.min() > 15
    assert counts.max() < 75
    again, other = (metrics.other_frames(7, 50, seed=s) for s in (1, 2))
    np.testing.assert_array_equal(again, draws[7])
    assert set(other) != set(again)
    assert set(metrics.other_frames(3, 4)) == {0, 1, 2, 3}


# === Wrong input ===


@pytest.mark.parametrize(
    ("message", "arguments"),
    [
        ("protocol", {"protocol": "mit"}),
        ("metric of protocol", {"metrics": ["psnr"]}),
        (
            "metric of protocol",
            {"density": RAMP, "metrics": ["sim"], "protocol": "paper"},
        ),
        ("No ground truth", {}),
        ("Missing: others", {"fixations": POINTS, "metrics": ["sauc"]}),
        ("shape \\[H, W\\]", {"pred": RAMP[None], "density": RAMP}),
        ("shape \\[H, W\\]", {"density": RAMP[None]}),
        ("inside \\(6, 8\\)", {"fixations": np.array([[6, 0]])}),
        ("inside \\(6, 8\\)", {"fixations": np.array([[0, -1]])}),
        ("must be integers", {"fixations": np.array([[1.0, 2.0]])}),
        ("must be integers", {"fixations": RAMP}),
        ("finite", {"pred": RAMP * np.nan, "density": RAMP}),
        ("finite", {"density": RAMP + np.inf}),
        (
            "size of the density",
            {"density": RAMP, "fixations": POINTS, "baseline": RAMP[1:]},
        ),
    ],
)
def test_errors(message, arguments):
    with pytest.raises(ValueError, match=message):
        metrics.score(**{"pred": RAMP, **arguments})
