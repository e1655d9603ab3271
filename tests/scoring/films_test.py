"""Films scored by `evaluate --protocol=msu`, without unpacking them."""

import json
import os
import signal

import av
import cv2
import numpy as np
import pandas as pd
import pytest

from lsts_tf.media import images
from lsts_tf.scoring import films, folders, msu
from tests import evaluate_test, msu_folders

NAMES = ("clip_9", "clip_10", "upright")


def clips(names=NAMES):
    sizes = {"upright": msu_folders.UPRIGHT}
    return {
        name: msu_folders.clip(k, 4 + k, sizes.get(name, msu_folders.SIZE))
        for k, name in enumerate(names)
    }


@pytest.fixture(scope="module")
def truth(tmp_path_factory):
    """The three clips of a test split, and one to train on."""
    return msu_folders.avimos(
        tmp_path_factory.mktemp("avimos"),
        clips((*NAMES, "other")),
        {
            "train": ["other.mp4"],
            "public_test": ["clip_10.mp4", "clip_9.mp4"],
            "private_test": ["upright.mp4"],
        },
    )


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """Films, films of 8 bits at half the size, and folders of pictures."""
    root = tmp_path_factory.mktemp("models")
    for name, (_, maps, _) in clips().items():
        noise = [np.roll(map_, (3, 4), (0, 1)) for map_ in maps]
        msu_folders.film(root / "ten" / f"{name}.mp4", noise, "gray10")
        small = [
            cv2.resize(m, None, fx=0.5, fy=0.5).astype(np.float32) / 4
            for m in maps
        ]
        msu_folders.film(
            root / "eight" / f"{name}.mp4",
            [
                np.rint(m[..., None].repeat(3, 2)).astype(np.uint8)
                for m in small
            ],
        )
        (root / "pictures" / name).mkdir(parents=True)
        for frame, map_ in enumerate(maps):
            colours = np.stack([map_, map_[::-1], map_[:, ::-1]], axis=2)
            path = root / "pictures" / name / images.file_name(frame)
            images.write_png(path, (colours * 64).astype(np.uint16))
    return root


@pytest.fixture
def program(tmp_path, capsys):
    return evaluate_test.Program(tmp_path, capsys, "--protocol=msu")


def decoded(path, pixels):
    """FFmpeg's own pictures of a film's frames."""
    with av.open(str(path)) as container:
        return [f.to_ndarray(format=pixels) for f in container.decode(video=0)]


READERS = {
    "ten": lambda root, name: decoded(root / f"{name}.mp4", "gray16le"),
    "eight": lambda root, name: decoded(root / f"{name}.mp4", "rgb24"),
    "pictures": lambda root, name: [
        cv2.imread(str(path), -1) for path in sorted((root / name).iterdir())
    ],
}


def test_a_folder_equals_its_frames(truth, models, program):
    """What films hold after their own decoding, by the definitions."""
    scores = program(
        "--compare",
        models / "ten",
        f"--annotations={truth}",
        "--videos=2-4",
        "--",
        models / "eight",
        models / "pictures",
        workers=3,
    )
    assert list(scores["models"]) == list(READERS)
    assert set(scores["comparison"]) == set(msu.MEASURES)
    number = {"clip_10": "0002", "clip_9": "0003", "upright": "0004"}
    for model, read in READERS.items():
        rows = program.table(f"scores.{model}.csv")
        assert len(rows) == 4 + 5 + 6
        means = scores["models"][model]["by_video"]
        assert set(means) == set(NAMES)
        for name, (_, _, points) in clips().items():
            truths = decoded(
                truth / "SaliencyTest" / "Test" / f"{name}.mp4", "gray16le"
            )
            want = pd.DataFrame(
                msu.score(pred, true, np.array(seen))
                for pred, true, seen in zip(
                    read(models / model, name), truths, points, strict=True
                )
            )
            found = rows[rows["video"] == number[name]][[*msu.MEASURES]]
            # FFmpeg rounds 10 bits to 16 on its way to a picture.
            np.testing.assert_allclose(found, want, rtol=1e-5, atol=1e-5)
            assert means[name] == pytest.approx({**want.mean()}, abs=5e-5)
        # A model's score is the mean of the videos.
        overall = scores["models"][model]["overall"]["cc"]
        assert overall["mean_of_videos"] == pytest.approx(
            np.mean([means[name]["cc"] for name in NAMES])
        )
    assert scores["statistic"] == "mean_of_videos"
    assert program.text.startswith("mean of videos")
    assert scores["best"] in READERS and "centre_prior" in scores


