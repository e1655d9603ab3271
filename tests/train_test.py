import dataclasses
import errno
import json
import os
import pathlib
import re
import signal
import socket
import subprocess
import sys

import keras
import numpy as np
import pytest
from tensorboard.backend.event_processing import event_accumulator
import tensorflow as tf

from lsts_tf import checkpoints
from lsts_tf import experiment
from lsts_tf import files
from lsts_tf import forecast
from lsts_tf import train
from tests import tiny_training

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
    message = r"not finite at step .*windows \(video:frame\) \d+:\d+, "
    with pytest.raises(checkpoints.StoppedError, match=message):
        train.run(wild)
    for path in pathlib.Path(few.run_dir).glob("checkpoints/*.index"):
        reader = tf.train.load_checkpoint(str(path.with_suffix("")))
        for name in reader.get_variable_to_shape_map():
            if "model" in name and name.endswith("VARIABLE_VALUE"):
                assert np.isfinite(reader.get_tensor(name)).all()


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


@pytest.fixture
def tiny(monkeypatch, tmp_path):
    """A training of 20 steps that costs next to nothing."""
    tiny_training.install(monkeypatch.setattr)
    return tiny_training.settings(tmp_path, deterministic=False)


def tiny_records(settings):
    return [r["step"] for r in records(settings)]


def test_the_batch_that_is_not_finite_is_named(tiny, monkeypatch):
    step = train.trainer_lib.Trainer.train_step

    def seventh_is_wrong(self, batch, **keywords):
        values = step(self, batch, **keywords)
        wrong = int(self.step.numpy()) == 7
        return values | ({"loss": float("nan")} if wrong else {})

    monkeypatch.setattr(
        train.trainer_lib.Trainer, "train_step", seventh_is_wrong
    )
    with pytest.raises(checkpoints.StoppedError) as caught:
        train.run(tiny)
    text = str(caught.value)
    assert "at step 7:" in text
    named = re.findall(r"(\d+):(\d+)(?:,| and|\.)", text)
    order = train.input_pipeline.permutation(30, seed=0, epoch=1)[6:12]
    every = [(v, t) for v in range(1, 6) for t in range(3, 9)]
    want = [tuple(map(str, every[n])) for n in order]
    assert named == want
    # And the one before it stands.
    assert tiny_training.weights(tiny.run_dir)
    newest = tf.train.latest_checkpoint(f"{tiny.run_dir}/checkpoints")
    assert newest.endswith("step-6")


def full(*_, **__):
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def full_for_tensorflow(*_, **__):
    raise tf.errors.ResourceExhaustedError(None, None, "No space left; more")


@pytest.mark.parametrize(
    ("place", "name", "error"),
    [
        (tf.train.CheckpointManager, "save", full_for_tensorflow),
        (train, "save_model", full),
        (files, "write_text", full),
    ],
)
def test_a_full_disk_ends_clearly_and_loses_nothing(
    tiny, monkeypatch, place, name, error
):
    """It becomes full in the second epoch, and has room again."""
    short = dataclasses.replace(tiny, epochs=2)
    original = getattr(place, name)

    def fills_up(*arguments, **keywords):
        path = pathlib.Path(short.run_dir) / "metrics.jsonl"
        if path.exists() and tiny_records(short) == [5]:
            error()
        return original(*arguments, **keywords)

    with monkeypatch.context() as patch:
        patch.setattr(place, name, fills_up)
        with pytest.raises(checkpoints.StoppedError, match="No space left"):
            train.run(short)
    assert tiny_records(short) == [5]
    assert tiny_training.weights(short.run_dir)
    assert train.run(short) == 0
    assert tiny_records(short) == [5, 10]
    assert {p.step for p in curves(short).Tensors("train/loss")} == set(
        range(1, 11)
    )


def test_a_recipe_of_everything(tiny):
    recipe = dataclasses.replace(
        tiny,
        optimizer="adamw",
        schedule="cosine",
        warmup_steps=3,
        ema=0.9,
        flip=True,
        accumulate=2,
        loss="kld-0.5*cc-0.1*nss-sim+mse",
        histograms=True,
        epochs=2,
    )
    assert train.run(recipe) == 0
    assert tiny_records(recipe) == [5, 10]
    tags = curves(recipe).Tags()["tensors"]
    assert "_hparams_/session_start_info" in tags
    assert any(t.startswith("environment") for t in tags)
    assert any("d1" in t and "kernel" in t for t in tags)
    rates = [
        float(tf.make_ndarray(p.tensor_proto))
        for p in curves(recipe).Tensors("train/learning_rate")
    ]
    # A point stands at the number of steps done: the rate of the next one.
    assert rates[1] == max(rates)
    assert rates[-1] < rates[4] < rates[1]
    # Cosine ends with --epochs, so that is part of the experiment.
    with pytest.raises(ValueError, match="--epochs"):
        train.run(dataclasses.replace(recipe, epochs=3))


