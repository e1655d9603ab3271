"""Scores of folders of maps: through the program, and piece by piece."""

import csv
import json
import os
import pathlib
import shutil
import signal
import subprocess
import sys
import types

from absl import logging
import cv2
import numpy as np
import pandas as pd
import pytest

from lsts_tf import evaluate, experiment
from lsts_tf.media import images as maps
from lsts_tf.media import video as video_lib
from lsts_tf.media import writer as writer_lib
from lsts_tf.scoring import density, metrics, page, predictions
from lsts_tf.scoring import folders as folders_lib
from tests import flag_scope

GOLDEN = pathlib.Path(__file__).parent / "metrics_golden"


@pytest.fixture(scope="module")
def golden():
    """Arrays of the golden video set, and its values."""
    with np.load(GOLDEN / "video.npz") as data:
        arrays = dict(data)
    values = json.loads((GOLDEN / "golden.json").read_text())["video"]
    points = arrays["fixations"]
    arrays["points"] = [
        points[arrays["fixation_frame"] == i]
        for i in range(len(arrays["frame"]))
    ]
    return arrays, values


def write_set(root, arrays):
    """The set as DHF1K's tree: root/maps, root/annotation."""
    names = [str(name) for name in arrays["frame"]]
    for i, name in enumerate(names):
        video, frame = name.split("/")
        for folder in (
            root / "maps" / video,
            root / "annotation" / video / "maps",
            root / "annotation" / video / "fixation",
        ):
            folder.mkdir(parents=True, exist_ok=True)
        fixated = np.zeros(arrays["gt"][i].shape, np.uint8)
        fixated[tuple(arrays["points"][i].T)] = 255
        truth = root / "annotation" / video
        maps.write_png(
            root / "maps" / video / f"{frame}.png", arrays["pred"][i]
        )
        maps.write_png(truth / "maps" / f"{frame}.png", arrays["gt"][i])
        maps.write_png(truth / "fixation" / f"{frame}.png", fixated)
        # As DHF1K has it: a stray picture beside the folders.
        shutil.copy(truth / "maps" / f"{frame}.png", truth / "0005.png")
    return root


@pytest.fixture(scope="module")
def written(golden, tmp_path_factory):
    return write_set(tmp_path_factory.mktemp("golden"), golden[0])


@pytest.fixture
def tree(written, tmp_path):
    """A copy that a test may spoil."""
    return pathlib.Path(shutil.copytree(written, tmp_path / "set"))


class Program:
    """The program in this process, and what it left behind."""

    def __init__(self, folder, capsys):
        self.folder = folder
        self._capsys = capsys
        self.text = ""

    def __call__(self, *arguments, output="scores.json", workers=1):
        """Returns scores.json."""
        with flag_scope.defined(
            experiment.define_flags, evaluate.define_flags
        ) as values:
            rest = values(
                [
                    "evaluate",
                    f"--output={self.folder / output}",
                    *([f"--workers={workers}"] if workers else []),
                    *map(str, arguments),
                ]
            )
            evaluate.main(rest)
        self.text = self._capsys.readouterr().out
        return json.loads((self.folder / output).read_text())

    def rows(self, name="scores.csv"):
        """Lines of the table of frames."""
        with (self.folder / name).open() as file:
            return list(csv.DictReader(file))


@pytest.fixture
def run(tmp_path, capsys):
    (tmp_path / "out").mkdir()
    return Program(tmp_path / "out", capsys)


@pytest.fixture
def refused(run, monkeypatch):
    """What the program says when it stops; no result may be written."""

    def call(*arguments, workers=1):
        lines = []
        monkeypatch.setattr(
            logging, "error", lambda text, *rest: lines.append(text % rest)
        )
        with pytest.raises(SystemExit) as stopped:
            run(*arguments, workers=workers)
        assert stopped.value.code == 1
        assert not list(run.folder.iterdir())
        return "\n".join(lines)

    return call


def scored(arrays, others=None, baseline=None, **options):
    """{metric: scores of the golden frames}, computed one by one."""
    each = [
        metrics.score(
            pred,
            density,
            points,
            others=others and others[i],
            baseline=baseline,
            **options,
        )
        for i, (pred, density, points) in enumerate(
            zip(arrays["pred"], arrays["gt"], arrays["points"], strict=True)
        )
    ]
    return {name: [values[name] for values in each] for name in each[0]}


def folders(root):
    return (
        f"--predictions={root / 'maps'}",
        f"--annotations={root / 'annotation'}",
    )


