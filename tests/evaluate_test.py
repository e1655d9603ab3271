"""Scores of folders of maps: through the program, and piece by piece."""

import collections
import json
import os
import pathlib
import shutil
import signal
import subprocess
import sys
import types

import cv2
import numpy as np
import pandas as pd
import pytest

from lsts_tf import evaluate
from lsts_tf.media import images
from lsts_tf.media import video as video_lib
from lsts_tf.scoring import (
    density,
    folders,
    metrics,
    page,
    predictions,
    scorer,
    summary,
)
from tests import flag_scope, msu_folders

GOLDEN = pathlib.Path(__file__).parent / "metrics_golden"


@pytest.fixture(scope="module")
def golden():
    """Arrays of the golden video set, and its values."""
    with np.load(GOLDEN / "video.npz") as data:
        arrays = dict(data)
    values = json.loads((GOLDEN / "golden.json").read_text())["video"]
    arrays["points"] = [
        arrays["fixations"][arrays["fixation_frame"] == i]
        for i in range(len(arrays["frame"]))
    ]
    places = arrays["fixation_frame"], *arrays["fixations"].T
    arrays["fixated"] = np.zeros(arrays["gt"].shape, np.uint8)
    arrays["fixated"][places] = 255
    return arrays, values


def write(path, image):
    path.parent.mkdir(parents=True, exist_ok=True)
    images.write_png(path, image)


def write_set(root, arrays):
    """The set as DHF1K's tree: root/maps, root/annotation."""
    names = ("frame", "pred", "gt", "fixated")
    for name, pred, truth, fixated in zip(
        *(arrays[key] for key in names), strict=True
    ):
        video, frame = str(name).split("/")
        folder, file = root / "annotation" / video, f"{frame}.png"
        write(root / "maps" / video / file, pred)
        write(folder / "maps" / file, truth)
        write(folder / "fixation" / file, fixated)
        # As DHF1K has it: a stray picture beside the folders.
        write(folder / file, fixated)
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

    def __init__(self, folder, capsys, *given):
        self.folder = folder
        self._given = given
        self._capsys = capsys
        self.text = ""

    def __call__(self, *arguments, workers=1):
        """Returns scores.json."""
        path = self.folder / "scores.json"
        given = [*self._given, f"--output={path}"]
        given += [f"--workers={workers}"] if workers else []
        flag_scope.run(evaluate, *given, *arguments)
        self.text = self._capsys.readouterr().out
        return json.loads(path.read_text())

    def table(self, name="scores.csv"):
        """The table of frames."""
        return pd.read_csv(self.folder / name, dtype={"video": str})


@pytest.fixture
def run(tmp_path, capsys):
    (tmp_path / "out").mkdir()
    return Program(tmp_path / "out", capsys)


@pytest.fixture
def refused(run, caplog):
    """What the program says when it stops; no result may be written."""

    def call(*arguments, workers=1):
        caplog.clear()
        with pytest.raises(SystemExit) as stopped:
            run(*arguments, workers=workers)
        assert stopped.value.code == 1
        assert not list(run.folder.iterdir())
        return caplog.text

    return call


def scored(arrays, others=None, **options):
    """{metric: scores of the golden frames}, computed one by one."""
    given = (arrays[name] for name in ("pred", "gt", "points"))
    others = others or [None] * len(arrays["pred"])
    return pd.DataFrame(
        metrics.score(*frame, others=of_others, **options)
        for *frame, of_others in zip(*given, others, strict=True)
    )


def assert_scores(run, want, atol=1e-12):
    """The table of frames has these columns."""
    found = run.table()[[*want]]
    np.testing.assert_allclose(found, want, rtol=0, atol=atol)


def where(root):
    return (
        f"--predictions={root / 'maps'}",
        f"--annotations={root / 'annotation'}",
    )


def map_file(tree, video=601, frame=2):
    return tree / "maps" / f"{video:04d}" / f"{frame:04d}.png"


# === The golden set through the program ===


