import contextlib
import dataclasses
import errno
import math
import os
import pathlib
import re
import shutil
import signal
import subprocess
import sys

import keras
import numpy as np
import pytest
import tensorflow as tf

from lsts_tf import experiment
from lsts_tf.features import dataset
from lsts_tf.features import front_end as front_end_lib
from lsts_tf.media import files
from lsts_tf.training import checkpoints, dry_run, input_pipeline, loop
from lsts_tf.training import trainer as trainer_lib
from tests import fake_front_end, forks, pages, run_folder, tiny_training


def test_a_run_folder_is_of_one_process(tiny):
    folder = pathlib.Path(tiny.run_dir)
    with (
        files.alone(folder),
        pytest.raises(RuntimeError, match=f"process {os.getpid()} on"),
    ):
        unfinished = folder / ".model.1.keras"
        unfinished.touch()
        loop.run(tiny)
    assert unfinished.exists()


def test_finetuning_in_halves_needs_a_gpu(tiny, monkeypatch):
    """And says so before any feature is made."""
    halves = dataclasses.replace(
        tiny, finetune_from="Mixed_5b", precision="mixed_float16"
    )
    monkeypatch.setattr(tf.config, "list_physical_devices", lambda _: [])
    with pytest.raises(ValueError, match="needs a GPU"):
        loop.run(halves)
    assert not pathlib.Path(halves.run_dir).exists()
    monkeypatch.setattr(tf.config, "list_physical_devices", lambda _: ["GPU"])
    trainer_lib.check_precision(halves)


def newest(settings):
    """Name of the newest checkpoint."""
    folder = pathlib.Path(settings.run_dir) / "checkpoints"
    return checkpoints.found(folder)[-1].name


@pytest.fixture
def tiny(monkeypatch, tmp_path):
    """A training of 20 steps that costs next to nothing."""
    tiny_training.install(monkeypatch.setattr)
    return tiny_training.settings(tmp_path, deterministic=False)


def in_the_seventh_step(monkeypatch, change):
    """Have its blocks changed before they are trained on."""
    original = trainer_lib.Trainer.train_step

    def train_step(self, blocks):
        is_it = int(self.step.numpy()) == 6
        return original(self, change(blocks) if is_it else blocks)

    monkeypatch.setattr(trainer_lib.Trainer, "train_step", train_step)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_saves_after_the_step_and_gives_its_code(
    tiny, monkeypatch, number
):
    before = signal.getsignal(number)
    in_the_seventh_step(
        monkeypatch, lambda blocks: signal.raise_signal(number) or blocks
    )
    assert loop.run(tiny) == 128 + number
    assert newest(tiny) == "step-7"
    assert tiny_records(tiny) == [5]
    assert signal.getsignal(number) == before


def test_a_second_signal_ends_the_process_at_once():
    def twice():
        with loop.remembered_signals() as received:
            signal.raise_signal(signal.SIGTERM)
            assert received == [signal.SIGTERM]
            signal.raise_signal(signal.SIGTERM)

    assert forks.wait(forks.start(twice), 120) == -signal.SIGTERM


def tiny_records(settings):
    return [r["step"] for r in run_folder.records(settings)]


def test_the_batch_that_is_not_finite_is_named(tiny, monkeypatch):
    in_the_seventh_step(
        monkeypatch,
        lambda blocks: [({"rgb": x["rgb"] * np.nan}, y) for x, y in blocks],
    )
    with pytest.raises(checkpoints.StoppedError) as caught:
        loop.run(tiny)
    text = str(caught.value)
    assert "at step 7:" in text
    named = re.findall(r"(\d+):(\d+)(?:,| and|\.)", text)
    order = input_pipeline.permutation(30, seed=0, epoch=1)[6:12]
    every = [(v, t) for v in range(1, 6) for t in range(3, 9)]
    want = [tuple(map(str, every[n])) for n in order]
    assert named == want
    # And the one before it stands.
    assert tiny_training.weights(tiny.run_dir)
    assert newest(tiny) == "step-6"


def full(*_, **__):
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def full_for_tensorflow(*_, **__):
    raise tf.errors.ResourceExhaustedError(None, None, "No space left; more")