def same(one, other):
    """Equal but for where the files are and which kind they have."""

    def core(scores):
        skipped = ("ground_truth", "predictions")
        return {k: v for k, v in scores.items() if k not in skipped}

    return core(one) == core(other)


def map_file(tree, video=601, frame=2):
    return tree / "maps" / f"{video:04d}" / f"{frame:04d}.png"


# === The golden set through the program ===


@pytest.fixture
def listed_frames(golden, monkeypatch):
    """Shuffled AUC draws the frames that the golden values were made of."""
    drawn = golden[0]["other_frames"]
    monkeypatch.setattr(metrics, "other_frames", lambda i, *_, **__: drawn[i])


@pytest.mark.usefixtures("listed_frames")
def test_golden_video_set(run, written, golden):
    """Equals what the official script returns on the same files."""
    arrays, values = golden
    scores = run(*folders(written), "--protocol=dhf1k")
    assert scores["protocol"] == "dhf1k"
    assert scores["frames"] == 12
    assert tuple(scores["overall"]) == metrics.METRICS
    for name, mean in values["mean_over_frames"].items():
        found = scores["overall"][name]
        assert found["mean"] == pytest.approx(mean, abs=1e-9)
        valid = [v for v in values["per_frame"][name] if v is not None]
        assert found["n_valid"] == len(valid)
    for name in ("nss", "sim", "cc"):
        official = values["official"][name]
        assert scores["overall"][name]["mean"] == pytest.approx(
            official, abs=1e-9
        )
    for name, draws in (
        ("auc_judd", "auc_judd"),
        ("sauc", "sauc_listed_other_frames"),
    ):
        official = values["official"][draws]
        near = 4.5 * official["sd"] / official["runs"] ** 0.5
        assert scores["overall"][name]["mean"] == pytest.approx(
            official["mean"], abs=near
        )
    for video, table in values["mean_per_video"].items():
        for name, mean in table.items():
            assert scores["by_video"][video][name] == pytest.approx(
                mean, abs=1e-9
            )
    rows = run.rows()
    frames = [f"{row['video']}/{int(row['frame']):04d}" for row in rows]
    assert frames == list(arrays["frame"])
    for name, column in values["per_frame"].items():
        for row, value in zip(rows, column, strict=True):
            if value is None:
                assert row[name] == ""
            else:
                assert float(row[name]) == pytest.approx(value, abs=1e-9)
    assert "nss" in run.text
    assert f"{values['mean_over_frames']['nss']:.4f}" in run.text


def test_the_official_draw_of_other_frames(golden):
    arrays, values = golden
    total, means = len(arrays["points"]), []
    for seed in range(40):
        others = [
            np.concatenate([arrays["points"][k] for k in drawn])
            for drawn in (
                metrics.other_frames(i, total, seed=seed) for i in range(total)
            )
        ]
        scores = scored(arrays, others, metrics=["sauc"])
        means.append(np.nanmean(scores["sauc"]))
    official = values["official"]["sauc_random_other_frames"]
    # Two sample means.
    sd = official["sd"] * (1 / len(means) + 1 / official["runs"]) ** 0.5
    assert np.mean(means) == pytest.approx(official["mean"], abs=4.5 * sd)


def test_first_frames_stand_apart(run, written):
    scores = run(*folders(written), "--first_frames_count=2")
    first = scores["first_frames"]
    rows = run.rows()
    early = [float(r["sim"]) for r in rows if int(r["frame"]) <= 2 and r["sim"]]
    assert first["number"] == 2
    assert first["first"]["sim"]["n_valid"] == len(early)
    assert first["first"]["sim"]["mean"] == pytest.approx(np.mean(early))
    valid = scores["overall"]["sim"]["n_valid"]
    assert first["rest"]["sim"]["n_valid"] == valid - len(early)
    prior = first["rest_centre_prior"]
    assert prior["sim"]["n_valid"] == valid - len(early)
    assert prior["cc"]["mean"] != scores["centre_prior"]["cc"]["mean"]
    whole = run(*folders(written), "--first_frames_count=0")
    prior = whole["first_frames"]["rest_centre_prior"]
    assert prior == whole["centre_prior"]


def test_the_draw_follows_from_the_seed(run, written):
    one, again, other = (
        run(*folders(written), f"--seed={seed}", output=f"{i}.json")
        for i, seed in enumerate((1, 1, 2))
    )
    assert same(one, again)
    assert one["overall"]["sauc"] != other["overall"]["sauc"]
    assert one["overall"]["nss"]["mean"] == other["overall"]["nss"]["mean"]
    assert "ten random frames" in one["other_fixations"]


