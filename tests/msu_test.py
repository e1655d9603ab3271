"""The whole way: films of gaze, a dataset, a model, a submission, scores."""

import json

from crowdsal import crowdsal_dataset_builder
from lsts_tf import evaluate, experiment, predict, train
from lsts_tf.features import dataset
from tests import clip_folders, flag_scope, msu_folders, tiny_training

FRAMES = 24


def test_from_films_to_scores(tmp_path, monkeypatch):
    real = dataset.Dataset
    tiny_training.install(monkeypatch.setattr)
    monkeypatch.setattr(dataset, "Dataset", real)
    made = {n: msu_folders.clip(n, FRAMES) for n in (*range(1, 5), 3001, 3002)}
    films = msu_folders.crowdsal(tmp_path / "CrowdSAL", made)
    monkeypatch.setattr("film_dataset.PROCESSES", 1)
    clip_folders.build(
        crowdsal_dataset_builder.Builder, films, tmp_path / "tfds"
    )
    settings = tiny_training.settings(
        tmp_path,
        data_dir=str(tmp_path / "tfds"),
        datasets=("crowdsal",),
        train_videos="crowdsal:1-3",
        val_videos="crowdsal:4",
        test_videos="crowdsal:3001-3002",
        learning_rate=3e-3,
        batch_size=8,
        epochs=12,
        image_windows=0,
        deterministic=False,
    )
    assert train.run(settings) == 0
    # The run on its own dataset, with DHF1K's measures.
    of_run = evaluate.evaluate(settings, model="last")
    assert of_run["frames"] == 2 * FRAMES
    # Films that it has learnt by heart: so few do not teach it others.
    flag_scope.run(
        predict,
        f"--flagfile={tmp_path / 'run' / experiment.FLAGFILE}",
        f"--video={films / 'Train' / 'Videos'}",
        "--outputs=msu",
        # The tiny front end cannot begin with a still.
        "--first_frames=mirror",
        f"--output={tmp_path / 'submission'}",
    )
    flag_scope.run(
        evaluate,
        "--protocol=msu",
        f"--predictions={tmp_path / 'submission'}",
        f"--annotations={films}",
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