def test_golden_video_set(run, written, golden, monkeypatch):
    """Equals what the official script returns on the same files."""
    arrays, values = golden
    drawn = arrays["other_frames"]
    monkeypatch.setattr(metrics, "other_frames", lambda i, *_, **__: drawn[i])
    scores = run(*where(written), "--protocol=dhf1k")
    assert scores["protocol"] == "dhf1k"
    assert scores["frames"] == 12
    overall = scores["overall"]
    assert tuple(overall) == metrics.METRICS
    want = values["mean_over_frames"]
    means = {name: overall[name]["mean"] for name in want}
    assert means == pytest.approx(want, abs=1e-9)
    for name, column in values["per_frame"].items():
        assert overall[name]["n_valid"] == 12 - column.count(None)
    official = values["official"]
    for name in ("nss", "sim", "cc"):
        assert means[name] == pytest.approx(official[name], abs=1e-9)
    for draws in ("auc_judd", "sauc_listed_other_frames"):
        near = 4.5 * official[draws]["sd"] / official[draws]["runs"] ** 0.5
        name = draws.removesuffix("_listed_other_frames")
        assert means[name] == pytest.approx(official[draws]["mean"], abs=near)
    for video, table in values["mean_per_video"].items():
        found = {name: scores["by_video"][video][name] for name in table}
        assert found == pytest.approx(table, abs=1e-9)
    rows = run.table()
    frames = rows["video"] + rows["frame"].map("/{:04d}".format)
    assert [*frames] == [*arrays["frame"]]
    assert_scores(run, pd.DataFrame(values["per_frame"], dtype=float), 1e-9)
    assert f"{want['nss']:.4f}" in run.text


def test_the_official_draw_of_other_frames(golden):
    arrays, values = golden
    points, means = arrays["points"], []
    for seed in range(40):
        drawn = (metrics.other_frames(i, 12, seed=seed) for i in range(12))
        others = [np.concatenate([points[k] for k in each]) for each in drawn]
        scores = scored(arrays, others, metrics=["sauc"])
        means.append(np.nanmean(scores["sauc"]))
    official = values["official"]["sauc_random_other_frames"]
    # Two sample means.
    sd = official["sd"] * (1 / len(means) + 1 / official["runs"]) ** 0.5
    assert np.mean(means) == pytest.approx(official["mean"], abs=4.5 * sd)


def test_first_frames_stand_apart(run, written):
    scores = run(*where(written), "--first_frames_count=2")
    first = scores["first_frames"]
    early = run.table().query("frame <= 2")["sim"].dropna()
    assert first["number"] == 2
    assert first["first"]["sim"]["mean"] == pytest.approx(early.mean())
    late = scores["overall"]["sim"]["n_valid"] - len(early)
    counts = {"first": len(early), "rest": late, "rest_centre_prior": late}
    for part, count in counts.items():
        assert first[part]["sim"]["n_valid"] == count
    prior = first["rest_centre_prior"]
    assert prior["cc"]["mean"] != scores["centre_prior"]["cc"]["mean"]
    whole = run(*where(written), "--first_frames_count=0")
    prior = whole["first_frames"]["rest_centre_prior"]
    assert prior == whole["centre_prior"]


def test_the_draw_follows_from_the_seed_with_any_workers(run, written):
    one, again, other = (
        run(*where(written), f"--seed={seed}", workers=workers)
        for seed, workers in ((1, 1), (1, 2), (2, 1))
    )
    assert one == again
    assert one["overall"]["sauc"] != other["overall"]["sauc"]
    assert one["overall"]["nss"]["mean"] == other["overall"]["nss"]["mean"]
    assert "ten random frames" in one["other_fixations"]


def test_tables_pictures_and_page(run, written):
    plots = run.folder / "plots"
    kinds = "--per_frame=csv", "--per_frame=parquet"
    scores = run(*where(written), f"--plots={plots}", *kinds)
    parquet = pd.read_parquet(run.folder / "scores.parquet")
    assert [*parquet["cc"].dropna()] == [*run.table()["cc"].dropna()]
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


