"""What the tests of all dataset builders share."""

import re

import pytest

from tests import clip_folders


@pytest.fixture
def manual(tmp_path):
    folder = tmp_path / "manual"
    folder.mkdir()
    return folder


@pytest.fixture
def refused_by(manual, tmp_path):
    """Asserts that a build fails and that the message says all the words."""

    def check(builder, *words):
        with pytest.raises(ValueError, match=r"Received: ") as caught:
            clip_folders.build(builder, manual, tmp_path / "tfds")
        for word in words:
            assert re.search(word, str(caught.value)), str(caught.value)
        assert not list((tmp_path / "tfds").glob("*/1.0.0/*"))

    return check
