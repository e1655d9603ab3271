"""Each recipe, the whole way: train, evaluate, predict. I3D is a fake."""

import dataclasses
import json
import pathlib

import keras
import numpy as np
import pytest

from lsts_tf import evaluate, experiment, extract, parts, predict, train
from lsts_tf import predictor as predictor_lib
from lsts_tf.features import extractor as extractor_lib
from lsts_tf.media import images as maps
from lsts_tf.networks import decoder, i3d, optimizers, tuned_i3d
from lsts_tf.training import loop
from tests import fake_front_end, flag_scope, run_folder

RECIPES = {
    "plus_skip": {
        "decoder": "skip",
        "skips": ("Conv3d_2c_3x3", "Mixed_3c", "Mixed_4f"),
        "dropout": 0.2,
        "blur": 8.0,
        "learn_blur": True,
        "centre_prior": "gaussian",
        "input_size": "64x96",
    },
    "plus_8": {"targets": 8, "streams": ("rgb", "flow"), "features": "live"},
    "finetune": {"finetune_from": "Mixed_5b"},
}


@pytest.fixture
def small(small_settings, monkeypatch):
    monkeypatch.setattr(extractor_lib, "Extractor", fake_front_end.Extractor)
    return dataclasses.replace(small_settings, streams=("rgb",), flow="dis")


@pytest.fixture
def tiny_tail(monkeypatch):
    """A tail with the published layers, on the fake's grid."""

    def network(self, stream):
        return i3d.build(3, height=64, width=64, name=f"i3d_{stream}")

    monkeypatch.setattr(fake_front_end.Extractor, "network", network)


@pytest.mark.parametrize("name", [r for r in RECIPES if r != "finetune"])
def test_a_recipe_goes_the_whole_way(small, name):
    settings = dataclasses.replace(small, **RECIPES[name])
    assert loop.run(settings) == 0
    (record,) = run_folder.records(settings)
    assert all(np.isfinite(v) for v in record.values())
    scores = evaluate.evaluate(settings)[0]
    assert scores["frames"] == 20
    predictor = predictor_lib.Predictor.load(settings.run_dir)
    assert predictor.hop == settings.targets
    first = predictor.geometry.first_target - predictor.hop + 1
    assert scores["first_frames"]["number"] == first == predictor.first_map
    run_folder.assert_straight_is_scored(settings, predictor)


def test_programs_of_another_size_and_window(small, sample_data, tmp_path):
    settings = dataclasses.replace(
        small, streams=("rgb", "flow"), input_size="64x96", window=12
    )
    settings.save(tmp_path / "other.flags")
    flagfile = f"--flagfile={tmp_path / 'other.flags'}"
    flag_scope.run(extract, flagfile)
    stores = pathlib.Path(settings.store_dir) / "dhf1k-1.0.0"
    made = {path.name for path in stores.iterdir()}
    assert made >= {"flow-64x96", "rgb-window12-64x96", "flow-window12-64x96"}
    with pytest.raises(SystemExit, match="0"):
        flag_scope.run(train, flagfile)
    run = pathlib.Path(settings.run_dir)
    of_run = f"--flagfile={run / 'experiment.flags'}"
    flag_scope.run(evaluate, of_run)
    # Nothing was made anew by another name.
    assert {path.name for path in stores.iterdir()} == made
    scores = json.loads((run / "scores.json").read_text())
    assert scores["frames"] == 20
    # Two streams need one frame more than a window has.
    assert scores["first_frames"]["number"] == 12
    clip = sample_data / "raw" / "video" / "701.AVI"
    output = tmp_path / "out"
    flag_scope.run(
        predict, of_run, f"--video={clip}", "--end=5f", f"--output={output}"
    )
    pictures = sorted((output / "maps").iterdir())
    assert len(pictures) == 5
    assert maps.read(pictures[0]).shape == (360, 640)
    # Another window beside it, of the same flows.
    flows = (stores / "flow-64x96" / "0501.npy").stat().st_mtime_ns
    flag_scope.run(extract, of_run, "--window=9", "--split=val")
    more = {path.name for path in stores.iterdir()} - made
    assert more == {
        "rgb-window9-64x96-stride2-first1",
        "flow-window9-64x96-stride2-first1",
    }
    assert (stores / "flow-64x96" / "0501.npy").stat().st_mtime_ns == flows


def decayed(model):
    """Variables that AdamW moves without any gradient."""
    optimizer = optimizers.make("adamw", 0.5, weight_decay=0.1)
    variables = model.trainable_variables
    for variable in variables:
        variable.assign(np.ones(variable.shape))
    optimizer.build(variables)
    optimizer.apply([np.zeros(v.shape) for v in variables], variables)
    return {v.path for v in variables if np.any(v.numpy() != 1)}


