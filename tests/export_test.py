"""What is exported answers as the model does, and stands there whole."""

import hashlib
import json
import pathlib
import subprocess
import sys
import types

from absl import logging
import numpy as np
import pytest
import tensorflow as tf

import lsts_tf
from lsts_tf import decoder
from lsts_tf import experiment
from lsts_tf import export
from lsts_tf import predictor as predictor_lib
from lsts_tf import preprocess
from lsts_tf import serving
from lsts_tf import windows
from tests import tiny_run

ROOT = pathlib.Path(__file__).parents[1]
# What rounding does to maps in 0 … 1.
CLOSE = 1e-4

# Plain TensorFlow: whoever imports one of these fails.
PLAIN = """
import sys
for name in ("lsts_tf", "keras", "cv2"):
    sys.modules[name] = None
import numpy as np
import tensorflow as tf

loaded = tf.saved_model.load(sys.argv[1])
asked = np.load(sys.argv[2])
frames = tf.constant(asked["frames"])
every = loaded.signatures["serving_default"](frames=frames)
last = loaded.signatures["last"](frames=frames)
maps = loaded.signatures["features"](rgb=tf.constant(asked["rgb"]))
np.savez(
    sys.argv[3],
    every=every["saliency"], last=last["saliency"], maps=maps["saliency"],
)
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("export") / "run"
    tiny_run.make(folder)
    return folder


@pytest.fixture(scope="module")
def predictor(folder):
    return predictor_lib.Predictor.load(folder)


@pytest.fixture(scope="module")
def exported(predictor, tmp_path_factory):
    output = tmp_path_factory.mktemp("exported") / "lsts" / "1"
    return output, export.export(predictor, output)


@pytest.fixture(scope="module")
def signatures(exported):
    loaded = tf.saved_model.load(str(exported[0]))
    return types.SimpleNamespace(loaded=loaded, **loaded.signatures)


@pytest.fixture(scope="module")
def clips():
    """Two clips of three frames, of an odd size."""
    return np.stack([tiny_run.frames(3, seed=k) for k in (1, 2)])


@pytest.fixture(scope="module")
def maps(predictor, clips):
    return np.stack([predictor(clip) for clip in clips])


def close(name, got, want):
    """Compare and say how far apart they are."""
    flat = (-1, *want.shape[-2:])
    parity = export.compare(
        np.asarray(got).reshape(flat), np.asarray(want).reshape(flat)
    )
    logging.info("%s: %s", name, parity)
    sys.stdout.write(f"{name}: {parity}\n")
    # A comparison of flat maps would prove nothing.
    assert want.max() - want.min() > 0.1
    assert parity.largest_difference < CLOSE
    assert parity.peak_shift == 0


def features(predictor, count):
    rng = np.random.default_rng(3)
    shape = (count, *predictor.extractor.feature_shape)
    return np.maximum(rng.normal(-0.1, 0.5, shape), 0).astype(np.float32)


def test_plain_tensorflow_answers_as_the_model(
    predictor, exported, clips, maps, tmp_path
):
    rgb = features(predictor, 3)
    np.savez(tmp_path / "asked.npz", frames=clips, rgb=rgb)
    subprocess.run(
        [
            *(sys.executable, "-I", "-c", PLAIN, str(exported[0])),
            *(str(tmp_path / "asked.npz"), str(tmp_path / "answer.npz")),
        ],
        check=True,
        cwd=tmp_path,
    )
    answer = np.load(tmp_path / "answer.npz")
    close("frames", answer["every"], maps)
    close("last", answer["last"], maps[:, -1])
    want = list(predictor.of_features({"rgb": f} for f in rgb))
    close("features", answer["maps"], np.stack(want))


def test_clips_longer_than_a_window(predictor, signatures):
    clip = tiny_run.frames(tiny_run.WINDOW + 2, 32, 48)
    got = signatures.last(frames=tf.constant(clip[None]))["saliency"]
    close("long", got, predictor(clip)[-1:])


def test_frames_may_be_squeezed_by_the_client(signatures, clips, maps):
    squeezed = np.stack([preprocess.squeeze(frame) for frame in clips[0]])
    got = signatures.last(frames=tf.constant(squeezed[None]))["saliency"]
    close("squeezed", got, maps[:1, -1])


def test_a_request_as_tensorflow_serving_reads_it(signatures, clips, maps):
    """The page's JSON, read as the server does, without a server."""
    page = (ROOT / "docs" / "export.md").read_text()
    assert '{"signature_name": "last", "inputs": {"frames": ' in page
    text = json.dumps(
        {"signature_name": "last", "inputs": {"frames": clips[:1].tolist()}}
    )
    request = json.loads(text)
    call = getattr(signatures, request["signature_name"])
    specs = call.structured_input_signature[1]
    assert specs.keys() == request["inputs"].keys()
    tensors = {
        name: tf.constant(value, specs[name].dtype)
        for name, value in request["inputs"].items()
    }
    close("request", call(**tensors)["saliency"], maps[:1, -1])


