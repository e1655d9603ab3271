"""Against the official program's values, slow oracles, and invariants.

`metrics_golden/README.md` says what each value is. Its folder is a copy of
what the official functions returned.
"""

import functools
import json
import pathlib

import hypothesis
import hypothesis.extra.numpy as hnp
import hypothesis.strategies as st
import keras
import numpy as np
import pytest

from lsts_tf.features import preprocess
from lsts_tf.networks import losses
from lsts_tf.scoring import metrics

GOLDEN = pathlib.Path(__file__).parents[1] / "metrics_golden"
VALUES = json.loads((GOLDEN / "golden.json").read_text())
CASES = VALUES["cases"]
AUCS = ("auc_judd", "sauc", "auc_borji")
EIGHT_BIT = [
    name
    for name, case in CASES.items()
    if case["pred_dtype"] == "uint8" and not name.startswith("resize")
]
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


def truth(name):
    inputs = case(name)
    given = {
        "density": inputs["gt"][None],
        "fixations": [inputs["fixations"]],
        "other": [inputs["other_fixations"]],
    }
    if inputs["gt"].shape == centre().shape:
        given["baseline"] = centre()
    return given


def dense(points, shape):
    maps = np.zeros(shape, np.uint8)
    maps[tuple(np.asarray(points).T)] = 1
    return maps


def equal(value, golden, tolerance):
    """Equal within a tolerance, NaN for None."""
    if golden is None:
        assert np.isnan(value)
    else:
        assert value == pytest.approx(golden, rel=0, abs=tolerance)


# === Goldens ===


@pytest.mark.parametrize("dtype", ["as it is", "float64"])
@pytest.mark.parametrize("name", CASES)
def test_golden(name, dtype):
    golden, given = CASES[name], truth(name)
    pred = case(name)["pred"][None]
    if dtype == "float64":
        pred = pred.astype(np.float64)
    scores = metrics.score(pred, **given)

    equal(scores["nss"][0], golden["nss"], 1e-9)
    equal(scores["sim"][0], golden["sim"], 1e-9)
    # Officially rounding noise; see the README.
    golden_cc = None if name == "constant_gt" else golden["cc"]
    equal(scores["cc"][0], golden_cc, 1e-9)
    equal(scores["kld"][0], golden.get("kld_clipped", golden["kld"]), 1e-9)
    if "baseline" in given:
        equal(scores["infogain"][0], golden["infogain"], 1e-9)
    fixated = dense(case(name)["fixations"], case(name)["gt"].shape)
    cc = metrics.cc(pred, fixated[None])[0]
    equal(cc, golden["cc_fixations"], 1e-9)

    tolerance = 1e-5 if name.startswith("resize") else 1e-12
    matlab = metrics.score(pred, thresholds="matlab", **given)
    for auc in AUCS:
        equal(scores[auc][0], golden[auc]["expected"], tolerance)
    for auc in AUCS[1:]:
        expected = golden[auc]["expected_matlab_thresholds"]
        equal(matlab[auc][0], expected, tolerance)


@pytest.mark.parametrize("dtype", ["as it is", "float64"])
@pytest.mark.parametrize("name", CASES)
def test_golden_without_jitter_and_on_given_splits(name, dtype):
    golden, inputs = CASES[name], case(name)
    pred = inputs["pred"][None]
    if dtype == "float64":
        pred = pred.astype(np.float64)
    scores = metrics.score(
        pred,
        **truth(name),
        jitter="none",
        sauc_splits=inputs["sauc_split_pixels"][None],
        borji_splits=[inputs["borji_split_pixels"]],
    )
    resized = name.startswith("resize")
    if not resized:
        equal(scores["auc_judd"][0], golden["auc_judd"]["no_jitter"], 1e-12)
    for auc in AUCS[1:]:
        equal(scores[auc][0], golden[auc]["splits"], 1e-5 if resized else 1e-12)


@pytest.mark.parametrize("name", CASES)
def test_golden_sampled(name):
    scores = metrics.score(
        case(name)["pred"][None],
        **truth(name),
        jitter="sample",
        sauc_splits=100,
        borji_splits=100,
        seed=3,
    )
    for auc, runs in zip(AUCS, ("jitter", "random", "random"), strict=True):
        golden = CASES[name][auc]
        sd = golden[runs]["sd"] or 0.0
        equal(scores[auc][0], golden["expected"], 4.5 * sd + 1e-12)