@pytest.mark.parametrize(
    ("place", "name", "error"),
    [
        (tf.train.Checkpoint, "write", full_for_tensorflow),
        (loop, "save_model", full),
        (files, "write_text", full),
        (tf.summary, "scalar", full_for_tensorflow),
        (tf.summary, "image", full_for_tensorflow),
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
            loop.run(short)
    assert tiny_records(short) == [5]
    assert tiny_training.weights(short.run_dir)
    run_folder.put_events_first(pathlib.Path(short.run_dir) / "logs")
    assert loop.run(short) == 0
    assert tiny_records(short) == [5, 10]
    assert {
        p.step for p in run_folder.curves(short).Tensors("train/loss")
    } == set(range(1, 11))


def test_training_starts_from_a_model_and_goes_on_without_it(tiny, tmp_path):
    assert loop.run(dataclasses.replace(tiny, epochs=1)) == 0
    model = tmp_path / "first.keras"
    shutil.copy(pathlib.Path(tiny.run_dir) / "model.keras", model)
    other = dataclasses.replace(
        tiny,
        run_dir=str(tmp_path / "other"),
        init=str(model),
        seed=tiny.seed + 1,
        learning_rate=0.0,
        weight_decay=0.0,
        epochs=1,
    )
    assert loop.run(other) == 0
    there, here = (
        {
            w.path: np.array(w)
            for w in keras.models.load_model(path, compile=False).weights
            if "moving" not in w.path
        }
        for path in (model, pathlib.Path(other.run_dir) / "model.keras")
    )
    np.testing.assert_equal(here, there)
    model.unlink()
    # What is in the checkpoint is needed no more; a new run does need it.
    assert loop.run(dataclasses.replace(other, epochs=2)) == 0
    with pytest.raises(FileNotFoundError, match=r"starter or a \.keras file"):
        loop.run(dataclasses.replace(other, run_dir=str(tmp_path / "new")))


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
        graph=True,
        epochs=2,
    )
    assert loop.run(recipe) == 0
    assert tiny_records(recipe) == [5, 10]
    assert run_folder.curves(recipe).Tags()["graph"]
    tags = run_folder.curves(recipe).Tags()["tensors"]
    assert "_hparams_/session_start_info" in tags
    assert any(t.startswith("environment") for t in tags)
    assert any("d1" in t and "kernel" in t for t in tags)
    rates = [
        float(tf.make_ndarray(p.tensor_proto))
        for p in run_folder.curves(recipe).Tensors("train/learning_rate")
    ]
    # A point stands at the number of steps done: the rate of the next one.
    assert rates[1] == max(rates)
    assert rates[-1] < rates[4] < rates[1]
    # Cosine ends with --epochs, so that is part of the experiment.
    with pytest.raises(
        ValueError, match="another experiment: --epochs: 3 here"
    ):
        loop.run(dataclasses.replace(recipe, epochs=3))


def test_a_profile_begins_behind_the_first_steps(tiny, caplog):
    short = dataclasses.replace(tiny, epochs=2, profile_steps=2)
    assert loop.run(short) == 0
    assert "the first 10 steps are left out, and this run has 10" in caplog.text
    profiles = pathlib.Path(tiny.run_dir) / "logs/plugins/profile"
    assert not profiles.exists()
    longer = dataclasses.replace(tiny, run_dir=f"{tiny.run_dir}-longer")
    longer = dataclasses.replace(longer, epochs=3, profile_steps=2)
    assert loop.run(longer) == 0
    profiles = pathlib.Path(longer.run_dir) / "logs/plugins/profile"
    assert len(list(profiles.iterdir())) == 1


def test_a_dry_run_counts_and_writes_nothing(tiny):
    told = list(dry_run.lines(tiny))
    assert told[0] == "training: 30 windows of 4 frames in 5 videos"
    assert told[1].startswith("validation: 3 windows")
    assert told[2] == "steps: 20, 5 an epoch of 6 windows, 4 epochs"
    assert re.fullmatch(r"stores: 0\.\d\d GB of .* GB are free at .*", told[3])
    assert re.fullmatch(r"model: [1-9][\d,]* parameters", told[4])
    assert len(told) == 5
    assert not pathlib.Path(tiny.run_dir).exists()
    assert not pathlib.Path(tiny.store_dir).exists()


@pytest.mark.parametrize(
    ("which", "videos", "frames", "windows", "steps", "size"),
    [
        ("crowdsal", 3000, 552, "46,400", "5,800", "200.34"),
        ("ntire2026", 1200, 540, "18,240", "2,280", "80.14"),
    ],
)
def test_what_films_take_by_count(
    monkeypatch, which, videos, frames, windows, steps, size
):
    """The figures in their flagfiles, without the dataset."""

    class Counted(dataset.Dataset):
        name = f"{which}:1.0.0"

        def __init__(self):
            self.frame_counts = dict.fromkeys(range(1, videos + 1), frames)

    monkeypatch.chdir(pages.ROOT)
    path = pages.ROOT / "experiments" / f"{which}.flags"
    settings = experiment.load(path)
    told = "\n".join(dry_run.lines(settings, Counted()))
    assert f"training: {windows} windows of 79 frames" in told
    assert f"steps: {steps}, " in told and f"stores: {size} GB" in told
    header = path.read_text()
    assert f"{windows} windows" in header and f"{steps} steps" in header
    assert f"{float(size):.0f} GB of stores" in header


def test_a_dry_run_counts_what_is_trained_of_i3d():
    class Counted(dataset.Dataset):
        name = "dhf1k:1.0.0"

        def __init__(self):
            self.frame_counts = dict.fromkeys(range(1, 602), 9)

    small = experiment.Experiment(window=9, input_size="32", batch_size=6)
    tuned = dataclasses.replace(small, finetune_from="Mixed_5c")
    less, more = (
        int(re.sub(r"\D", "", [*dry_run.lines(settings, Counted())][-1]))
        for settings in (small, tuned)
    )
    assert more > less + 1_000_000


@pytest.mark.parametrize(
    ("changes", "features", "flows"),
    [
        ({}, 33, 0),
        ({"views": 1}, 63, 0),
        ({"flip": True, "views": 2}, 123, 0),
        ({"features": "live"}, 3, 0),
        ({"streams": ("flow",)}, 33, 48),
        ({"streams": ("flow",), "features": "live"}, 3, 8),
    ],
)
def test_bytes_of_the_stores_by_hand(tiny, changes, features, flows):
    """5 videos of 9 frames and 6 windows, and one of 3 windows, float16."""
    settings = dataclasses.replace(tiny, **changes)
    front_end = front_end_lib.load(**settings.front_end_arguments())
    found = dry_run.store_bytes(
        settings,
        front_end,
        {"training": [9] * 5, "validation": [9]},
        {"training": 30, "validation": 3},
    )
    record = math.prod(fake_front_end.Pixels.shape)
    targets = 8 * (features + flows)
    assert found == targets + 2 * (features * record + flows * 112 * 112 * 2)


@pytest.mark.parametrize(
    ("score", "before", "best"),
    [
        (0.3, [], True),
        (0.3, [0.1, 0.2], True),
        (0.3, [0.1, 0.3], False),
        (0.05, [0.1, math.nan], False),
        (math.nan, [math.nan], True),
        (math.nan, [0.1], False),
    ],
)
def test_a_score_that_is_no_number_is_never_the_best(score, before, best):
    assert loop.is_best(score, before) is best


def start_tiny(log, *arguments, **environment):
    with log.open("w") as file:
        return subprocess.Popen(
            [sys.executable, "-m", "tests.tiny_training", *map(str, arguments)],
            cwd=pages.ROOT,
            stdout=file,
            stderr=file,
            env={**os.environ, "PYTHONPATH": ".", **environment},
        )


@pytest.mark.parametrize(
    ("how", "kills", "changes"),
    [
        ("kill", 5, {}),
        pytest.param("kill", 50, {}, marks=pytest.mark.slow),
        pytest.param("term", 50, {}, marks=pytest.mark.slow),
        *(
            pytest.param("kill", 10, changes, marks=pytest.mark.slow)
            for changes in (
                {"strategy": "mirrored"},
                {"dropout": 0.5},
                {"strategy": "mirrored", "accumulate": 3, "ema": 0.9},
                {
                    "accumulate": 2,
                    "ema": 0.9,
                    "flip": True,
                    "optimizer": "adamw",
                },
            )
        ),
    ],
)
def test_killed_runs_end_as_if_they_had_not_been(tmp_path, how, kills, changes):
    path = tmp_path / "tiny.flags"
    tiny_training.settings(tmp_path, **changes).save(path)
    log = tmp_path / "told"
    process = start_tiny(log, "kill", path, kills, how)
    try:
        assert process.wait(1500) == 0, log.read_text()[-4000:]
    finally:
        process.kill()
    assert "all identical" in log.read_text()


@contextlib.contextmanager
def workers(tmp_path, *settings):
    """Two processes that train together, and what they say."""
    hosts = tiny_training.free_addresses(2)
    processes, logs = [], []
    for number, each in enumerate(settings * (2 // len(settings))):
        flagfile = tmp_path / f"worker{number}.flags"
        each.save(flagfile)
        logs.append(tmp_path / f"worker{number}")
        config = tiny_training.tf_config(hosts, number)
        processes.append(
            start_tiny(logs[-1], "run", flagfile, TF_CONFIG=config)
        )
    try:
        yield processes, logs
    finally:
        for process in processes:
            process.kill()
            process.wait()


def finish(processes, logs):
    """Exit codes, and what was said."""
    codes = [process.wait(300) for process in processes]
    return codes, "\n".join(log.read_text()[-3000:] for log in logs)


def train_together(tmp_path, settings):
    with workers(tmp_path, settings) as started:
        codes, told = finish(*started)
    assert codes == [0, 0], told


@pytest.mark.slow
def test_two_workers_and_two_replicas_agree(tiny, tmp_path):
    """The same weights after 20 steps from one seed, up to rounding."""
    one, mirrored, together = (
        dataclasses.replace(tiny, strategy=name, run_dir=str(tmp_path / name))
        for name in ("one", "mirrored", "multi_worker")
    )
    with workers(tmp_path, together) as started:
        for settings in (one, mirrored):
            assert loop.run(settings) == 0
        codes, told = finish(*started)
    assert codes == [0, 0], told
    want = tiny_training.weights(one.run_dir)
    loss = run_folder.records(one)[-1]["loss"]
    for settings in (mirrored, together):
        found = tiny_training.weights(settings.run_dir)
        for a, b in zip(found, want, strict=True):
            np.testing.assert_allclose(a, b, atol=2e-4)
        last = run_folder.records(settings)[-1]
        assert last["loss"] == pytest.approx(loss, rel=1e-3)
    # Only the chief wrote.
    logs = pathlib.Path(together.run_dir) / "logs"
    assert len(list(logs.glob("*tfevents*"))) == 1


@pytest.mark.slow
def test_a_worker_with_another_run_folder_ends_all(tiny, tmp_path):
    """As on machines without a common file system, when they start again."""
    together = dataclasses.replace(tiny, strategy="multi_worker", epochs=1)
    train_together(tmp_path, together)
    longer = dataclasses.replace(together, epochs=2)
    apart = dataclasses.replace(longer, run_dir=str(tmp_path / "other"))
    with workers(tmp_path, longer, apart) as (processes, logs):
        codes, told = finish(processes, logs)
    assert codes == [1, 1], told
    for log in logs:
        message = log.read_text()
        assert "checkpoints of the steps 5, 0, worker by worker" in message
    assert tiny_records(together) == [5]
    train_together(tmp_path, longer)
    assert tiny_records(together) == [5, 10]


@pytest.mark.slow
def test_a_killed_worker_and_both_started_again(tmp_path):
    settings = tiny_training.settings(
        tmp_path, strategy="multi_worker", epochs=8
    )
    train_together(tmp_path, settings)
    want = tiny_training.state(pathlib.Path(settings.run_dir))
    for victim in (1, 0):
        again = dataclasses.replace(
            settings, run_dir=f"{settings.run_dir}-{victim}"
        )
        path = pathlib.Path(again.run_dir) / "metrics.jsonl"
        with workers(tmp_path, again) as (processes, logs):
            while not path.exists() and processes[0].poll() is None:
                with contextlib.suppress(subprocess.TimeoutExpired):
                    processes[1].wait(0.1)
            processes[victim].kill()
            # About a minute; two where the machine has other work.
            processes[1 - victim].wait(120)
            codes, told = finish(processes, logs)
        assert 0 not in codes, told
        assert "Another worker ended" in logs[1 - victim].read_text()
        train_together(tmp_path, again)
        found = tiny_training.state(pathlib.Path(again.run_dir))
        for what in want:
            assert found[what] == want[what], what