def test_a_run_scores_what_the_folder_of_its_maps_scores(run, written, golden):
    arrays = golden[0]
    videos = pd.Series(arrays["frame"]).str[:4].astype(int)
    at = {video: videos.index[videos == video] for video in videos}
    annotation = types.SimpleNamespace(
        length=lambda video: len(at[video]),
        maps=lambda video, frames: arrays["gt"][at[video]][frames],
        fixations=lambda video, frames: arrays["fixated"][at[video]][frames],
    )
    settings = scorer.Settings(seed=4)
    tables = scorer.score_videos(
        [*at], annotation, lambda v: arrays["pred"][at[v]], settings
    )
    of_folder = run(*where(written), "--seed=4")
    ours, centre = map(pd.DataFrame, tables)
    assert_scores(run, ours.drop(columns=["video", "frame"]), 0)
    for table, key in ((ours, "overall"), (centre, "centre_prior")):
        found = json.dumps(summary.summary(table, seed=4))
        assert json.loads(found) == of_folder[key]


# === Other kinds of maps ===


def test_arrays_and_16_bits_score_what_bytes_score(run, written, tree):
    want = run(*where(written))
    for i, path in enumerate(sorted((tree / "maps").glob("*/*.png"))):
        image = images.read(path)
        if i % 3 == 0:
            path.unlink()
            np.save(path.with_suffix(".npy"), image.astype(np.float32) / 255)
        elif i % 3 == 1:
            cv2.imwrite(str(path), image.astype(np.uint16) * 257)
        else:
            colours = np.dstack([255 - image, 255 - image, image])
            cv2.imwrite(str(path), colours)
    found = run(*where(tree))
    for name, of in want["overall"].items():
        # A float32 of a level is not quite a level: a tie at a threshold.
        near = 2e-3 if name in ("sauc", "auc_borji") else 1e-6
        got = found["overall"][name]
        assert got["mean"] == pytest.approx(of["mean"], abs=near)
        assert got["n_valid"] == of["n_valid"]


def test_a_video_of_maps(tmp_path, golden):
    path = tmp_path / "601.mp4"
    pred = golden[0]["pred"][:5, ..., None].repeat(3, -1)
    msu_folders.film(path, pred)
    decoded = [image[..., 0] for image in video_lib.frames(path)]
    clip = predictions.find(tmp_path, collections.defaultdict(list))[601]
    assert list(clip.frames) == [0, 1, 2, 3, 4]
    *found, beyond = clip.read([1, 3, 4, 5])
    np.testing.assert_array_equal(found, [decoded[i] for i in (1, 3, 4)])
    assert "frame 6: the video is shorter" in str(beyond)


# === Other kinds of ground truth ===


def test_points_and_observers(run, tmp_path):
    """Three observers of four frames of two videos, who agree."""
    rng = np.random.default_rng(0)
    looks = []
    for video in (1, 2):
        for frame in range(4):
            noise = rng.integers(0, 256, (90, 160), np.uint8)
            write(map_file(tmp_path, video, frame + 1), noise)
        for frame in (1, 2, 4):
            centre = rng.uniform([20, 20], [140, 70])
            looks += [
                (video, frame, *np.round(centre + rng.normal(0, 3, 2), 2), who)
                for who in 5 * "abc"
            ]
    columns = ["video", "frame", "x", "y", "observer"]
    table = pd.DataFrame(looks, columns=columns)
    table.to_csv(tmp_path / "points.csv", index=False)
    scores = run(
        f"--annotations={tmp_path / 'points.csv'}",
        f"--predictions={tmp_path / 'maps'}",
        *("--map_size=160x90", "--density=gaussian", "--sigma=6"),
    )
    # Frame 3 is between others: nobody looked.
    ours, others = scores["overall"], scores["inter_observer"]
    valid = [ours["nss"], ours["sim"], others["cc"]]
    assert [of["n_valid"] for of in valid] == [6, 8, 6]
    about = scores["ground_truth"]
    assert (about["sigma"], about["density"]) == (6, "gaussian")
    assert others["cc"]["mean"] > 0.5 > ours["cc"]["mean"]
    assert others["auc_judd"]["mean"] > 0.9
    assert "other observers" in run.text

    x, y = table[["x", "y"]][:15].round().to_numpy(int).T
    fixated = np.zeros((90, 160), bool)
    fixated[y, x] = True
    want = metrics.score(
        images.read(map_file(tmp_path, 1, 1)),
        density.density_map(fixated, sigma=6, shift=0),
    )
    assert run.table()["cc"][0] == pytest.approx(want["cc"], abs=1e-12)