def test_mean_of_sampled_runs_is_the_expectation():
    name, runs = "frame_034fix", 30
    inputs = case(name)
    many = [np.repeat(inputs["pred"][None], runs, axis=0)]
    scores = metrics.score(
        *many,
        fixations=[inputs["fixations"]] * runs,
        other=[inputs["other_fixations"]] * runs,
        jitter="sample",
        sauc_splits=100,
        borji_splits=100,
    )
    for auc, kind in zip(AUCS, ("jitter", "random", "random"), strict=True):
        golden = CASES[name][auc]
        assert np.std(scores[auc]) > 0
        tolerance = 4.5 * golden[kind]["sd"] / np.sqrt(runs)
        equal(np.mean(scores[auc]), golden["expected"], tolerance)


@pytest.mark.parametrize(
    ("dtype", "tolerance", "auc_tolerance"),
    [("float32", 2e-6, 1e-6), ("float64", 1e-9, 1e-12)],
)
def test_golden_of_tensors(dtype, tolerance, auc_tolerance):
    if dtype == "float64" and keras.backend.backend() == "jax":
        pytest.skip("JAX has float64 only if it is switched on at its start.")
    floatx = keras.config.floatx()
    keras.config.set_floatx(dtype)
    try:
        for name in EIGHT_BIT:
            given = _tensors(name)
            scores = metrics.score(**given)
            for metric, values in scores.items():
                assert keras.backend.standardize_dtype(values.dtype) == dtype
                golden = CASES[name][metric]
                if metric in AUCS:
                    equal(float(values[0]), golden["expected"], auc_tolerance)
                else:
                    if (name, metric) == ("constant_gt", "cc"):
                        golden = None
                    equal(float(values[0]), golden, tolerance)
    finally:
        keras.config.set_floatx(floatx)


def _tensors(name):
    inputs, given = case(name), truth(name)
    for key in ("fixations", "other"):
        given[key] = dense(given[key][0], inputs["gt"].shape)[None]
    given["pred"] = inputs["pred"][None]
    return {k: keras.ops.convert_to_tensor(v) for k, v in given.items()}


@pytest.mark.parametrize(
    "name", [name for name, values in CASES.items() if "paper" in values]
)
def test_golden_paper(name):
    inputs, golden = case(name), CASES[name]["paper"]
    other = inputs["other_fixations"][inputs["other_frame"] == 0]
    scores = metrics.score(
        inputs["pred"][None],
        fixations=[inputs["fixations"]],
        other=[other],
        protocol="paper",
    )
    assert tuple(scores) == ("auc_judd", "sauc", "nss", "cc")
    if name == WRONG_PAPER:
        factor = (inputs["gt"].size / (inputs["gt"].size - 1)) ** 0.5
        equal(scores["nss"][0], CASES[name]["nss"] * factor, 1e-9)
        equal(scores["cc"][0], CASES[name]["cc_fixations"], 1e-9)
        zeros = np.argwhere(inputs["pred"] == 0)
        scores = metrics.score(
            inputs["pred"][None],
            fixations=[zeros[: len(inputs["fixations"])]],
            other=[other],
            protocol="paper",
        )
        equal(golden["nss"], -1.0536, 5e-5)
    for metric, value in golden.items():
        # "error": the program stopped.
        equal(scores[metric][0], None if value == "error" else value, 1e-6)


@pytest.fixture(scope="module")
def video():
    with np.load(GOLDEN / "video.npz") as data:
        inputs = dict(data)
    inputs["points"] = [
        inputs["fixations"][inputs["fixation_frame"] == i]
        for i in range(len(inputs["frame"]))
    ]
    return inputs


def _union(points, frames):
    return np.concatenate([points[i] for i in frames])


def test_golden_video(video):
    golden = VALUES["video"]
    points = video["points"]
    scores = metrics.score(
        video["pred"],
        video["gt"],
        points,
        other=[_union(points, frames) for frames in video["other_frames"]],
    )
    videos = np.array([frame.split("/")[0] for frame in video["frame"]])
    for metric, per_frame in golden["per_frame"].items():
        values = scores[metric]
        for value, expected in zip(values, per_frame, strict=True):
            equal(value, expected, 1e-9)
        equal(np.nanmean(values), golden["mean_over_frames"][metric], 1e-9)
        for name, means in golden["mean_per_video"].items():
            mean = np.nanmean(values[videos == name])
            equal(mean, means[metric], 1e-9)

    official = golden["official"]
    for metric in ("nss", "sim", "cc"):
        equal(np.nanmean(scores[metric]), official[metric], 1e-9)
    for metric, runs in (
        ("auc_judd", "auc_judd"),
        ("sauc", "sauc_listed_other_frames"),
    ):
        sd = official[runs]["sd"] / official[runs]["runs"] ** 0.5
        mean = np.nanmean(scores[metric])
        equal(mean, official[runs]["mean"], 4.5 * sd)


