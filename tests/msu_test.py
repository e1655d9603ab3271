"""The whole way: films of gaze, a dataset, a model, a submission, scores."""

import dataclasses
import json

import pytest

from crowdsal import crowdsal_dataset_builder
from lsts_tf import evaluate, experiment, predict
from lsts_tf.features import dataset
from lsts_tf.training import loop
from tests import clip_folders, flag_scope, msu_folders, tiny_training

FRAMES = 24


@pytest.fixture
def tiny(monkeypatch):
    """As `tiny_training.install`, but for the dataset."""

    def patch(target, name, value):
        if name != "Dataset":
            monkeypatch.setattr(target, name, value)

    tiny_training.install(patch)


@pytest.fixture(scope="module")
def root(sample_data, tmp_path_factory):
    """CrowdSAL/, and tfds/ with it and DHF1K's sample."""
    folder = tmp_path_factory.mktemp("msu")
    made = {n: msu_folders.clip(n, FRAMES) for n in (*range(1, 5), 3001, 3002)}
    films = msu_folders.crowdsal(folder / "CrowdSAL", made)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("film_dataset.PROCESSES", 1)
        clip_folders.build(
            crowdsal_dataset_builder.Builder, films, folder / "tfds"
        )
    (folder / "tfds" / "dhf1k").symlink_to(sample_data / "tfds" / "dhf1k")
    return folder


def settings_of(root, folder, **changes):
    common = {
        "data_dir": str(root / "tfds"),
        "train_videos": "crowdsal:1-3",
        "val_videos": "crowdsal:4",
        "test_videos": "crowdsal:3001-3002",
        "learning_rate": 3e-3,
        "batch_size": 8,
        "epochs": 12,
        "image_windows": 0,
        "deterministic": False,
    }
    return tiny_training.settings(folder, **(common | changes))


def test_from_films_to_scores(tiny, root, tmp_path):
    settings = settings_of(root, tmp_path, datasets=("crowdsal",))
    assert loop.run(settings) == 0
    # The run on its own dataset, with DHF1K's measures.
    of_run = evaluate.evaluate(settings)[0]
    assert of_run["frames"] == 2 * FRAMES
    # Films that it has learnt by heart: so few do not teach it others.
    flag_scope.run(
        predict,
        f"--flagfile={tmp_path / 'run' / experiment.FLAGFILE}",
        f"--video={root / 'CrowdSAL' / 'Train' / 'Videos'}",
        "--outputs=msu",
        # The tiny front end cannot begin with a still.
        "--first_frames=mirror",
        f"--output={tmp_path / 'submission'}",
    )
    flag_scope.run(
        evaluate,
        "--protocol=msu",
        f"--predictions={tmp_path / 'submission'}",
        f"--annotations={root / 'CrowdSAL'}",
        "--videos=1-3",
        f"--output={tmp_path / 'scores.json'}",
        "--workers=1",
    )
    scores = json.loads((tmp_path / "scores.json").read_text())
    assert scores["frames"] == 3 * FRAMES
    assert set(scores["by_video"]) == {"0001", "0002", "0003"}
    ours, centre = (
        scores[who]["cc"]["mean_of_videos"]
        for who in ("overall", "centre_prior")
    )
    assert ours > centre + 0.1


def test_with_dhf1k(tiny, root, tmp_path):
    """As experiments/crowdsal.flags has it: DHF1K's training split whole."""
    settings = settings_of(
        root, tmp_path, datasets=("crowdsal", "dhf1k"), epochs=3
    )
    counts = dataset.Dataset("dhf1k", settings.data_dir).splits["train"]
    windows_ = [*counts.values(), *3 * [FRAMES]]
    steps = sum(n - settings.window + 1 for n in windows_) // 8
    assert len(counts) == 15 and steps == 39
    assert loop.run(settings) == 0
    lines = (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()
    first, *_, last = map(json.loads, lines)
    assert [first["step"], last["step"]] == [steps, 3 * steps]
    # Both datasets were read, and each has stores of its own.
    stored = {
        folder.name: {int(p.stem) for p in folder.glob("truth/*.bin")}
        for folder in (tmp_path / "stores").iterdir()
    }
    assert stored == {
        "crowdsal-1.0.0": {1, 2, 3, 4},
        "dhf1k-1.0.0": set(counts),
    }
    # What it has seen it knows better than where people look anyway.
    for videos, frames in (("crowdsal:1-3", 3 * FRAMES), ("dhf1k:1-3", 60)):
        seen = dataclasses.replace(settings, test_videos=videos)
        scores = evaluate.evaluate(seen)[0]
        assert scores["dataset"] == f"{videos.partition(':')[0]}:1.0.0"
        assert scores["frames"] == frames
        ours, centre = (
            scores[who]["cc"]["mean"] for who in ("overall", "centre_prior")
        )
        assert ours > centre + 0.05