# === Protocols, negatives ===


def test_paper_takes_the_neighbouring_frame(run, written, golden):
    arrays = golden[0]
    scores = run(*where(written), "--protocol=paper")
    assert tuple(scores["overall"]) == tuple(metrics.PROTOCOLS["paper"])
    assert "not comparable with other papers" in scores["note"]
    assert "NOT COMPARABLE" in run.text
    # The last frame of a video has the one before it.
    neighbours = [1, 2, 3, 4, 3, 6, 7, 8, 7, 10, 11, 10]
    others = [arrays["points"][i] for i in neighbours]
    assert_scores(run, scored(arrays, others, protocol="paper"))


def test_aim_averages_over_videos(run, written):
    scores = run(*where(written), "--protocol=aim")
    assert tuple(scores["overall"]) == tuple(metrics.PROTOCOLS["aim"])
    assert scores["other_fixations"] == "none"
    assert run.text.startswith("mean of videos")


def test_a_fixed_map_of_negatives_and_a_baseline(run, written, golden):
    """The baseline is smaller, and negative: logarithms."""
    arrays = golden[0]
    negatives = np.zeros((180, 320), np.uint8)
    negatives[::7, ::5] = 1
    base = cv2.resize(arrays["gt"].mean(axis=0), (80, 45))
    base = np.log(base + 1) - 10
    assert base.max() < 0
    places = run.folder / "negatives.png", run.folder / "base.npy"
    files = dict(zip(("sauc_map", "baseline"), map(str, places), strict=True))
    write(places[0], negatives)
    np.save(places[1], base)
    scores = run(*where(written), *(f"--{k}={v}" for k, v in files.items()))
    assert scores["other_fixations"] == scores["baseline"] == "a fixed map"
    assert scores["fixed_maps"] == files
    resized = metrics.resize(base, (180, 320))
    want = scored(
        arrays,
        [np.argwhere(negatives)] * 12,
        baseline=metrics.distribution(resized.clip(base.min(), base.max())),
        metrics=("sauc", "infogain"),
    )
    assert want["infogain"].count() > 6
    assert_scores(run, want)


# === Files that are not as they should be ===


def cut_off(path):
    path.write_bytes(path.read_bytes()[:-40])


def link_to(name):
    return lambda path: (path.unlink(), path.symlink_to(name))


def numbered_from_0(path):
    for file in sorted(path.parent.iterdir()):
        file.rename(file.with_name(f"{int(file.stem) - 1:04d}.png"))


def copied_as(name):
    return lambda path: shutil.copy(path, path.with_name(name))


def folder_copied_as(name):
    return lambda p: shutil.copytree(p.parent, p.parent.with_name(name))


def damaged_mat(path):
    for folder in path.parents[2].iterdir():
        (folder / "fixation" / "maps").mkdir()
        mat = folder / "fixation" / "maps" / "0001.mat"
        mat.write_bytes(b"MATLAB 5.0 MAT-file" + bytes(200))