def test_a_split_out_of_archives(truth, models, program, tmp_path):
    """And by one process as by two."""
    packed = tmp_path / "packed"
    msu_folders.avimos(
        packed,
        clips((*NAMES, "other")),
        json.loads((truth / "TrainTestSplit.json").read_text()),
    )
    msu_folders.pack(packed)
    assert not [p for p in packed.iterdir() if p.is_dir()]
    arguments = [f"--predictions={models / 'ten'}", "--videos=public_test"]
    want = program(*arguments, f"--annotations={truth}", workers=2)
    assert set(want["by_video"]) == {"clip_9", "clip_10"}
    got = program(*arguments, f"--annotations={packed}")
    assert got["overall"] == want["overall"]


# === Refusals ===


def evaluated(truth, *models, **options):
    named = {f"model {k}": folder for k, folder in enumerate(models)}
    return films.evaluate(named, truth, **options)


def test_another_number_of_frames(truth, models, tmp_path):
    for name, (_, maps, _) in clips().items():
        left = maps[:-1] if name == "clip_9" else maps
        msu_folders.film(tmp_path / "short" / f"{name}.mp4", left, "gray10")
    with pytest.raises(folders.FilesError) as caught:
        evaluated(truth, models / "ten", tmp_path / "short", videos="2-4")
    assert (
        "clip_9: the numbers of frames differ: saliency 4, fixations 4, "
        in (message := str(caught.value))
    )
    assert "model 0 4, model 1 3" in message
    assert "clip_10" not in message
    result, _ = evaluated(
        truth, tmp_path / "short", videos="2-4", allow_missing=True
    )
    assert set(result["by_video"]) == {"clip_10", "upright"}
    assert result["missing"] == {"allowed": True, "videos": 1}


@pytest.mark.parametrize(
    ("model", "videos", "says"),
    [
        ("ten", "", "other: no film of model 0"),
        ("ten", "final_test", r"public_test, private_test\. Rec"),
        ("nowhere", "public_test", "no such folder"),
        ("twice", "public_test", "clip_9 has the same name"),
    ],
)
def test_missing_and_superfluous(truth, models, model, videos, says):
    (models / "twice" / "clip_9").mkdir(parents=True, exist_ok=True)
    (models / "twice" / "clip_9.mp4").touch()
    with pytest.raises(ValueError, match=says):
        evaluated(truth, models / model, videos=videos)


def test_a_folder_of_no_dataset(models):
    with pytest.raises(ValueError, match="holds no clip"):
        evaluated(models, models / "ten")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[[[1, 2]], [[99, 1]], [[1, 1]]]", r"3001, frame 1 .*inside a map"),
        ("[[[1, 2]], [[1.5, 1]], [[1, 1]]]", "frame 1: float64"),
        ("[[[1, 2]], [[1, 2, 3]], [[1, 1]]]", r"frame 1: int64 \[1, 3\]"),
        ("[[[1, 2]]", "delimiter"),
        ("[[[1, 2]], [[1, 1]]]", "saliency 3, fixations 2"),
    ],
)
def test_fixations_that_are_none(tmp_path, text, message):
    root = msu_folders.crowdsal(tmp_path, {3001: msu_folders.clip(1, 3)})
    (root / "Test" / "Fixations" / "3001.json").write_text(text)
    with pytest.raises(folders.FilesError, match=message):
        evaluated(root, root / "Test" / "Saliency")


@pytest.mark.parametrize("workers", [1, 3])
def test_a_damaged_film(tmp_path, workers):
    made = {n: msu_folders.clip(n, 30) for n in (3001, 3002, 3003)}
    root = msu_folders.crowdsal(tmp_path, made)
    path = root / "Test" / "Saliency" / "3001.mp4"
    (tmp_path / "cut").mkdir()
    data = path.read_bytes()
    half = len(data) // 2
    (tmp_path / "cut" / "3001.mp4").write_bytes(data[:half] + bytes(half))
    for number in (3002, 3003):
        name = f"{number}.mp4"
        (tmp_path / "cut" / name).symlink_to(path.with_name(name))
    with pytest.raises(folders.FilesError, match=r"3001.*cut/3001\.mp4") as e:
        evaluated(root, tmp_path / "cut", workers=workers)
    assert "3002" not in str(e.value)


def killed(job):
    """Takes the place of `films._score`."""
    if job.name == "upright":
        os.kill(os.getpid(), signal.SIGKILL)
    return [], []


def test_a_process_that_is_killed(truth, models, monkeypatch):
    monkeypatch.setattr(films, "_score", killed)
    with pytest.raises(RuntimeError, match=r"videos .*upright.*--workers=2"):
        evaluated(truth, models / "ten", videos="2-4", workers=2)
