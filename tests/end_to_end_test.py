"""The whole way on the sample dataset: train, evaluate, predict."""

import dataclasses
import json
import math
import pathlib
import shutil

import keras
import numpy as np
import pytest

from lsts_tf import evaluate, experiment, predict
from lsts_tf import predictor as predictor_lib
from lsts_tf.features import extractor as extractor_lib
from lsts_tf.media import images as maps
from lsts_tf.networks import decoder
from lsts_tf.scoring import metrics
from lsts_tf.training import loop, validation
from tests import folders, run_folder


def test_training_beats_no_training_and_the_centre_prior(trained, tmp_path):
    """On clips that were not trained on, with random I3D weights."""
    scores = evaluate.evaluate(trained)[0]
    other = dataclasses.replace(trained, run_dir=str(tmp_path / "run"))
    shutil.copytree(trained.run_dir, other.run_dir)
    decoder.build(
        other.streams, feature_shape=(1, 5, 5, 1024), seed=other.seed
    ).save(tmp_path / "run" / "model.keras")
    untrained = evaluate.evaluate(other)[0]
    # Frames with a window of their own: the others carry a copy.
    ours = scores["first_frames"]["rest"]["cc"]["mean"]
    before = untrained["first_frames"]["rest"]["cc"]["mean"]
    centre = scores["first_frames"]["rest_centre_prior"]["cc"]["mean"]
    assert ours > before + 0.1
    assert ours > centre + 0.05
    assert scores["first_frames"]["filled_by"] == "copy of the first map"
    assert "random I3D weights (rgb, flow)" in scores["note"]


def test_prediction_equals_what_is_scored(trained, tmp_path):
    """A video of the dataset: through the stores, and through the program."""
    predictor = predictor_lib.Predictor.load(trained.run_dir)
    scored = run_folder.scored_maps(trained, predictor)
    predict.predict(
        predictor,
        predict.of_dataset(trained, "601"),
        tmp_path / "out",
        outputs=["npy", "dhf1k"],
        options={"map_size": "model"},
        first_frames="copy",
    )
    straight = np.load(tmp_path / "out" / "maps.npy")
    assert straight.shape == (20, 360, 640)
    # Features are stored in half precision.
    difference = maps.to_uint8(straight).astype(int) - scored
    assert np.abs(difference).max() <= 2
    assert np.abs(difference).mean() < 0.1
    for number, map_ in enumerate(straight):
        written = maps.read(tmp_path / "out" / "0601" / maps.file_name(number))
        np.testing.assert_array_equal(written, maps.to_uint8(map_))


def test_a_video_of_the_dataset_is_named_by_its_number(trained, data):
    (video,) = data.videos([601])
    source = predict.of_dataset(trained, "dhf1k:601")
    assert source.name == "dataset:dhf1k:601"
    assert (source.stem, source.size) == ("601", (640, 360))
    assert (source.num_frames, source.fps) == (20, 30)
    for _ in range(2):
        found = list(source)
        for frame, (read, _) in zip(video.frames(), found, strict=True):
            np.testing.assert_array_equal(read, frame)
        times = [time for _, time in found]
        np.testing.assert_allclose(times, np.arange(20) / 30)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("601-602", "one video"),
        ("", "one video"),
        ("ucf_sports:1", "must be of dhf1k"),
        ("999", "no video 999"),
    ],
)
def test_a_video_that_the_dataset_lacks(trained, text, message):
    with pytest.raises(ValueError, match=message):
        predict.of_dataset(trained, text)


def test_the_continuous_front_end_is_trained_and_served_with_itself(
    small_settings, tmp_path, monkeypatch
):
    settings = dataclasses.replace(
        small_settings,
        streams=("rgb",),
        front_end="continuous",
        input_size="64x96",
        window=17,
        train_stride=1,
        val_stride=1,
        train_videos="1",
        image_windows=0,
    )
    # Whoever asks for the same front end gets the same one: building and
    # tracing it takes seconds.
    built, build = {}, extractor_lib.Extractor

    def extractor_of(**wanted):
        key = repr({**wanted, "lookahead": None})
        if key not in built:
            built[key] = build(**wanted)
        return built[key]

    monkeypatch.setattr(extractor_lib, "Extractor", extractor_of)
    assert loop.run(settings) == 0
    described = json.loads((tmp_path / "run" / "front_end.json").read_text())
    assert described["front_end"] == "continuous"
    predictor = predictor_lib.Predictor.load(settings.run_dir)
    monkeypatch.setattr(
        predictor_lib.Predictor, "load", lambda *_, **__: predictor
    )
    assert evaluate.evaluate(settings)[0]["frames"] == 20
    assert len(built) == 1
    store = tmp_path / "stores" / "dhf1k-1.0.0" / "rgb-continuous17-64x96"
    manifest = json.loads((store / "manifest.json").read_text())
    assert manifest["details"]["front_end"] == "continuous"
    assert folders.numbers(store) == [1, 501, 601]
    # The frames of the same video give what is stored.
    frames = run_folder.assert_straight_is_scored(settings, predictor)
    front_end = predictor.extractor
    seen = front_end.of_clip(map(front_end.prepare, frames))
    stored = np.load(store / "0601.npy")["values"].astype(np.float32)
    assert len(stored) == 4
    np.testing.assert_allclose(
        [features["rgb"] for _, features in seen],
        stored,
        rtol=2.0**-11,
        atol=1e-5 * stored.max(),
    )


def test_a_run_without_a_model_says_how_to_train(trained, tmp_path):
    trained.save(tmp_path / "experiment.flags")
    with pytest.raises(FileNotFoundError, match=r"lsts_tf\.train"):
        predictor_lib.Predictor.load(tmp_path)


def test_a_run_folder_has_everything(trained):
    folder = pathlib.Path(trained.run_dir)
    assert experiment.load(folder / experiment.FLAGFILE) == trained
    epochs = [r["epoch"] for r in run_folder.records(trained)]
    assert epochs == [*range(1, trained.epochs + 1)]
    first, *_, last = run_folder.records(trained)
    about = {"epoch", "step", "loss"}
    assert set(first) == about | set(validation.METRICS)
    # After the last epoch also those that need the fixations of all frames.
    assert set(last) == about | set(metrics.PROTOCOLS["dhf1k"])
    assert all(map(math.isfinite, last.values()))
    assert 0.4 < last["sauc"] < 1
    described = json.loads((folder / "front_end.json").read_text())
    assert described["streams"]["rgb"]["weights"] == "random"
    model = keras.models.load_model(folder / "model.keras", compile=False)
    assert model.output_shape == (None, 360, 640, 1)
    assert " ".join(folders.listed(folder)) == (
        ".lock best.keras checkpoints experiment.flags front_end.json logs "
        "metrics.jsonl model.keras"
    )


def test_curves_and_pictures(trained):
    tags = run_folder.curves(trained).Tags()["tensors"]
    for group, names in {
        "train": ("loss", "gradient_norm", "learning_rate", "cc"),
        "validation": ("loss", "cc", "sauc"),
        "speed": ("windows_a_second", "share_of_waiting"),
        "windows": ("0", "1"),
    }.items():
        assert {f"{group}/{name}" for name in names} <= set(tags)
    assert any(name.startswith("experiment") for name in tags)