def test_workers_find_the_same(run, written):
    one = run(*folders(written), output="one.json")
    two = run(*folders(written), output="two.json", workers=2)
    assert same(one, two)


def test_tables_pictures_and_page(run, written):
    plots = run.folder / "plots"
    scores = run(
        *folders(written),
        f"--plots={plots}",
        "--per_frame=csv",
        "--per_frame=parquet",
    )
    import pyarrow.parquet

    table = pyarrow.parquet.read_table(
        run.folder / "scores.parquet"
    ).to_pydict()
    for row, cc in zip(run.rows(), table["cc"], strict=True):
        assert row["cc"] == ("" if cc is None else repr(cc))
    for name in ("by_video.png", "over_time.png"):
        assert cv2.imread(str(plots / name)).std() > 1
    shown = (plots / "scores.html").read_text()
    assert shown.count("data:image/png;base64,") == 2
    assert "http" not in shown
    assert "0.5441" in shown  # CC of the golden set.
    assert f"<td>{scores['overall']['cc']['n_valid']}</td>" in shown
    hostile = page.page({**scores, "note": "<script>"}, {})
    assert "&lt;script&gt;" in hostile


# === Runs and folders meet in one scorer ===


class Model:
    """Stands in for a trained model: its maps are those of a folder."""

    note = "random I3D weights (rgb)"
    first_map = 2
    extractor = types.SimpleNamespace(describe=dict)

    def __init__(self, maps_of_videos):
        self.maps = maps_of_videos

    def of_stores(self, _, video):
        return self.maps[video]


def test_a_run_scores_what_the_folder_of_its_maps_scores(
    run, written, golden, tmp_path, monkeypatch
):
    from lsts_tf import predictor
    from lsts_tf.features import dataset, fill, stores

    found = {}
    truth = stores.TruthStore.create(
        tmp_path / "truth",
        stores.Manifest(kind="truth", dataset="d", shape=(), dtype="uint8"),
    )
    for folder in sorted((written / "annotation").iterdir()):
        video = int(folder.name)
        truth.write(
            video,
            **{
                name: [p.read_bytes() for p in sorted(path.glob("*.png"))]
                for name, path in (
                    ("maps", folder / "maps"),
                    ("fixations", folder / "fixation"),
                )
            },
        )
        files = sorted((written / "maps" / folder.name).iterdir())
        found[video] = np.stack([maps.read(path) for path in files])
    monkeypatch.setattr(
        predictor.Predictor, "load", lambda *_, **__: Model(found)
    )
    monkeypatch.setattr(
        dataset,
        "Dataset",
        lambda *_: types.SimpleNamespace(
            choose=lambda *_: set(found), name="golden"
        ),
    )
    monkeypatch.setattr(
        fill,
        "ready_stores",
        lambda *_, **__: types.SimpleNamespace(truth=truth),
    )
    of_run = run("--seed=4", output="run.json", workers=None)
    of_folder = run(*folders(written), "--seed=4", "--first_frames_count=2")
    assert of_run["note"] == Model.note
    filled = of_run["first_frames"].pop("filled_by")
    assert filled.startswith("copy of the first map")
    for key in ("overall", "first_frames", "by_video", "centre_prior"):
        assert of_run[key] == of_folder[key]
    assert run.rows("run.csv") == run.rows()


# === Other kinds of maps ===


def test_arrays_and_16_bits_score_what_bytes_score(run, written, tree):
    want = run(*folders(written))
    for i, path in enumerate(sorted((tree / "maps").glob("*/*.png"))):
        image = maps.read(path)
        if i % 3 == 0:
            path.unlink()
            np.save(path.with_suffix(".npy"), image.astype(np.float32) / 255)
        elif i % 3 == 1:
            cv2.imwrite(str(path), image.astype(np.uint16) * 257)
        else:
            colours = np.dstack([255 - image, 255 - image, image])
            cv2.imwrite(str(path), colours)
    found = run(*folders(tree))
    for name, summary in want["overall"].items():
        # A float32 of a level is not quite a level: a tie at a threshold.
        near = 2e-3 if name in ("sauc", "auc_borji") else 1e-6
        assert found["overall"][name]["mean"] == pytest.approx(
            summary["mean"], abs=near
        )
        assert found["overall"][name]["n_valid"] == summary["n_valid"]


