"""What holds for every dataset in data/: contract, dummy data, command."""

import os
import pathlib
import re
import subprocess
import sys

import numpy as np
import pytest
import tensorflow_datasets as tfds

from lsts_tf.features import dataset
from tests import clip_folders
from tests.data import conftest

ROOT = pathlib.Path(__file__).parents[2]
TWO, THREE = {"train": 2, "test": 1}, {"train": 1, "validation": 1, "test": 1}
LISTED = {"train": 2, "public_test": 1, "private_test": 1}
ANY = (None, None)
# {dataset: (splits of its dummy data, size of its images, citation)}
DATASETS = {
    "dhf1k": (THREE, (360, 640), "Revisiting Video Saliency"),
    "hollywood2": (TWO, ANY, "Actions in the Eye"),
    "ucf_sports": (TWO, ANY, "Actions in the Eye"),
    "osie": (TWO, (600, 800), "Zhao, Qi"),
    "crowd": (TWO, (768, 1024), "Zhao, Qi"),
    "scene": ({"train": 6, "test": 1}, ANY, "Zhao, Qi"),
    "avimos": (LISTED, ANY, "AIM 2024 Challenge"),
    # Of archives.
    "ntire2026": (LISTED, ANY, "NTIRE 2026 Challenge"),
    "crowdsal": (TWO, ANY, "CrowdSAL"),
    "gaze_folder": ({"train": 2}, ANY, ""),
}
FILMS = ("avimos", "ntire2026", "crowdsal")


# TFDS' own test of a builder, for each.
globals().update(
    {
        f"{name.title()}Test": type(
            f"{name.title()}Test",
            (tfds.testing.DatasetBuilderTestCase,),
            {
                "DATASET_CLASS": conftest.builder_of(name),
                "SPLITS": splits,
                # Films and archives are no files of TensorFlow's.
                "MOCK_OUT_FORBIDDEN_OS_FUNCTIONS": name not in FILMS,
            },
        )
        for name, (splits, *_) in DATASETS.items()
    }
)


@pytest.mark.parametrize("name", DATASETS)
def test_features_are_the_contract(name):
    _, size, citation = DATASETS[name]
    info = conftest.builder_of(name)(data_dir="unused").info
    named = set() if name == "dhf1k" else {"name"}
    assert set(info.features) == {*dataset.FEATURES, *named}
    dtypes = {"video": np.int64, "fps": np.float32, "num_frames": np.int64}
    for feature, dtype in dtypes.items():
        assert info.features[feature].shape == ()
        assert info.features[feature].np_dtype == dtype
    assert info.features["frames"].shape == (None, *size, 3)
    assert info.features["frames"].feature.encoding_format == "jpeg"
    for feature in ("maps", "fixations"):
        assert info.features[feature].shape == (None, *size, 1)
        assert info.features[feature].feature.encoding_format == "png"
    assert citation in info.citation
    assert info.description


@pytest.mark.parametrize(
    ("start", "name"),
    [
        (".", "dhf1k"),
        (".", "ucf_sports"),
        ("data", "scene"),
        pytest.param(".", "crowdsal", marks=pytest.mark.slow),
    ],
)
def test_tfds_build(start, name, tmp_path):
    subprocess.run(
        [
            pathlib.Path(sys.executable).parent / "tfds",
            *("build", name, f"--data_dir={tmp_path}"),
            f"--manual_dir={ROOT / 'data' / name / 'dummy_data'}",
            '--download_config={"try_download_gcs": false}',
        ],
        cwd=ROOT / start,
        env={**os.environ, "CUDA_VISIBLE_DEVICES": ""},
        check=True,
        timeout=300,
    )
    builder = tfds.builder_from_directory(tmp_path / name / "1.0.0")
    splits, *_ = DATASETS[name]
    for split, count in splits.items():
        assert len(clip_folders.examples(builder, split)) == count


def test_builders_know_of_the_package_only_files_films_and_gaze():
    for path in (ROOT / "data").rglob("*.py"):
        found = re.findall(r"(?:from|import) (lsts_tf\S*)", path.read_text())
        assert set(found) <= {"lsts_tf.media", "lsts_tf.scoring"}, path