def test_the_record_beside_it(exported):
    output, record = exported
    assert json.loads((output / "metadata.json").read_text()) == record
    assert record["lsts_tf"] == lsts_tf.__version__
    assert record["random_weights"] is True
    assert record["note"] == "random I3D weights (rgb)"
    assert record["front_end"]["window"] == tiny_run.WINDOW
    frames = record["signatures"]["serving_default"]
    assert frames["inputs"]["frames"]["shape"] == [None, None, None, None, 3]
    assert frames["inputs"]["frames"]["dtype"] == "uint8"
    assert frames["output_shape"][-2:] == [360, 640]
    assert set(record["signatures"]) == {"serving_default", "last", "features"}
    assert record["left_out"] == {}
    for parity in record["parity"].values():
        assert parity["largest_difference"] < CLOSE
        assert parity["peak_shift"] == 0
    there = {
        str(path.relative_to(output)): hashlib.sha256(path.read_bytes())
        for path in output.rglob("*")
        if path.is_file() and path.name != "metadata.json"
    }
    assert "saved_model.pb" in there
    assert record["files"] == {n: d.hexdigest() for n, d in there.items()}


def test_what_stands_there_stays(predictor, exported):
    before = (exported[0] / "metadata.json").read_bytes()
    with pytest.raises(FileExistsError, match="already"):
        export.export(predictor, exported[0])
    assert (exported[0] / "metadata.json").read_bytes() == before


def test_a_file_that_answers_wrongly_does_not_appear(
    predictor, tmp_path, monkeypatch
):
    monkeypatch.setattr(serving.Graph, "functions", wrong_functions)
    with pytest.raises(RuntimeError, match="'features' differs"):
        export.export(predictor, tmp_path / "deep" / "1")
    assert list((tmp_path / "deep").iterdir()) == []


def wrong_functions(graph):
    decode = graph._decode
    graph._decode = lambda **f: {"saliency": 1 - decode(**f)["saliency"]}
    return {"features": graph.features()}


def test_another_format_is_refused(predictor, tmp_path):
    with pytest.raises(ValueError, match="saved_model, tflite"):
        export.export(predictor, tmp_path / "x", file_format="onnx")


@pytest.fixture(scope="module")
def tflite(folder, tmp_path_factory):
    """The folder of LiteRT files, by the program."""
    output = tmp_path_factory.mktemp("tflite") / "lite"
    subprocess.run(
        [
            *(sys.executable, "-m", "lsts_tf.export", "--format=tflite"),
            f"--flagfile={folder / experiment.FLAGFILE}",
            f"--output={output}",
        ],
        check=True,
        cwd=ROOT,
    )
    return output


def test_the_decoder_in_litert(predictor, tflite):
    rgb = features(predictor, 2)
    got = export.run_tflite(tflite / "decoder.tflite", {"rgb": rgb})
    want = list(predictor.of_features({"rgb": f} for f in rgb))
    close("decoder.tflite", got, np.stack(want))


def test_the_whole_model_in_litert(predictor, tflite):
    """One window, through I3D and decoder."""
    clip = tiny_run.frames(tiny_run.WINDOW, 90, 160)
    squeezed = np.stack([preprocess.squeeze(frame) for frame in clip])
    got = export.run_tflite(tflite / "window.tflite", {"rgb": squeezed[None]})
    found = predictor.extractor.features("rgb", squeezed, length=len(clip))
    want = list(predictor.of_features({"rgb": f} for f in found))
    close("window.tflite", got, np.stack(want))


