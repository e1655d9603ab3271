"""A folder for a model hub is a run folder, and gives the run's maps."""

import json
import shutil
import sys
import types

import cv2
import keras
import numpy as np
import pandas as pd
import pytest

from lsts_tf import experiment, export, predict
from lsts_tf import predictor as predictor_lib
from lsts_tf.scoring import scorer, summary
from lsts_tf.serving import hub
from tests import flag_scope, tiny_run


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("hub") / "run"
    tiny_run.make(folder, data_dir=str(folder), train_videos="1-7")
    return folder


@pytest.fixture(scope="module")
def exported(run):
    folder = run.with_name("exported")
    flag_scope.run(
        export,
        f"--flagfile={run / experiment.FLAGFILE}",
        "--format=hub",
        f"--output={folder}",
    )
    return folder


def test_from_the_hub_by_its_name(run, exported, tmp_path, monkeypatch):
    """The folder gives the maps of the run."""
    want = predictor_lib.Predictor.load(run)(tiny_run.frames(3))
    assert np.ptp(want) > 0.1

    def snapshot_download(name):
        assert name == "owner/name"
        return str(shutil.copytree(exported, tmp_path / "snapshot"))

    fake = types.SimpleNamespace(snapshot_download=snapshot_download)
    monkeypatch.setitem(sys.modules, "huggingface_hub", fake)
    predictor = predictor_lib.Predictor.load("hf://owner/name")
    np.testing.assert_array_equal(predictor(tiny_run.frames(3)), want)


def test_nothing_is_trained_there():
    with pytest.raises(ValueError, match=r"hf://.* trained model"):
        experiment.Experiment(run_dir="hf://owner/name")


def test_without_the_package_it_says_how_to_get_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(
        RuntimeError, match=r"pip install hugg.*hf://owner/name"
    ):
        predictor_lib.Predictor.load("hf://owner/name")


def test_its_flagfile_predicts(exported, tmp_path):
    for number, frame in enumerate(tiny_run.frames(2)):
        cv2.imwrite(str(tmp_path / f"{number}.png"), frame)
    flag_scope.run(
        predict,
        f"--flagfile={exported / experiment.FLAGFILE}",
        f"--output={tmp_path / 'out'}",
        "--outputs=npy",
        str(tmp_path),
    )
    assert np.load(tmp_path / "out" / "maps.npy").shape == (2, 90, 161)
    record = json.loads((tmp_path / "out" / "prediction.json").read_text())
    files = json.loads((exported / export.METADATA).read_text())["files"]
    assert record["model"] == {
        "run": str(exported),
        "model": "last",
        "sha256": files[experiment.HUB_WEIGHTS],
    }


def test_what_is_in_it(exported, run):
    assert {path.name for path in exported.iterdir()} == {
        *("config.json", experiment.HUB_WEIGHTS),
        *(experiment.FLAGFILE, "front_end.json"),
        *(export.METADATA, hub.CARD),
    }
    settings = experiment.load(exported / experiment.FLAGFILE)
    # Nobody else's folders.
    assert settings.data_dir == ""
    assert settings.differences(experiment.load(run / "experiment.flags")) == []
    # Keras itself reads it, also by hf://.
    assert isinstance(keras.saving.load_model(exported), keras.Model)
    record = json.loads((exported / export.METADATA).read_text())
    assert record["parity"]["features"]["largest_difference"] == 0


def test_the_card_says_what_is_known(exported, run, tmp_path):
    card = (exported / hub.CARD).read_text("utf-8")
    assert card.startswith("---\nlibrary_name: keras\n")
    assert "**random I3D weights (rgb).**" in card
    assert "videos 1-7 of dhf1k" in card
    assert "Not measured." in card
    # One that somebody wrote goes along.
    hub.complete(tmp_path, experiment.STARTER, name="there")
    for name in (hub.CARD, "front_end.json"):
        written = (experiment.STARTER / name).read_bytes()
        assert (tmp_path / name).read_bytes() == written


def test_scores_are_those_of_the_run(run, tmp_path):
    scored = shutil.copytree(run, tmp_path / "run")
    frames = pd.DataFrame({"video": 601, "frame": range(9), "cc": 0.5})
    scores = summary.report(
        frames,
        frames,
        first_frames=8,
        scoring=scorer.Settings(),
        about={"videos": "601", "dataset": "dhf1k"},
    )
    (scored / hub.SCORES).write_text(json.dumps(scores))
    (tmp_path / "hub").mkdir()
    hub.complete(tmp_path / "hub", scored, name="there")
    card = (tmp_path / "hub" / hub.CARD).read_text("utf-8")
    assert "Videos 601 of dhf1k" in card
    assert "all frames" in card and "0.5000" in card


def test_it_is_of_a_run(run, tmp_path):
    predictor = types.SimpleNamespace()
    with pytest.raises(ValueError, match="hub needs a run"):
        export.export(predictor, tmp_path / "out", file_format="hub")
