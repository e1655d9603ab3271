"""What the tests of all dataset builders share.

A test's module names its dataset, `DATASET`; a test may name another one.
"""

import importlib
import re

import pytest

import film_dataset
from tests import clip_folders


def builder_of(name):
    return importlib.import_module(f"{name}.{name}_dataset_builder").Builder


@pytest.fixture(autouse=True)
def one_process(monkeypatch):
    """Each other one would import TensorFlow."""
    monkeypatch.setattr(film_dataset, "PROCESSES", 1)


@pytest.fixture
def manual(tmp_path):
    folder = tmp_path / "manual"
    folder.mkdir()
    return folder


@pytest.fixture
def build(manual, tmp_path, request):
    """Builds what is in `manual`, and returns {split: {number: example}}."""

    def check(name=None):
        builder = clip_folders.build(
            builder_of(name or request.module.DATASET),
            manual,
            tmp_path / "tfds",
        )
        return {
            split: clip_folders.examples(builder, split)
            for split in builder.info.splits
        }

    return check


@pytest.fixture
def refused(manual, tmp_path, request):
    """Asserts that a build fails and that the message says all the words."""

    def check(*words, name=None):
        builder = builder_of(name or request.module.DATASET)
        with pytest.raises(ValueError, match=r"Received: ") as caught:
            clip_folders.build(builder, manual, tmp_path / "tfds")
        for word in words:
            assert re.search(word, str(caught.value)), str(caught.value)
        assert not list((tmp_path / "tfds").glob("*/1.0.0/*"))

    return check