def test_adamw_decays_kernels_alone():
    settings = experiment.Experiment(window=16, **RECIPES["plus_skip"])
    size = parts.parse_size(settings.input_size)
    model = decoder.build(
        **settings.decoder_arguments(),
        feature_shape=i3d.feature_shape(settings.window, *size),
        skip_shapes=i3d.skip_shapes(settings.skips, settings.window, *size),
        map_size=parts.MAP_SIZE,
    )
    found = {v.path for v in model.trainable_variables}
    assert {"blur/log_ratio", "prior/log_odds"} <= found
    assert decayed(model) == {p for p in found if p.endswith("/kernel")}


def test_adamw_decays_the_changes_of_trained_kernels():
    tail = tuned_i3d.build(
        i3d.build(3, height=64, width=64), "Mixed_5c", frames=16, rate=0.1
    )
    found = {v.path for v in tail.trainable_variables}
    assert found
    assert decayed(tail) == found


def test_descriptions_say_what_is_not_usual():
    extractor = fake_front_end.Extractor(
        ("rgb",), window=16, size=(64, 96), skips=("Mixed_4f",)
    )
    about = extractor.describe_part("rgb", "rgb_Mixed_4f")
    assert about["input_size"] == [64, 96]
    assert about["skip"] == "Mixed_4f" and "8 frames" in about["rule"]


def test_finetuning_trains_and_keeps_i3d(small, tiny_tail):
    settings = dataclasses.replace(
        small, **RECIPES["finetune"], input_size="64"
    )
    assert loop.run(settings) == 0
    folder = pathlib.Path(settings.run_dir)
    described = json.loads((folder / "front_end.json").read_text())
    assert described["end_point"] == "MaxPool3d_5a_2x2"
    predictor = predictor_lib.Predictor.load(folder)
    (tail,) = (
        layer
        for layer in predictor.model.layers
        if isinstance(layer, keras.Model) and layer.name.endswith("_tuned")
    )
    moved = [v for v in tail.variables if v.name.endswith("change")]
    assert len(moved) == 12
    for v in moved:
        assert np.abs(np.asarray(v)).max() > 0
    block = tail.get_layer("Mixed_5b")
    assert isinstance(block, tuned_i3d.Block)
    frames = np.zeros((3, 90, 160, 3), np.uint8)
    assert len(list(predictor.maps(frames))) == 3


# === Several frames a window ===


class FakeModel:
    """A decoder whose maps say which frames they are of."""

    def __init__(self, hop):
        self.output_shape = (None, hop, 2, 3, 1)
        self.hop = hop

    def __call__(self, features, training=False):  # noqa: ARG002
        target = features["rgb"][:, 0, 0, 0, :1] * 255
        frames = target + np.arange(1 - self.hop, 1, dtype=np.float32)
        ones = np.ones((1, 1, 2, 3, 1), np.float32)
        return frames[..., None, None, None] * ones


class Counting(fake_front_end.Pixels):
    """Features that say which frame is the window's last."""

    computed = 0

    def encode_parts(self, stream, clip):
        self.computed += stream == self.streams[0]
        return super().encode_parts(stream, clip)


@pytest.mark.parametrize("first_frames", ["mirror", "repeat", "copy"])
@pytest.mark.parametrize(
    ("hop", "streams"),
    [(8, ("rgb",)), (16, ("rgb",)), (8, ("rgb", "flow"))],
)
def test_exactly_one_map_a_frame(hop, streams, first_frames):
    first = 15 + ("flow" in streams) - hop + 1
    for count in (1, 2, 7, 8, 9, 16, 17, 18, 31, 40, 41):
        predictor = predictor_lib.Predictor(
            FakeModel(hop), Counting(streams, window=16)
        )
        frames = np.ones((count, 8, 8, 3), np.uint8)
        frames *= np.arange(count, dtype=np.uint8)[:, None, None, None]
        maps = predictor.maps(frames, first_frames=first_frames)
        if first_frames == "copy" and count <= predictor.geometry.first_target:
            with pytest.raises(ValueError, match="more than"):
                list(maps)
            continue
        found = [round(float(m[0, 0]), 4) for m in maps]
        want = list(range(count))
        if first_frames == "copy":
            want = [max(first, n) for n in want]
        assert found == want
        # A window each hop, and one more where the clip does not end with one.
        most = -(-count // hop)
        assert predictor.extractor.computed <= most + (first_frames == "copy")


def test_of_features_gives_the_target():
    extractor = Counting(("rgb",), window=16)
    predictor = predictor_lib.Predictor(FakeModel(8), extractor)
    targets = [20, 31, 40]
    features = [{"rgb": np.full(extractor.shape, n / 255)} for n in targets]
    maps = [m[0, 0] for m in predictor.of_features(features)]
    np.testing.assert_allclose(maps, targets, rtol=1e-6)
    first, *_ = predictor.of_windows(features)
    np.testing.assert_allclose(first[:, 0, 0], range(13, 21), rtol=1e-6)