def spoil(path, how):
    """By a function, or by other contents: bytes, an array, a picture."""
    if callable(how):
        how(path)
    elif isinstance(how, bytes):
        path.write_bytes(how)
    elif how.dtype == np.uint8:
        images.write_png(path, how)
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
    "spoiled",
    [
        (MAP, pathlib.Path.unlink, "missing (1)"),
        (MAP, lambda p: shutil.rmtree(p.parent), "video 0601"),
        (MAP, copied_as("0006.png"), "video 0601: frames 6"),
        (MAP, folder_copied_as("0604"), "0604 is not annotated"),
        (MAP, numbered_from_0, "numbered from 0?"),
        (MAP, copied_as("frame_2.png"), "not a number"),
        (MAP, copied_as("0002.txt"), "another type"),
        (MAP, copied_as("002.png"), "has the same number as"),
        (MAP, copied_as("0002.npy"), "has the same number as"),
        (MAP, folder_copied_as("601"), "has the same number as"),
        (MAP, cut_off, "0002.png: not a picture"),
        (MAP, b"", "0002.png: the file is empty"),
        (MAP, b"hello", "0002.png: not a picture"),
        (MAP, NAN, "0002.npy: has a value that is NaN"),
        (MAP, np.zeros((180, 320, 3)), "0002.npy: a map is [H, W]"),
        (MAP, np.zeros((0, 320)), "0002.npy: a map is [H, W]"),
        (MAP, np.zeros((9, 9), complex), "0002.npy: a map has real numbers"),
        (MAP, np.array([[None]]), "0002.npy: not a NumPy array"),
        (MAP, np.zeros((320, 180), np.uint8), "rows and columns are swapped"),
        (MAP, SMALL, "frame 0002: has the size [90, 160]"),
        (MAP, link_to("0002.png"), "0002.png: cannot be read"),
        (MAP, link_to("nowhere.png"), "0002.png: cannot be read"),
        (MAP, lambda p: p.rename(p.with_suffix(".npy")), "0002.npy: not a N"),
        (MAP, lambda p: (p.parent / "9").symlink_to(p.parents[1]), "9: a fol"),
        (MAP, lambda p: (p.unlink(), p.mkdir()), "0002.png: a folder"),
        (FIXATIONS, pathlib.Path.unlink, "0002.png: the frame has no fix"),
        (DENSITY, pathlib.Path.unlink, "0002.png: the frame has no density"),
        (DENSITY, lambda p: shutil.rmtree(p.parent), "maps: no folder"),
        (DENSITY, cut_off, "0002.png: not a picture"),
        (FIXATIONS, cut_off, "0002.png: not a picture"),
        (DENSITY, SMALL, "frame 0002: has the size [90, 160]"),
        (DENSITY, copied_as("2.png"), "has the same number as"),
        # There is no choosing between files that clash.
        (MAP, copied_as("002.png"), "same number", "--allow_missing"),
        (
            *(FIXATIONS, damaged_mat, "No frame could be read"),
            *("--fixations=mat", "--allow_missing"),
        ),
        *((path, cut_off, path, "--workers=2") for path in (MAP, FIXATIONS)),
    ],
)
def test_files_that_are_not_as_they_should_be(refused, tree, spoiled):
    path, how, says, *flags = spoiled
    spoil(tree / path, how)
    message = refused(*where(tree), *flags)
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
    scores = run(*where(tree), "--allow_missing")
    missing = scores["missing"]
    assert scores["frames"] == 12 - lost
    assert missing["frames"] == lost
    assert missing["allowed"]
    assert missing["missing"] + missing["extra"] + missing["unreadable"] == 1
    if lost:
        assert "1 annotated frames were left out" in run.text
        assert scores["centre_prior"]["sim"]["n_valid"] == 11
    # What is left scores what it scored: the set is the annotated frames.
    left = run.table().set_index(["video", "frame"])
    run(*where(written))
    whole = run.table().set_index(["video", "frame"])
    assert left.equals(whole.loc[left.index])


def test_only_some_videos_and_what_can_be_read_of_them(run, tree):
    shutil.rmtree(tree / "maps" / "0602")
    scores = run(*where(tree), "--videos=601,603")
    assert set(scores["by_video"]) == {"0601", "0603"}
    cut_off(tree / "annotation" / "0603" / "fixation" / "0003.png")
    scores = run(*where(tree), "--videos=601,603", "--allow_missing")
    assert scores["missing"]["unreadable"] == 1