def test_maps_of_another_size_are_resized(run, tree, golden):
    for path in (tree / "maps").glob("*/*.png"):
        maps.write_png(path, cv2.resize(maps.read(path), (160, 90)))
    run(*folders(tree), "--seed=3")
    small = [cv2.resize(map_, (160, 90)) for map_ in golden[0]["pred"]]
    names = ("nss", "cc", "sim", "kld")
    want = scored({**golden[0], "pred": small}, metrics=names)
    for name, values in want.items():
        got = [float(row[name] or "nan") for row in run.rows()]
        np.testing.assert_allclose(got, values, atol=1e-12)


def test_a_video_of_maps(tmp_path, golden):
    arrays = golden[0]["pred"][:5]
    path = tmp_path / "601.mp4"
    with writer_lib.Writer(path, fps=30, size=(320, 180)) as writer:
        for map_ in arrays:
            writer.write(np.dstack([map_] * 3))
    decoded = [image[..., 0] for image in video_lib.frames(path)]
    clip = predictions.Predictions(tmp_path).clips[601]
    assert list(clip.frames) == [0, 1, 2, 3, 4]
    *found, beyond = clip.read([1, 3, 4, 5])
    np.testing.assert_array_equal(found, [decoded[i] for i in (1, 3, 4)])
    assert "frame 6: the video is shorter" in str(beyond)


# === Other kinds of ground truth ===


def test_official_sample_from_pictures_from_mat_and_from_points(
    run, shared, tmp_path
):
    """Ten frames of DHF1K; its density maps are rebuilt bit for bit."""
    root = shared / "real_clips" / "official_0601_sample" / "annotation"
    out = tmp_path / "maps" / "0601"
    out.mkdir(parents=True)
    lines = ["video,frame,x,y"]
    rng = np.random.default_rng(0)
    for path in sorted((root / "0601" / "maps").iterdir()):
        truth = maps.read(path)
        noise = cv2.GaussianBlur(rng.random(truth.shape), (0, 0), 25)
        noise = (noise - noise.min()) / np.ptp(noise)
        guess = cv2.GaussianBlur(truth, (0, 0), 20) * 0.6 + 100 * noise
        maps.write_png(out / path.name, guess.astype(np.uint8))
        fixated = maps.read(root / "0601" / "fixation" / path.name)
        lines += [
            f"601,{int(path.stem)},{x},{y}" for y, x in np.argwhere(fixated)
        ]
    points = tmp_path / "points.csv"
    points.write_text("\n".join(lines))
    given = f"--predictions={out.parent}"
    scores = {
        kind: run(
            given, f"--annotations={root}", f"--fixations={kind}", "--seed=5"
        )
        for kind in ("png", "mat")
    }
    assert scores["png"]["frames"] == 10
    assert scores["png"]["ground_truth"]["fixations"] == "png"
    assert scores["mat"]["ground_truth"]["fixations"] == "mat"
    assert same(scores["png"], scores["mat"])
    table = run.rows()
    # Of the list of points every frame up to the last is one to score.
    run(given, f"--annotations={points}", "--allow_missing", "--seed=5")
    for one, other in zip(table, run.rows(), strict=True):
        for name in one:
            if name != "sauc":  # Drawn from other frames.
                assert one[name] == other[name]