def test_the_record_beside_litert(folder, tflite):
    record = json.loads((tflite / "metadata.json").read_text())
    assert set(record["files"]) == {"decoder.tflite", "window.tflite"}
    assert record["run"] == str(folder)
    assert record["model"] == "last"
    window = record["signatures"]["window.tflite"]["inputs"]["rgb"]
    assert window["shape"] == [1, tiny_run.WINDOW, 224, 224, 3]
    assert window["dtype"] == "uint8"
    assert [p.name for p in tflite.parent.iterdir()] == ["lite"]


@pytest.mark.slow
def test_flow_inside_the_graph(tmp_path):
    """TV-L1 of frames as they come, mirrored, in both streams' windows."""
    tiny_run.make(tmp_path / "run", ("rgb", "flow"))
    predictor = predictor_lib.Predictor.load(tmp_path / "run")
    record = export.export(predictor, tmp_path / "out")
    sys.stdout.write(f"rgb, flow: {record['parity']}\n")
    assert set(record["parity"]) == {"features", "last"}
    for parity in record["parity"].values():
        assert parity["largest_difference"] < 10 * CLOSE
        assert parity["peak_shift"] <= 1


@pytest.mark.parametrize("count", range(1, 6))
def test_mirroring_is_that_of_the_programs(count):
    for missing in range(1, 13):
        places = tf.range(-missing, count)
        want = (*windows.prefix(missing, count, "mirror"), *range(count))
        got = serving.mirrored(places, tf.constant(count))
        np.testing.assert_array_equal(got, want)


@pytest.mark.parametrize(
    ("what", "message"),
    [
        ({"front_end": "continuous"}, "from frame to frame"),
        ({"dtype": "bfloat16"}, "sliding_i3d"),
        ({"flow": types.SimpleNamespace(name="dis")}, "'dis' is OpenCV's"),
    ],
)
def test_what_stops_frames_is_said(predictor, what, message):
    extractor = types.SimpleNamespace(
        front_end="window",
        dtype="float32",
        streams=("rgb", "flow"),
        flow=types.SimpleNamespace(name="tvl1"),
        feature_shape=predictor.extractor.feature_shape,
        networks={},
        encode_parts=predictor.extractor.encode_parts,
        part_shapes=predictor.extractor.part_shapes,
        skips=(),
        end_point="Mixed_5c",
    )
    some = types.SimpleNamespace(
        model=predictor.model,
        extractor=extractor,
        geometry=predictor.geometry,
        hop=1,
    )
    assert serving.Graph(some).stops == ""
    for name, value in what.items():
        setattr(extractor, name, value)
    graph = serving.Graph(some)
    assert message in graph.stops
    assert len(graph.variables) == len(predictor.model.variables)
    # The features of the model that is there.
    extractor.streams = ("rgb",)
    assert set(graph.functions()) == {"features"}


def test_several_maps_of_a_window_at_once(predictor, tmp_path):
    """Frames stop it, features do not."""
    several = predictor_lib.Predictor(
        decoder.build(
            ("rgb",), feature_shape=predictor.extractor.feature_shape, targets=8
        ),
        predictor.extractor,
    )
    record = export.export(several, tmp_path / "saved")
    assert set(record["signatures"]) == {"features"}
    assert "8 maps of a window" in record["left_out"][serving.FRAMES]
    loaded = tf.saved_model.load(str(tmp_path / "saved"))
    rgb = features(several, 3)
    got = loaded.signatures["features"](rgb=tf.constant(rgb))["saliency"]
    want = np.stack(list(several.of_windows({"rgb": f} for f in rgb)))
    assert got.shape == want.shape == (3, 8, 360, 640)
    np.testing.assert_allclose(got, want, atol=1e-5)


def test_a_finetuned_decoder_is_not_for_litert(
    predictor, monkeypatch, tmp_path
):
    monkeypatch.setattr(predictor.extractor, "end_point", "MaxPool3d_5a_2x2")
    with pytest.raises(ValueError, match="behind MaxPool3d_5a_2x2"):
        export.export(predictor, tmp_path / "lite", file_format="tflite")
    assert list(tmp_path.iterdir()) == []


def test_comparing_finds_what_moved():
    want = np.zeros((2, 5, 6))
    want[:, 1, 1] = 1
    got = want.copy()
    got[1, 1, 1], got[1, 4, 5] = 0, 0.75
    assert export.compare(got, want) == (1.0, 5.0)
    assert export.compare(want, want) == (0.0, 0.0)
    with pytest.raises(ValueError, match="one shape"):
        export.compare(got[:1], want)