def test_golden_video_with_other_frames_drawn(video):
    points, means = video["points"], []
    for seed in range(40):
        others = metrics.OtherFixations(points, seed=seed)
        values = metrics.sauc(
            video["pred"], points, [others[i] for i in range(len(others))]
        )
        means.append(np.nanmean(values))
    official = VALUES["video"]["official"]["sauc_random_other_frames"]
    # Two sample means.
    sd = official["sd"] * (1 / len(means) + 1 / official["runs"]) ** 0.5
    equal(np.mean(means), official["mean"], 4.5 * sd)


# === Edge cases, as the docstrings have them ===

RAMP = np.arange(48, dtype=np.uint8).reshape(1, 6, 8)
ZERO = np.zeros_like(RAMP)
FLAT = np.full_like(RAMP, 7)
POINTS = [np.array([[0, 1], [2, 3], [5, 5]])]
NONE = [np.zeros((0, 2), int)]
EVERY = [np.argwhere(np.ones((6, 8)))]
NAN = float("nan")


@pytest.mark.parametrize("dtype", [np.uint8, np.float64])
@pytest.mark.parametrize(
    ("metric", "pred", "ground_truth", "options", "value"),
    [
        ("auc_judd", RAMP, (NONE,), {}, NAN),
        ("auc_judd", RAMP, (EVERY,), {}, NAN),
        ("auc_judd", FLAT, (POINTS,), {}, 0.5 + 0.5 / 4),
        ("auc_judd", ZERO, (POINTS,), {}, 0.5 + 0.5 / 4),
        ("auc_judd", FLAT, (POINTS,), {"jitter": "none"}, NAN),
        ("auc_judd", RAMP, (NONE,), {"protocol": "aim"}, 0.5),
        ("auc_judd", RAMP, (NONE,), {"protocol": "paper"}, 0.5),
        ("auc_judd", FLAT, (POINTS,), {"protocol": "paper"}, 0.5),
        ("auc_judd", RAMP, (EVERY,), {"protocol": "paper"}, NAN),
        ("sauc", RAMP, (NONE, POINTS), {}, NAN),
        ("sauc", RAMP, (POINTS, NONE), {}, NAN),
        ("sauc", FLAT, (POINTS, POINTS), {}, NAN),
        ("sauc", ZERO, (POINTS, POINTS), {}, NAN),
        ("sauc", RAMP, (POINTS, POINTS), {}, 0.5),
        ("sauc", RAMP, (NONE, POINTS), {"protocol": "paper"}, NAN),
        ("auc_borji", RAMP, (NONE,), {}, NAN),
        ("auc_borji", RAMP, ([POINTS[0][:1]],), {}, NAN),
        ("auc_borji", FLAT, (POINTS,), {}, NAN),
        ("auc_borji", RAMP, (EVERY,), {}, 0.5),
        ("nss", RAMP, (NONE,), {}, NAN),
        ("nss", FLAT, (POINTS,), {}, NAN),
        ("nss", ZERO, (POINTS,), {}, NAN),
        ("nss", FLAT, (POINTS,), {"protocol": "aim"}, 0.0),
        ("nss", RAMP, (EVERY,), {}, 0.0),
        ("cc", FLAT, (RAMP,), {}, NAN),
        ("cc", RAMP, (FLAT,), {}, NAN),
        ("cc", RAMP, (ZERO,), {}, NAN),
        ("cc", ZERO, (ZERO,), {}, NAN),
        ("cc", FLAT, (RAMP,), {"protocol": "aim"}, 0.0),
        ("sim", RAMP, (ZERO,), {}, 0.0),
        ("sim", ZERO, (RAMP,), {}, 0.0),
        ("sim", ZERO, (ZERO,), {}, 0.0),
        ("sim", FLAT, (RAMP,), {}, NAN),
        ("sim", RAMP, (FLAT,), {}, NAN),
        ("sim", FLAT, (FLAT,), {"protocol": "aim"}, 1.0),
        ("kld", RAMP, (ZERO,), {}, 0.0),
        ("kld", ZERO, (ZERO,), {}, 0.0),
        ("kld", FLAT, (FLAT,), {}, 0.0),
        ("kld", ZERO, (FLAT,), {}, np.log(1 / 48) + 52 * np.log(2)),
        ("kld", RAMP, (ZERO,), {"protocol": "aim"}, NAN),
        ("kld", ZERO, (RAMP,), {"protocol": "aim"}, NAN),
        ("infogain", RAMP, (NONE, RAMP), {}, NAN),
        ("infogain", FLAT, (POINTS, RAMP), {}, NAN),
        ("infogain", ZERO, (POINTS, RAMP), {}, NAN),
        ("infogain", RAMP, (POINTS, FLAT), {}, NAN),
        ("infogain", RAMP, (POINTS, RAMP), {}, 0.0),
    ],
)
def test_edge_case(metric, pred, ground_truth, options, value, dtype):
    function = getattr(metrics, metric)
    result = function(pred.astype(dtype), *ground_truth, **options)
    np.testing.assert_allclose(result, [value], rtol=0, atol=1e-6)