def test_flips_have_a_store_of_their_own(tiny):
    assert train.run(dataclasses.replace(tiny, flip=True, epochs=1)) == 0
    root = pathlib.Path(tiny.store_dir) / "tiny-1.0.0"
    assert {p.name for p in root.iterdir()} == {
        "truth",
        "rgb-window4",
        "rgb-window4-mirrored",
        "rgb-window4-stride2-first0",
    }
    assert len(list((root / "rgb-window4-mirrored").glob("*.npy"))) == 5


def test_a_dry_run_says_what_it_takes_and_writes_nothing(tiny):
    told = "\n".join(forecast.lines(tiny))
    assert "training: 30 windows of 4 frames in 5 videos" in told
    assert "steps: 20, 5 an epoch of 6 windows" in told
    for word in ("stores:", "model:", "memory:", "time:"):
        assert word in told
    assert not pathlib.Path(tiny.run_dir).exists()
    assert not pathlib.Path(tiny.store_dir).exists()


def start_tiny(*arguments, **environment):
    return subprocess.Popen(
        [sys.executable, "-m", "tests.tiny_training", *map(str, arguments)],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env={**os.environ, "PYTHONPATH": ".", **environment},
    )


def kill_often(tmp_path, kills, how, **changes):
    path = tiny_training.save(
        tiny_training.settings(tmp_path, **changes), tmp_path / "settings.json"
    )
    process = start_tiny("kill", path, kills, how)
    told, _ = process.communicate(timeout=1500)
    assert process.returncode == 0, told[-4000:]
    assert "all identical" in told


def test_killed_runs_end_as_if_they_had_not_been(tmp_path):
    kill_often(tmp_path, 5, "kill")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("how", "kills", "changes"),
    [
        ("kill", 50, {}),
        ("kill", 10, {"strategy": "mirrored"}),
        ("term", 15, {}),
        ("truncate", 15, {}),
        (
            "kill",
            10,
            {"accumulate": 2, "ema": 0.9, "flip": True, "optimizer": "adamw"},
        ),
    ],
)
def test_runs_that_are_killed_often(tmp_path, how, kills, changes):
    kill_often(tmp_path, kills, how, **changes)


def workers(tmp_path, settings):
    """Two processes that train together."""
    path = tiny_training.save(settings, tmp_path / "workers.json")
    hosts = []
    for _ in range(2):
        with socket.socket() as free:
            free.bind(("localhost", 0))
            hosts.append(f"localhost:{free.getsockname()[1]}")
    return [
        start_tiny(
            "run",
            path,
            TF_CONFIG=json.dumps(
                {
                    "cluster": {"worker": hosts},
                    "task": {"type": "worker", "index": number},
                }
            ),
        )
        for number in range(2)
    ]


def finish(processes):
    told = [process.communicate(timeout=300)[0] for process in processes]
    codes = [process.returncode for process in processes]
    return codes, "\n".join(told)[-6000:]


def test_two_workers_two_replicas_and_micro_batches_agree(tiny, tmp_path):
    """The same weights after 20 steps from one seed, up to rounding."""
    together = dataclasses.replace(
        tiny, strategy="multi_worker", run_dir=str(tmp_path / "together")
    )
    processes = workers(tmp_path, together)
    runs = {
        "one": {},
        "mirrored": {"strategy": "mirrored"},
        "parts": {"accumulate": 3},
    }
    for name, changes in runs.items():
        run_dir = str(tmp_path / name)
        changed = dataclasses.replace(tiny, run_dir=run_dir, **changes)
        assert train.run(changed) == 0
    codes, told = finish(processes)
    assert codes == [0, 0], told
    want = tiny_training.weights(tmp_path / "one")
    scores = json.loads(
        (tmp_path / "one" / "metrics.jsonl").read_text().splitlines()[-1]
    )
    for name in ("mirrored", "parts", "together"):
        found = tiny_training.weights(tmp_path / name)
        for a, b in zip(found, want, strict=True):
            np.testing.assert_allclose(a, b, atol=2e-4, err_msg=name)
        lines = (tmp_path / name / "metrics.jsonl").read_text().splitlines()
        other = json.loads(lines[-1])
        assert other["loss"] == pytest.approx(scores["loss"], rel=1e-3)
    # Only the chief wrote.
    assert len(list((tmp_path / "together" / "logs").glob("*tfevents*"))) == 1


@pytest.mark.slow
def test_a_killed_worker_and_both_started_again(tmp_path):
    settings = tiny_training.settings(
        tmp_path, strategy="multi_worker", epochs=40
    )
    codes, told = finish(workers(tmp_path, settings))
    assert codes == [0, 0], told
    want = tiny_training.state(pathlib.Path(settings.run_dir))
    for victim in (1, 0):
        again = dataclasses.replace(
            settings, run_dir=f"{settings.run_dir}-{victim}"
        )
        processes = workers(tmp_path, again)
        path = pathlib.Path(again.run_dir) / "metrics.jsonl"
        while not path.exists() and processes[0].poll() is None:
            try:
                processes[1].wait(0.1)
            except subprocess.TimeoutExpired:
                continue
        processes[victim].kill()
        codes, told = finish(processes)
        assert 0 not in codes, told
        codes, told = finish(workers(tmp_path, again))
        assert codes == [0, 0], told
        found = tiny_training.state(pathlib.Path(again.run_dir))
        for what in want:
            assert found[what] == want[what], what