def test_points_and_observers(run, tmp_path):
    """Three observers of four frames of two videos, who agree."""
    rng = np.random.default_rng(0)
    looks = []
    for video in (1, 2):
        folder = tmp_path / "maps" / f"{video:03d}"
        folder.mkdir(parents=True)
        for frame in range(4):
            noise = rng.integers(0, 256, (90, 160), np.uint8)
            maps.write_png(folder / maps.file_name(frame), noise)
        for frame in (1, 2, 4):
            centre = rng.uniform([20, 20], [140, 70])
            looks += [
                (video, frame, *np.round(centre + rng.normal(0, 3, 2), 2), who)
                for who in 5 * "abc"
            ]
    columns = ["video", "frame", "x", "y", "observer"]
    table = pd.DataFrame(looks, columns=columns)
    table.to_csv(tmp_path / "points.csv", index=False)
    as_json = json.dumps({"fixations": table.to_dict("records")})
    (tmp_path / "points.json").write_text(as_json)
    scores, again = (
        run(
            f"--annotations={tmp_path / name}",
            f"--predictions={tmp_path / 'maps'}",
            *("--map_size=160x90", "--density=gaussian", "--sigma=6"),
        )
        for name in ("points.csv", "points.json")
    )
    assert same(again, scores)
    # Frame 3 is between others: nobody looked.
    assert scores["frames"] == 8
    assert scores["overall"]["nss"]["n_valid"] == 6
    assert scores["overall"]["sim"]["n_valid"] == 8
    assert scores["ground_truth"]["sigma"] == 6
    assert scores["ground_truth"]["density"] == "gaussian"
    others = scores["inter_observer"]
    assert others["cc"]["n_valid"] == 6
    assert others["cc"]["mean"] > 0.5 > scores["overall"]["cc"]["mean"]
    assert others["auc_judd"]["mean"] > 0.9
    assert "other observers" in run.text

    fixated = np.zeros((90, 160), bool)
    for x, y in table[["x", "y"]][:15].round().to_numpy(int):
        fixated[y, x] = True
    want = metrics.score(
        maps.read(tmp_path / "maps" / "001" / "0001.png"),
        density.density_map(fixated, sigma=6, shift=0),
    )
    assert float(run.rows()[0]["cc"]) == pytest.approx(want["cc"], abs=1e-12)


# === Protocols, negatives ===


def test_paper_takes_the_neighbouring_frame(run, written, golden):
    arrays = golden[0]
    scores = run(*folders(written), "--protocol=paper")
    assert tuple(scores["overall"]) == tuple(metrics.PROTOCOLS["paper"])
    assert "not comparable with other papers" in scores["note"]
    assert "NOT COMPARABLE" in run.text
    # The last frame of a video has the one before it.
    neighbours = [1, 2, 3, 4, 3, 6, 7, 8, 7, 10, 11, 10]
    others = [arrays["points"][i] for i in neighbours]
    want = scored(arrays, others, protocol="paper")
    for name, values in want.items():
        got = [float(row[name] or "nan") for row in run.rows()]
        np.testing.assert_allclose(got, values, atol=1e-12)


def test_a_fixed_map_of_negatives_and_a_baseline(run, written, golden):
    arrays = golden[0]
    negatives = np.zeros((180, 320), np.uint8)
    negatives[::7, ::5] = 1
    maps.write_png(run.folder / "negatives.png", negatives)
    np.save(run.folder / "base.npy", arrays["gt"].mean(axis=0))
    scores = run(
        *folders(written),
        f"--sauc_map={run.folder / 'negatives.png'}",
        f"--baseline={run.folder / 'base.npy'}",
    )
    assert scores["other_fixations"] == scores["baseline"] == "a fixed map"
    assert scores["fixed_maps"] == {
        "sauc_map": str(run.folder / "negatives.png"),
        "baseline": str(run.folder / "base.npy"),
    }
    want = scored(
        arrays,
        [np.argwhere(negatives)] * 12,
        metrics.distribution(arrays["gt"].mean(axis=0)),
        metrics=("sauc", "infogain"),
    )
    for name, values in want.items():
        got = [float(row[name] or "nan") for row in run.rows()]
        np.testing.assert_allclose(got, values, atol=1e-12)


def test_a_baseline_may_be_negative(run, written, golden):
    arrays = golden[0]
    base = cv2.resize(arrays["gt"].mean(axis=0), (80, 45))
    base = np.log(base + 1) - 10
    assert base.max() < 0
    np.save(run.folder / "base.npy", base)
    run(*folders(written), f"--baseline={run.folder / 'base.npy'}")
    resized = metrics.resize(base, (180, 320))
    baseline = metrics.distribution(np.clip(resized, base.min(), base.max()))
    want = scored(arrays, None, baseline, metrics=["infogain"])["infogain"]
    assert np.isfinite(want).sum() > 6
    got = [float(row["infogain"] or "nan") for row in run.rows()]
    np.testing.assert_allclose(got, want, atol=1e-12)


# === Files that are not as they should be ===


def cut_off(path):
    path.write_bytes(path.read_bytes()[:-40])


def loop_of_itself(path):
    path.unlink()
    path.symlink_to(path.name)


def broken_link(path):
    path.unlink()
    path.symlink_to("nowhere.png")


def garbage_array(path):
    path.unlink()
    path.with_suffix(".npy").write_bytes(b"hello")


def loop_of_folders(path):
    (path.parent / "0009").symlink_to(path.parent.parent)