def test_constant_floats_are_constant_although_their_mean_is_rounded():
    pred = np.full((1, 6, 8), 0.1)
    scores = metrics.score(pred, RAMP, POINTS, other=POINTS, baseline=RAMP[0])
    del scores["auc_judd"], scores["kld"]
    assert all(np.isnan(values[0]) for values in scores.values())


def test_negative_values_count_as_zero_in_kld():
    pred = RAMP - 5.0
    clipped = np.maximum(pred, 0)
    assert metrics.kld(pred, RAMP) == metrics.kld(clipped, RAMP)


def test_paper_is_nan_where_the_program_leaves_the_frame():
    tall = np.swapaxes(RAMP, 1, 2)
    corner = [np.array([[7, 5]])]
    start = [np.array([[0, 0]])]
    options = {"protocol": "paper"}
    assert np.isnan(metrics.sauc(tall, POINTS, corner, **options)[0])
    assert np.isfinite(metrics.sauc(tall, POINTS, start, **options)[0])


# === Against slow oracles ===


def slow_auc_judd(pred, fixated):
    values = np.sort(pred[fixated])[::-1]
    n, pixels = values.size, pred.size
    hits, alarms = [0.0], [0.0]
    for i, threshold in enumerate(values, start=1):
        hits.append(i / n)
        alarms.append((np.sum(pred >= threshold) - i) / (pixels - n))
    return np.trapezoid([*hits, 1.0], [*alarms, 1.0])


def slow_threshold_auc(pred, fixated, negatives):
    unit = (pred - pred.min()) / (pred.max() - pred.min())
    hits, alarms = [0.0], [0.0]
    for k in range(10, -1, -1):
        hits.append(np.mean(unit[fixated] >= k * 0.1))
        alarms.append(np.mean(unit[negatives] >= k * 0.1))
    return np.trapezoid([*hits, 1.0], [*alarms, 1.0])


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
        scores = metrics.score(
            pred[None],
            density[None],
            fixated[None],
            other=others[None],
            jitter="none",
        )
        pred = pred.astype(np.float64)
        everywhere = np.ones(pred.shape, bool)
        expected = {
            "auc_judd": slow_auc_judd(pred, fixated),
            "sauc": slow_threshold_auc(pred, fixated, others),
            "auc_borji": slow_threshold_auc(pred, fixated, everywhere),
            "nss": np.mean((pred - pred.mean())[fixated]) / pred.std(ddof=1),
            "cc": np.corrcoef(pred.ravel(), density.ravel())[0, 1],
        }
        for metric, value in expected.items():
            equal(scores[metric][0], value, 1e-9)


@pytest.mark.parametrize("scale", [1e-306, 1e-170, 1e200, 1e307])
@pytest.mark.parametrize("protocol", metrics.PROTOCOLS)
def test_the_scale_of_a_map_does_not_matter(protocol, scale):
    """Though its squares, its sum or its quotients leave float64."""
    rng = np.random.default_rng(5)
    pred, density, base = rng.random((3, 1, 24, 40))
    fixated, others = rng.random((2, 1, 24, 40)) < 0.05
    # Its sAUC cuts the map as it is.
    names = [n for n in metrics.PROTOCOLS[protocol] if n != "sauc"]
    given = {"fixations": fixated, "protocol": protocol, "metrics": names}
    if protocol == "dhf1k":
        names.append("sauc")
        given |= {"other": others, "baseline": base}
    want = metrics.score(pred, density, **given)
    for one, other in ((scale, 1), (1, scale), (scale, scale)):
        if protocol == "dhf1k":
            given["baseline"] = base * other
        found = metrics.score(pred * one, density * other, **given)
        for name, value in want.items():
            equal(found[name][0], value[0], 1e-12)


