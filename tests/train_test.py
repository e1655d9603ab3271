import dataclasses
import json
import os
import pathlib
import signal
import subprocess
import sys

import keras
import numpy as np
import pytest
from tensorboard.backend.event_processing import event_accumulator
import tensorflow as tf

from lsts_tf import experiment
from lsts_tf import train

ROOT = pathlib.Path(__file__).parents[1]


@pytest.fixture
def few(sample_settings, tmp_path):
    """Two steps an epoch, features from the stores of the whole session."""
    return dataclasses.replace(
        sample_settings,
        run_dir=str(tmp_path / "run"),
        train_videos="1-8",
        epochs=1,
        image_windows=1,
    )


def records(settings):
    path = pathlib.Path(settings.run_dir) / "metrics.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()]


def curves(settings):
    events = event_accumulator.EventAccumulator(
        str(pathlib.Path(settings.run_dir) / "logs"),
        size_guidance={"tensors": 0, "images": 0},
    )
    events.Reload()
    return events


def test_a_run_folder_has_everything(trained):
    folder = pathlib.Path(trained.run_dir)
    assert experiment.load(folder / experiment.FLAGFILE) == trained
    assert [r["epoch"] for r in records(trained)] == list(range(1, 17))
    assert set(records(trained)[0]) == {
        "epoch",
        "step",
        "loss",
        *train.VALIDATION_METRICS,
    }
    described = json.loads((folder / "front_end.json").read_text())
    assert described["streams"]["rgb"]["weights"] == "random"
    model = keras.models.load_model(folder / "model.keras", compile=False)
    assert model.output_shape == (None, 360, 640, 1)
    assert (folder / "best.keras").is_file()
    left = {p.name for p in folder.iterdir()}
    assert left == {
        "experiment.flags",
        "front_end.json",
        "checkpoints",
        "model.keras",
        "best.keras",
        "metrics.jsonl",
        "logs",
    }


def test_training_lowers_the_loss(trained):
    losses = [r["loss"] for r in records(trained)]
    assert losses[-1] < 0.8 * losses[0]


def test_curves_and_pictures(trained):
    tags = curves(trained).Tags()["tensors"]
    for name in (
        "train/loss",
        "train/gradient_norm",
        "train/learning_rate",
        "validation/loss",
        "validation/cc",
        "speed/windows_a_second",
        "speed/share_of_waiting",
        "windows/0",
        "windows/1",
    ):
        assert name in tags
    assert any(name.startswith("experiment") for name in tags)


def test_the_same_command_goes_on(few):
    assert train.run(few) == 0
    assert [r["step"] for r in records(few)] == [2]
    longer = dataclasses.replace(few, epochs=3)
    assert train.run(longer) == 0
    assert [r["step"] for r in records(few)] == [2, 4, 6]
    # Each point of the curve once.
    points = curves(few).Tensors("validation/loss")
    assert [p.step for p in points] == [2, 4, 6]


def test_a_folder_of_another_experiment_is_refused(few):
    train.claim_run_folder(few)
    other = dataclasses.replace(few, learning_rate=1e-2)
    with pytest.raises(ValueError, match=r"--learning_rate: 0\.01 here"):
        train.claim_run_folder(other)
    # What is only watched may change.
    train.claim_run_folder(dataclasses.replace(few, log_steps=3))


def test_two_replicas(few):
    assert train.run(dataclasses.replace(few, strategy="mirrored")) == 0
    assert np.isfinite(records(few)[0]["loss"])


def test_a_batch_that_replicas_cannot_share(few, mirrored):
    odd = dataclasses.replace(few, batch_size=7)
    with pytest.raises(ValueError, match="multiple of the 2 replicas"):
        train.Trainer(odd, mirrored, feature_shape=(1, 5, 5, 1024))


def test_live_features(few):
    live = dataclasses.replace(
        few, features="live", train_videos="1-2", batch_size=2
    )
    assert train.run(live) == 0
    assert [r["step"] for r in records(live)] == [2]


@pytest.mark.parametrize("precision", ["mixed_bfloat16", "mixed_float16"])
def test_mixed_precision(few, precision):
    assert train.run(dataclasses.replace(few, precision=precision)) == 0
    assert np.isfinite(records(few)[0]["loss"])


def test_a_loss_that_is_not_finite_stops_before_saving(few):
    wild = dataclasses.replace(few, learning_rate=1e30, epochs=5)
    with pytest.raises(train.StoppedError, match="not finite at step"):
        train.run(wild)
    for path in pathlib.Path(few.run_dir).glob("checkpoints/*.index"):
        reader = tf.train.load_checkpoint(str(path.with_suffix("")))
        for name in reader.get_variable_to_shape_map():
            if "model" in name and name.endswith("VARIABLE_VALUE"):
                assert np.isfinite(reader.get_tensor(name)).all()


def test_the_newest_damaged_checkpoint_is_skipped(tmp_path):
    variable = tf.Variable(0.0)
    manager = tf.train.CheckpointManager(
        tf.train.Checkpoint(v=variable), str(tmp_path), max_to_keep=3
    )
    for step in (1, 2):
        variable.assign(step)
        manager.save(checkpoint_number=step)
    (data,) = tmp_path.glob("ckpt-2.data*")
    data.write_bytes(data.read_bytes()[:3])
    variable.assign(9.0)
    train.restore(manager)
    assert float(variable) == 1
    (data,) = tmp_path.glob("ckpt-1.data*")
    data.write_bytes(b"")
    with pytest.raises(train.StoppedError, match="None of the checkpoints"):
        train.restore(manager)


def test_a_batch_larger_than_the_data(few):
    with pytest.raises(ValueError, match="--batch_size"):
        train.run(dataclasses.replace(few, batch_size=18))


def test_a_window_longer_than_every_video(few, tmp_path):
    long = dataclasses.replace(
        few, window=32, store_dir=str(tmp_path / "stores")
    )
    with pytest.raises(RuntimeError, match="fewer than the 33"):
        train.run(long)


def run_program(*arguments):
    return subprocess.run(
        [sys.executable, "-m", "lsts_tf.train", *arguments],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )


def test_the_program_says_how_to_build_a_dataset(tmp_path):
    done = run_program(
        "--flagfile=experiments/rgb.flags",
        f"--data_dir={tmp_path}",
        f"--run_dir={tmp_path}/run",
    )
    assert done.returncode == 1
    assert "tfds build dhf1k" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_stopped_program_saves_and_goes_on(few, tmp_path):
    flagfile = tmp_path / "stop.flags"
    dataclasses.replace(few, epochs=500, deterministic=True).save(flagfile)
    log = tmp_path / "log"
    with log.open("w") as file:
        process = subprocess.Popen(
            [sys.executable, "-m", "lsts_tf.train", f"--flagfile={flagfile}"],
            cwd=ROOT,
            stdout=file,
            stderr=file,
            env={**os.environ, "PYTHONUNBUFFERED": "1"},
        )
    path = pathlib.Path(few.run_dir) / "metrics.jsonl"
    for _ in range(1200):
        if path.exists() or process.poll() is not None:
            break
        try:
            process.wait(0.25)
        except subprocess.TimeoutExpired:
            continue
    process.send_signal(signal.SIGTERM)
    assert process.wait(120) == 128 + signal.SIGTERM, log.read_text()
    newest = tf.train.latest_checkpoint(
        pathlib.Path(few.run_dir) / "checkpoints"
    )
    assert newest is not None
    assert f"at step {newest.rpartition('-')[2]};" in log.read_text()