def numbered_from_0(path):
    for file in sorted(path.parent.iterdir()):
        file.rename(file.with_name(f"{int(file.stem) - 1:04d}.png"))


def copied_as(name):
    return lambda path: shutil.copy(path, path.with_name(name))


def folder_copied_as(name):
    return lambda p: shutil.copytree(p.parent, p.parent.with_name(name))


def spoil(path, how):
    """By a function, or by other contents: bytes, an array, a picture."""
    if callable(how):
        how(path)
    elif isinstance(how, bytes):
        path.write_bytes(how)
    elif how.dtype == np.uint8:
        maps.write_png(path, how)
    else:
        path.unlink()
        np.save(path.with_suffix(".npy"), how)


NAN = np.full((180, 320), 0.5, np.float32)
NAN[3, 4] = np.nan
MAP = "maps/0601/0002.png"
DENSITY = "annotation/0601/maps/0002.png"
FIXATIONS = "annotation/0601/fixation/0002.png"
SMALL = np.ones((90, 160), np.uint8)


@pytest.mark.parametrize(
    ("path", "how", "says"),
    [
        (MAP, pathlib.Path.unlink, "missing (1)"),
        (MAP, lambda p: shutil.rmtree(p.parent), "video 0601"),
        (MAP, copied_as("0006.png"), "video 0601: frames 6"),
        (MAP, folder_copied_as("0604"), "0604 is not annotated"),
        (MAP, numbered_from_0, "numbered from 0?"),
        (MAP, copied_as("frame_2.png"), "not a number"),
        (MAP, copied_as("0002.txt"), "another type"),
        (MAP, copied_as("002.png"), "has the number of"),
        (MAP, copied_as("0002.npy"), "has the number of"),
        (MAP, folder_copied_as("601"), "has the number of"),
        (MAP, cut_off, "0002.png: no picture"),
        (MAP, b"", "0002.png: the file is empty"),
        (MAP, b"hello", "0002.png: no picture"),
        (MAP, NAN, "0002.npy: has a value that is NaN"),
        (MAP, np.zeros((180, 320, 3)), "0002.npy: a map is [H, W]"),
        (MAP, np.zeros((0, 320)), "0002.npy: a map is [H, W]"),
        (MAP, np.zeros((9, 9), complex), "0002.npy: a map has real numbers"),
        (MAP, np.array([[None]]), "0002.npy: no array of NumPy"),
        (MAP, np.zeros((320, 180), np.uint8), "rows and columns are swapped"),
        (MAP, SMALL, "frame 0002: has the size [90, 160]"),
        (MAP, loop_of_itself, "0002.png: cannot be read"),
        (MAP, broken_link, "0002.png: cannot be read"),
        (MAP, garbage_array, "0002.npy: no array of NumPy"),
        (MAP, loop_of_folders, "0009: a folder"),
        (MAP, lambda p: (p.unlink(), p.mkdir()), "0002.png: a folder"),
        (FIXATIONS, pathlib.Path.unlink, "0002.png: the frame has no fix"),
        (DENSITY, pathlib.Path.unlink, "0002.png: the frame has no density"),
        (DENSITY, lambda p: shutil.rmtree(p.parent), "maps: no folder"),
        (DENSITY, cut_off, "0002.png: no picture"),
        (FIXATIONS, cut_off, "0002.png: no picture"),
        (DENSITY, SMALL, "frame 0002: has the size [90, 160]"),
        (DENSITY, copied_as("2.png"), "has the number of"),
    ],
)
def test_files_that_are_not_as_they_should_be(refused, tree, path, how, says):
    spoil(tree / path, how)
    message = refused(*folders(tree))
    assert says in message
    assert "Traceback" not in message


@pytest.mark.parametrize(
    ("how", "lost"),
    [
        (pathlib.Path.unlink, 1),
        (cut_off, 1),
        (NAN, 1),
        (copied_as("0006.png"), 0),
    ],
)
def test_allow_missing_goes_on_and_says_how_many(run, tree, written, how, lost):
    spoil(map_file(tree), how)
    scores = run(*folders(tree), "--allow_missing")
    assert scores["frames"] == 12 - lost
    assert scores["missing"]["frames"] == lost
    assert scores["missing"]["allowed"]
    kinds = ("missing", "extra", "unreadable")
    assert sum(scores["missing"][kind] for kind in kinds) == 1
    if lost:
        assert "1 annotated frames were left out" in run.text
        assert scores["centre_prior"]["sim"]["n_valid"] == 11
    # What is left scores what it scored: the set is the annotated frames.
    left = {(r["video"], r["frame"]): r for r in run.rows()}
    run(*folders(written))
    whole = {(r["video"], r["frame"]): r for r in run.rows()}
    assert all(whole[key] == row for key, row in left.items())