def test_every_8bit_range_has_the_thresholds_of_its_scaled_values():
    """The integer rule of `_Levels` against float64 division."""
    levels = np.arange(256)
    for low in (0, 1, 100):
        for high in range(low + 1, 256):
            pred = np.clip(levels, low, high).astype(np.uint8).reshape(16, 16)
            points = [np.argwhere(pred >= (low + high) // 2)]
            fast = metrics.auc_borji(pred[None], points)
            slow = metrics.auc_borji(pred[None].astype(float), points)
            np.testing.assert_array_equal(fast, slow)


def test_aim_against_its_formulas():
    inputs = case("range_3_211")
    pred, density = (inputs[k].astype(np.float64) for k in ("pred", "gt"))
    fixated = dense(inputs["fixations"], pred.shape) > 0
    expected = {
        "auc_judd": slow_auc_judd(pred, fixated),
        "nss": np.mean((pred - pred.mean())[fixated]) / pred.std(),
        "cc": np.corrcoef(pred.ravel(), density.ravel())[0, 1],
        "sim": np.minimum(pred / pred.sum(), density / density.sum()).sum(),
        "kld": CASES["range_3_211"]["kld"],
    }
    for maps in (inputs["pred"], pred):
        scores = metrics.score(
            maps[None],
            inputs["gt"][None],
            [inputs["fixations"]],
            protocol="aim",
        )
        assert tuple(scores) == tuple(expected)
        for metric, value in expected.items():
            equal(scores[metric][0], value, 1e-9)
    # The minimum is 3, so that leaving it in makes a difference.
    assert abs(expected["sim"] - CASES["range_3_211"]["sim"]) > 0.01


def slow_resize_axis(values, length):
    """Weights at each output pixel by the kernel's formula, one by one."""
    scale = length / len(values)
    stretch = max(1.0, 1 / scale)
    result = []
    for i in range(length):
        centre, total, weights = (i + 0.5) / scale - 0.5, 0.0, 0.0
        for at in range(-3 * len(values), 4 * len(values)):
            x = abs(centre - at) / stretch
            if x <= 1:
                weight = 1.5 * x**3 - 2.5 * x**2 + 1
            elif x < 2:
                weight = -0.5 * x**3 + 2.5 * x**2 - 4 * x + 2
            else:
                continue
            mirrored = at % (2 * len(values))
            if mirrored >= len(values):
                mirrored = 2 * len(values) - 1 - mirrored
            total += weight * values[mirrored]
            weights += weight
        result.append(total / weights)
    return np.array(result)


@pytest.mark.parametrize("size", [(5, 7), (9, 12), (3, 2), (13, 3), (1, 1)])
def test_resize_against_loops(size):
    maps = np.random.default_rng(1).random((2, 5, 7))
    slow = np.apply_along_axis(slow_resize_axis, 1, maps, size[0])
    slow = np.apply_along_axis(slow_resize_axis, 2, slow, size[1])
    np.testing.assert_allclose(metrics.resize(maps, size), slow, atol=1e-12)


@pytest.mark.parametrize(
    "name", [name for name in CASES if name.startswith("resize")]
)
def test_golden_resized(name):
    inputs = case(name)
    resized = metrics.resize(inputs["pred"], inputs["gt"].shape)
    equal(resized.min(), CASES[name]["resized_min"], 1e-9)


def test_other_protocols_resize_bilinearly():
    small = np.array([[[0, 100, 20]]], np.uint8)
    wide = np.array([[[0, 25, 75, 80, 40, 20]]])
    density = np.array([[[0, 1, 2, 9, 3, 5]]], np.uint8)
    for protocol in ("aim", "dhf1k"):
        given = metrics.cc(small, density, protocol=protocol)
        same = np.isclose(given, metrics.cc(wide, density))[0]
        assert same == (protocol == "aim")


# === Invariants ===

maps_8bit = hnp.arrays(np.uint8, (1, 9, 12))
masks = hnp.arrays(bool, (1, 9, 12))


@properties
@hypothesis.given(maps_8bit, maps_8bit, masks, masks)
def test_both_ways_agree(pred, density, fixated, others):
    given = {"fixations": fixated, "other": others, "baseline": density}
    fast = metrics.score(pred, density, **given)
    exact = metrics.score(pred.astype(np.float32), density, **given)
    for metric in metrics.METRICS:
        np.testing.assert_allclose(
            fast[metric], exact[metric], rtol=1e-9, atol=1e-9
        )


@properties
@hypothesis.given(maps_8bit, maps_8bit, masks, masks)
def test_bounds(pred, density, fixated, others):
    scores = metrics.score(pred, density, fixated, other=others)
    for metric in ("auc_judd", "sauc", "auc_borji", "sim"):
        value = scores[metric][0]
        assert np.isnan(value) or -1e-12 <= value <= 1 + 1e-12
    assert np.isnan(scores["cc"][0]) or abs(scores["cc"][0]) <= 1 + 1e-12
    assert scores["kld"][0] >= -1e-12


@properties
@hypothesis.given(
    maps_8bit, maps_8bit, masks, st.floats(0.01, 100), st.floats(-50, 50)
)
def test_affine_maps_change_nothing(pred, density, fixated, scale, shift):
    moved = pred * scale + shift
    for metric in ("cc", "sim"):
        if metric == "sim" and (not pred.any() or not moved.any()):
            continue  # All zero is not the same as constant.
        function = getattr(metrics, metric)
        np.testing.assert_allclose(
            function(moved, density), function(pred, density), atol=1e-7
        )
    nss = metrics.nss(pred, fixated)
    np.testing.assert_allclose(metrics.nss(moved, fixated), nss, atol=1e-7)


@properties
@hypothesis.given(maps_8bit, masks)
def test_increasing_maps_do_not_change_auc_judd(pred, fixated):
    curved = np.exp(pred / 40.0) + pred
    np.testing.assert_allclose(
        metrics.auc_judd(curved, fixated),
        metrics.auc_judd(pred, fixated),
        rtol=0,
        atol=1e-12,
    )


@properties
@hypothesis.given(maps_8bit, maps_8bit)
def test_cc_and_sim_are_symmetric(a, b):
    np.testing.assert_allclose(metrics.cc(a, b), metrics.cc(b, a), atol=1e-12)
    np.testing.assert_allclose(metrics.sim(a, b), metrics.sim(b, a), atol=1e-12)


@properties
@hypothesis.given(masks)
def test_a_map_of_the_fixations_is_best(fixated):
    n = fixated.sum()
    hypothesis.assume(1 < n < fixated.size)
    pred = fixated.astype(np.uint8)
    scores = metrics.score(pred, pred * 9, fixated, other=~fixated)
    for metric, best in (("sauc", 1), ("cc", 1), ("sim", 1), ("kld", 0)):
        equal(scores[metric][0], best, 1e-9)
    # Equal pixels in random order: no negative is among them.
    equal(scores["auc_judd"][0], 1, 1e-12)


@properties
@hypothesis.given(st.integers(0, 99), st.permutations(range(11)))
def test_frames_do_not_know_of_each_other(seed, order):
    rng = np.random.default_rng(seed)
    pred, density = rng.integers(0, 256, (2, 11, 6, 9)).astype(np.uint8)
    fixated, others = rng.random((2, 11, 6, 9)) < 0.2
    order = np.array(order)
    together = _sampled(pred, density, fixated, others, range(11))
    shuffled = _sampled(
        pred[order], density[order], fixated[order], others[order], order
    )
    alone = [
        _sampled(*(x[i : i + 1] for x in (pred, density, fixated, others)), [i])
        for i in range(11)
    ]
    for metric, values in together.items():
        np.testing.assert_array_equal(values[order], shuffled[metric])
        one_by_one = np.concatenate([scores[metric] for scores in alone])
        np.testing.assert_array_equal(values, one_by_one)


def _sampled(pred, density, fixated, others, frames):
    exact = metrics.score(pred, density, fixated, other=others)
    sampled = metrics.score(
        pred,
        fixations=fixated,
        other=others,
        jitter="sample",
        sauc_splits=2,
        borji_splits=2,
        frames=frames,
    )
    return exact | {f"sampled {k}": v for k, v in sampled.items()}


def test_forms_of_fixations():
    fixated = np.zeros((1, 6, 8))
    fixated[0, [0, 2, 5], [1, 3, 5]] = 0.5
    padded = np.full((1, 6, 2), -1)
    padded[0, 1:5] = [[5, 5], [2, 3], [0, 1], [5, 5]]
    expected = metrics.score(RAMP, fixations=POINTS)
    for form in (fixated, padded, fixated > 0):
        scores = metrics.score(RAMP[..., None], fixations=form)
        assert scores == expected


def test_coordinates_that_are_all_padding_are_no_fixations():
    padded = np.full((1, 4, 2), -1)
    assert np.isnan(metrics.nss(RAMP, padded)[0])


def test_coordinates_of_a_small_map():
    coordinates = np.array([[[0, 1], [2, 0]]])
    pred = np.array([[[1, 5], [3, 2], [9, 4]]], np.uint8)
    fixated = np.array([[[0, 1], [0, 0], [1, 0]]])
    assert metrics.nss(pred, coordinates) == metrics.nss(pred, fixated)


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
    again = metrics.other_frames(7, 50, seed=1)
    np.testing.assert_array_equal(again, draws[7])
    other_seed = metrics.other_frames(7, 50, seed=2)
    assert set(other_seed) != set(again)
    assert set(metrics.other_frames(3, 4)) == {0, 1, 2, 3}


def test_other_fixations_are_a_union():
    rng = np.random.default_rng(0)
    points = [rng.integers(0, 20, (9, 2)).astype(np.int16) for _ in range(30)]
    others = metrics.OtherFixations(points, seed=4)
    assert len(others) == 30
    expected = {tuple(p) for i in others.frames(6) for p in points[i].tolist()}
    got = [tuple(p) for p in others[6].tolist()]
    assert set(got) == expected
    assert len(got) == len(expected)
    with pytest.raises(IndexError):
        others[30]
    empty = metrics.OtherFixations([np.zeros((0, 2), int)] * 12)
    assert empty[0].shape == (0, 2)


# === The mean in training ===


def _batch(frames, seed=0):
    rng = np.random.default_rng(seed)
    y_true = rng.random((frames, 12, 16, 4)).astype(np.float32)
    y_true[..., 1:3] = y_true[..., 1:3] < 0.1
    y_true[0, ..., 1] = 0  # A frame that nobody looked at.
    return y_true, rng.random((frames, 12, 16, 1)).astype(np.float32)


@pytest.mark.parametrize("metric", metrics.METRICS)
def test_frame_mean_is_the_mean_of_the_saved_maps(metric):
    y_true, y_pred = _batch(7)
    mean = metrics.FrameMean(metric)
    assert np.isnan(mean.result())
    for part in (slice(0, 3), slice(3, 7)):
        mean.update_state(y_true[part], y_pred[part])
    scores = metrics.score(
        preprocess.to_uint8(y_pred),
        preprocess.to_uint8(y_true[..., 0]),
        y_true[..., 1],
        other=y_true[..., 2],
        baseline=preprocess.to_uint8(y_true[..., 3]),
        metrics=[metric],
    )[metric]
    count = np.isfinite(scores).sum()
    equal(float(mean.count), count, 0)
    equal(float(mean.result()), np.nanmean(scores), 1e-5)
    mean.reset_state()
    assert np.isnan(mean.result())


@pytest.mark.parametrize("metric", ["auc_judd", losses.cc])
def test_frame_mean_survives_its_config(metric):
    mean = metrics.FrameMean(metric, name="scored")
    config = keras.saving.serialize_keras_object(mean)
    again = keras.saving.deserialize_keras_object(
        json.loads(json.dumps(config))
    )
    batch = _batch(3)
    assert again.name == "scored"
    assert float(mean(*batch)) == float(again(*batch))


def test_frame_mean_leaves_out_frames_of_weight_zero():
    y_true, y_pred = _batch(4)
    mean, fewer = (metrics.FrameMean("nss") for _ in range(2))
    mean.update_state(y_true, y_pred, sample_weight=[1, 1, 0, 1])
    keep = [0, 1, 3]
    fewer.update_state(y_true[keep], y_pred[keep])
    assert float(mean.result()) == float(fewer.result())
    assert float(mean.count) == 2


tensorflow_only = pytest.mark.skipif(
    keras.backend.backend() != "tensorflow",
    reason="tf.distribute and tf.function",
)


@tensorflow_only
@pytest.mark.parametrize("metric", ["auc_judd", "sim", losses.kld])
def test_uneven_replicas_give_the_mean_of_one(metric):
    import tensorflow as tf

    y_true, y_pred = _batch(5)
    strategy = tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"])
    with strategy.scope():
        mean = metrics.FrameMean(metric)

    @tf.function
    def step(values):
        strategy.run(lambda batch: mean.update_state(*batch), args=(values,))

    def value(context):
        part = [slice(0, 4), slice(4, 5)][context.replica_id_in_sync_group]
        return tf.constant(y_true[part]), tf.constant(y_pred[part])

    step(strategy.experimental_distribute_values_from_function(value))
    alone = metrics.FrameMean(metric)
    alone.update_state(y_true, y_pred)
    equal(float(mean.result()), float(alone.result()), 1e-6)


@tensorflow_only
@pytest.mark.parametrize("jit_compile", [False, True])
def test_tensors_in_a_compiled_function_of_any_batch(jit_compile):
    import tensorflow as tf

    names = ["one_fixation", "binary", "frame_100fix"]
    inputs = [_tensors(name) for name in names]
    batch = {
        key: tf.concat([x[key] for x in inputs], axis=0)
        for key in inputs[0]
        if key != "baseline"
    }
    signature = {
        key: tf.TensorSpec([None, 360, 640], x.dtype)
        for key, x in batch.items()
    }

    @tf.function(
        jit_compile=jit_compile,
        input_signature=[signature, tf.TensorSpec([360, 640], tf.uint8)],
    )
    def compiled(batch, baseline):
        return metrics.score(**batch, baseline=baseline)

    scores = compiled(batch, centre())
    for metric, values in scores.items():
        for value, name in zip(values, names, strict=True):
            golden = CASES[name][metric]
            if metric in AUCS:
                golden = golden["expected"]
            equal(float(value), golden, 1e-6 if metric in AUCS else 2e-6)


# === Wrong input ===


@pytest.mark.parametrize(
    ("message", "arguments"),
    [
        ("protocol", {"pred": RAMP, "protocol": "mit"}),
        ("metric of protocol", {"pred": RAMP, "metrics": ["psnr"]}),
        (
            "metric of protocol",
            {
                "pred": RAMP,
                "density": RAMP,
                "metrics": ["sim"],
                "protocol": "paper",
            },
        ),
        ("jitter", {"pred": RAMP, "fixations": POINTS, "jitter": "midrank"}),
        ("thresholds", {"pred": RAMP, "fixations": POINTS, "thresholds": "r"}),
        ("No ground truth", {"pred": RAMP}),
        (
            "Missing: other",
            {"pred": RAMP, "fixations": POINTS, "metrics": ["sauc"]},
        ),
        ("shape \\[B, H, W\\]", {"pred": RAMP[0], "density": RAMP}),
        ("as many frames", {"pred": RAMP, "density": RAMP.repeat(2, 0)}),
        ("as many frames", {"pred": RAMP, "fixations": POINTS * 2}),
        (
            "size of the density",
            {"pred": RAMP, "density": RAMP, "fixations": RAMP[:, 1:]},
        ),
        (
            "inside \\(6, 8\\)",
            {"pred": RAMP, "fixations": [np.array([[6, 0]])]},
        ),
        (
            "inside \\(6, 8\\)",
            {"pred": RAMP, "fixations": [np.array([[0, -1]])]},
        ),
        (
            "must be integers",
            {"pred": RAMP, "fixations": [np.array([[1.0, 2.0]])]},
        ),
        ("finite", {"pred": RAMP * np.nan, "density": RAMP}),
        ("finite", {"pred": RAMP, "density": RAMP + np.inf}),
        (
            "size of the ground truth",
            {"pred": RAMP, "fixations": POINTS, "baseline": RAMP[0, 1:]},
        ),
    ],
)
def test_errors(message, arguments):
    with pytest.raises(ValueError, match=message):
        metrics.score(**arguments)


def test_errors_of_tensors():
    pred = keras.ops.convert_to_tensor(RAMP)
    with pytest.raises(ValueError, match="by expectation only"):
        metrics.score(pred, pred, pred, jitter="sample")
    with pytest.raises(ValueError, match="paper"):
        metrics.score(pred, pred, pred, protocol="paper")
    with pytest.raises(ValueError, match="integers 0"):
        metrics.score(keras.ops.cast(pred, "float32"), pred)
    with pytest.raises(ValueError, match="integers 0"):
        metrics.score(pred, keras.ops.cast(pred, "float32"))


@pytest.mark.parametrize(
    ("name", "shape"),
    [
        # As many pixels as the prediction.
        ("density", (1, 8, 6)),
        ("density", (1, 4, 12)),
        ("fixations", (1, 3, 8)),
        ("other", (1, 48)),
        ("baseline", (4, 12)),
        ("density", (2, 6, 8)),
        ("density", (1, 6, 8, 2)),
    ],
)
def test_tensors_of_another_size_are_not_scored(name, shape):
    given = dict.fromkeys(("pred", "density", "fixations", "other"), RAMP)
    given |= {"baseline": RAMP[0]}
    given = {n: keras.ops.convert_to_tensor(m) for n, m in given.items()}
    assert np.isfinite(float(metrics.score(**given)["cc"][0]))
    given[name] = keras.ops.zeros(shape, "uint8")
    with pytest.raises(ValueError, match=f"`{name}` .*not resized"):
        metrics.score(**given)


def test_arrays_of_another_size_are_resized():
    """Also those that have as many pixels."""
    pred = np.random.default_rng(0).integers(0, 256, (1, 4, 4), np.uint8)
    density = RAMP[:, :2]
    found = metrics.score(pred, density, density > 5)
    resized = metrics.resize(pred, (2, 8))
    want = metrics.score(resized, density, density > 5)
    for name, value in want.items():
        equal(found[name][0], value[0], 1e-12)


def test_frame_mean_of_an_unknown_metric():
    with pytest.raises(ValueError, match="psnr"):
        metrics.FrameMean("psnr")