MAPS, TRUTH = "--predictions={0}/maps", "--annotations={0}/annotation"
POINTS, MSU = "--annotations={0}/points.csv", "--protocol=msu"


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ([MAPS], "--annotations"),
        ([MAPS, "--annotations=no"], "no: no folder"),
        ([MAPS, "--annotations={0}"], "Did you mean {0}/annotation?"),
        (["--predictions=no", TRUTH], "no: no folder"),
        ([MAPS, TRUTH, "--videos=9"], "no annotation of the videos asked"),
        (["--compare={0}/maps,{0}/maps", TRUTH], "Name them"),
        ([MAPS, TRUTH, "--model=best", "--data_dir=d"], "--model, --data_dir"),
        ([MAPS, TRUTH, "--map_size=9x9"], "Received: --map_size"),
        ([MAPS, TRUTH, "--sauc_map={0}/a.png", "--protocol=aim"], "'aim'"),
        ([MAPS, TRUTH, "--baseline={0}/a.png", "--protocol=paper"], "'paper'"),
        ([MAPS, POINTS, "--fixations=png"], "Received: --fixations"),
        ([MAPS, TRUTH, "--rate=30"], "Received: --rate with"),
        ([MAPS, POINTS, "--rate=30"], "--rate, which would do nothing"),
        ([MAPS, POINTS, "--screen=9"], "--screen is "),
        ([MAPS, POINTS, "--map_size=32x18"], "of 640x360. Received: sigma"),
        ([MAPS, POINTS, "--map_size=32"], "Received: '32'"),
        ([MAPS, POINTS, "--sigma=5"], "--density=gaussian"),
        ([MAPS, POINTS, "--sigma=0"], "Received: 0"),
        (["--workers=2"], "--test_videos"),
        (["--videos=601", "--noallow_missing"], "--videos, --allow_missing"),
        ([TRUTH], "--annotations"),
        ([MAPS, TRUTH, MSU, "--sigma=5"], "--sigma"),
        ([MAPS, TRUTH, MSU, "--sauc_map={0}/a.png"], "`others`"),
        # A run, which is predicted first.
        ([MSU], "--outputs=msu"),
    ],
)
def test_flags_that_do_not_fit(refused, tree, given, says):
    (tree / "points.csv").write_text("video,frame,x,y\n601,1,2,3\n")
    images.write_png(tree / "a.png", np.ones((180, 320), np.uint8))
    given = [text.format(tree) for text in given]
    assert says.format(tree) in refused(*given, workers=None)


# === Several models ===


def test_models_are_ranked_on_the_same_frames(run, tree):
    """The ground truth, the golden maps, and noise."""
    rng = np.random.default_rng(0)
    for path in sorted((tree / "annotation").glob("*/maps/*.png")):
        truth = images.read(path)
        noise = rng.integers(0, 256, truth.shape, np.uint8)
        for name, map_ in (("truth", truth), ("noise", noise)):
            write(tree / name / path.parts[-3] / path.name, map_)
    map_file(tree, 602, 1).unlink()
    scores = run(
        *("--compare", tree / "noise", f"ours={tree / 'maps'}", tree / "truth"),
        f"--annotations={tree / 'annotation'}",
        *("--allow_missing", f"--plots={run.folder / 'plots'}"),
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
        assert len(run.table(f"scores.{name}.csv")) == 11


def test_what_stands_before_an_equals_sign_is_a_name(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a=b").mkdir()
    for text, name, folder in (
        ("ours=out/lr=1e-3", "ours", "out/lr=1e-3"),
        ("c=b", "c", "b"),
        ("a=b", "a=b", "a=b"),
        ("out/a=b", "a=b", "out/a=b"),
    ):
        assert folders.named([text]) == {name: folder}


# === Stopping ===


def test_a_run_that_is_stopped_leaves_nothing(run, written, monkeypatch):
    def stops(*arguments, **options):
        raise KeyboardInterrupt

    monkeypatch.setattr(folders.summary, "report", stops)
    with pytest.raises(SystemExit) as stopped:
        run(*where(written))
    assert stopped.value.code == 130
    assert not list(run.folder.iterdir())


def killed(_):
    os.kill(os.getpid(), signal.SIGKILL)


def test_a_worker_that_is_killed_ends_the_run(refused, tree, monkeypatch):
    monkeypatch.setattr(folders, "_score", killed)
    message = refused(*where(tree), workers=2)
    assert "killed at one of the videos 0601, 0602" in message
    assert "--workers=2" in message


def test_the_program_alone_needs_no_tensorflow_to_complain(tmp_path):
    """From the shell: an error, status 1, and nothing written."""
    command = [sys.executable, "-X", "importtime", "-m", "lsts_tf.evaluate"]
    flags = "--predictions=no", "--annotations=no", f"--output={tmp_path}/s"
    done = subprocess.run(
        [*command, *flags],
        cwd=pathlib.Path(__file__).parents[1],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1
    assert "no: no folder" in done.stderr
    assert "| pandas" in done.stderr and "| tensorflow" not in done.stderr
    assert not list(tmp_path.iterdir())