def test_allow_missing_does_not_choose_between_clashing_files(refused, tree):
    spoil(map_file(tree), copied_as("002.png"))
    assert "same number" in refused(*folders(tree), "--allow_missing")


def test_only_some_videos_and_what_can_be_read_of_them(run, tree):
    shutil.rmtree(tree / "maps" / "0602")
    scores = run(*folders(tree), "--videos=601,603")
    assert set(scores["by_video"]) == {"0601", "0603"}
    cut_off(tree / "annotation" / "0603" / "fixation" / "0003.png")
    scores = run(*folders(tree), "--videos=601,603", "--allow_missing")
    assert scores["missing"]["unreadable"] == 1


def test_damaged_mat_files_are_named(refused, tree):
    for folder in (tree / "annotation").iterdir():
        (folder / "fixation" / "maps").mkdir()
        mat = folder / "fixation" / "maps" / "0001.mat"
        mat.write_bytes(b"MATLAB 5.0 MAT-file" + bytes(200))
    message = refused(*folders(tree), "--fixations=mat", "--allow_missing")
    assert "No frame could be read" in message


MAPS, TRUTH = "--predictions={0}/maps", "--annotations={0}/annotation"
POINTS = "--annotations={0}/points.csv"


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ([MAPS], "--annotations"),
        ([MAPS, "--annotations=no"], "no: no folder"),
        ([MAPS, "--annotations={0}"], "Did you mean {0}/annotation?"),
        (["--predictions=no", TRUTH], "no: no folder"),
        ([MAPS, TRUTH, "--videos=9"], "no annotation of a video that is"),
        (["--compare={0}/maps,{0}/maps", TRUTH], "Name them"),
        ([MAPS, TRUTH, "--model=best", "--data_dir=d"], "--model, --data_dir"),
        ([MAPS, TRUTH, "--map_size=9x9"], "Received: --map_size"),
        ([MAPS, TRUTH, "--sauc_map={0}/a.png", "--protocol=aim"], "'aim'"),
        ([MAPS, TRUTH, "--baseline={0}/a.png", "--protocol=paper"], "'paper'"),
        ([MAPS, POINTS, "--fixations=png"], "Received: --fixations"),
        ([MAPS, POINTS, "--map_size=32x18"], "of 640x360. Received: sigma"),
        ([MAPS, POINTS, "--map_size=32"], "Received: '32'"),
        ([MAPS, POINTS, "--sigma=5"], "--density=gaussian"),
        ([MAPS, POINTS, "--sigma=0"], "Received: 0"),
        (["--workers=2"], "--test_videos"),
        (["--videos=601", "--noallow_missing"], "--videos, --allow_missing"),
        ([TRUTH], "--annotations"),
    ],
)
def test_flags_that_do_not_fit(refused, tree, given, says):
    (tree / "points.csv").write_text("video,frame,x,y\n601,1,2,3\n")
    maps.write_png(tree / "a.png", np.ones((180, 320), np.uint8))
    given = [text.format(tree) for text in given]
    assert says.format(tree) in refused(*given, workers=None)


# === Several models ===


@pytest.fixture
def models(tree):
    """Three models: the ground truth, the golden maps, and noise."""
    rng = np.random.default_rng(0)
    for path in sorted((tree / "maps").glob("*/*.png")):
        truth = maps.read(
            tree / "annotation" / path.parent.name / "maps" / path.name
        )
        noise = rng.integers(0, 256, truth.shape, np.uint8)
        for name, map_ in (("truth", truth), ("noise", noise)):
            folder = tree / name / path.parent.name
            folder.mkdir(parents=True, exist_ok=True)
            maps.write_png(folder / path.name, map_)
    return tree


def test_models_are_ranked_on_the_same_frames(run, models):
    map_file(models, 602, 1).unlink()
    scores = run(
        "--compare",
        models / "noise",
        f"--annotations={models / 'annotation'}",
        f"ours={models / 'maps'}",
        models / "truth",
        "--allow_missing",
        f"--plots={run.folder / 'plots'}",
    )
    assert set(scores["models"]) == {"noise", "ours", "truth"}
    assert {m["frames"] for m in scores["models"].values()} == {11}
    assert scores["best"] == "truth"
    for name in ("cc", "kld", "sim"):
        found = scores["comparison"][name]
        assert found["ranking"] == ["truth", "ours", "noise"]
        assert len(found["pairs"]) == 3
    assert scores["overall"] == scores["models"]["truth"]["overall"]
    assert "truth > ours > noise" in run.text
    assert "p_holm" in (run.folder / "plots" / "scores.html").read_text()
    for name in ("noise", "ours", "truth"):
        assert len(run.rows(f"scores.{name}.csv")) == 11


def test_models_are_ranked_by_the_figure_of_the_protocol(run, tmp_path):
    """One is right in a long video, the other in a short one."""
    rng = np.random.default_rng(0)
    for video, length in ((1, 4), (2, 1)):
        for frame in range(length):
            points = rng.integers(8, [28, 56], (5, 2))
            fixated = np.zeros((36, 64), np.uint8)
            fixated[tuple(points.T)] = 255
            truth = density.density_map(fixated, sigma=3, shift=0)
            noise = rng.integers(0, 256, (36, 64), np.uint8)
            for place, map_ in {
                f"truth/{video:04d}/maps": truth,
                f"truth/{video:04d}/fixation": fixated,
                f"long/{video:04d}": truth if video == 1 else 255 - truth,
                f"short/{video:04d}": noise if video == 1 else truth,
            }.items():
                folder = tmp_path / place
                folder.mkdir(parents=True, exist_ok=True)
                maps.write_png(folder / maps.file_name(frame), map_)
    given = (
        f"--annotations={tmp_path / 'truth'}",
        f"--compare={tmp_path / 'long'},{tmp_path / 'short'}",
    )
    for protocol, best in (("dhf1k", "long"), ("aim", "short")):
        scores = run(*given, f"--protocol={protocol}")
        assert scores["best"] == best
        assert scores["comparison"]["auc_judd"]["ranking"][0] == best
        assert run.text.splitlines()[1].startswith(best)
    assert tuple(scores["overall"]) == tuple(metrics.PROTOCOLS["aim"])
    assert scores["other_fixations"] == "none"
    assert run.text.startswith("mean of videos")


def test_what_stands_before_an_equals_sign_is_a_name(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a=b").mkdir()
    for text, name, folder in (
        ("ours=out/lr=1e-3", "ours", "out/lr=1e-3"),
        ("c=b", "c", "b"),
        ("a=b", "a=b", "a=b"),
        ("out/a=b", "a=b", "out/a=b"),
    ):
        assert folders_lib.named([text]) == {name: folder}


# === Stopping ===


def test_a_run_that_is_stopped_leaves_nothing(run, written, monkeypatch):
    def stops(*arguments, **options):
        raise KeyboardInterrupt

    monkeypatch.setattr(folders_lib.summary, "report", stops)
    with pytest.raises(SystemExit) as stopped:
        run(*folders(written))
    assert stopped.value.code == 130
    assert not list(run.folder.iterdir())


@pytest.mark.parametrize("workers", [1, 2])
@pytest.mark.parametrize(
    "spoiled", ["maps/0602/0002.png", "annotation/0602/fixation/0002.png"]
)
def test_workers_name_what_they_cannot_read(refused, tree, spoiled, workers):
    cut_off(tree / spoiled)
    assert spoiled in refused(*folders(tree), workers=workers)


def killed(_):
    os.kill(os.getpid(), signal.SIGKILL)


def test_a_worker_that_is_killed_ends_the_run(refused, tree, monkeypatch):
    monkeypatch.setattr(folders_lib, "_score", killed)
    message = refused(*folders(tree), workers=2)
    assert "killed at one of the videos 0601, 0602" in message
    assert "--workers=2" in message


def test_the_program_alone_needs_no_tensorflow_to_complain(tmp_path):
    """From the shell: an error, status 1, and nothing written."""
    code = (
        "import sys, runpy; sys.argv = ['evaluate', '--predictions=no', "
        "'--annotations=no', '--output=scores.json']\n"
        "try:\n runpy.run_module('lsts_tf.evaluate', run_name='__main__')\n"
        "except SystemExit as error:\n"
        " print(error.code, 'tensorflow' in sys.modules)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=tmp_path,
        env={
            **os.environ,
            "PYTHONPATH": str(pathlib.Path(__file__).parents[1]),
        },
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.strip() == "1 False"
    assert "no: no folder" in done.stderr
    assert not list(tmp_path.iterdir())
