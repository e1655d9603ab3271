"""What is exported answers as the model does, and stands there whole."""

import collections
import copy
import hashlib
import io
import itertools
import json
import subprocess
import sys
import types
from unittest import mock
import urllib.request

import keras
import numpy as np
import pytest
import tensorflow as tf
from tensorflow.core.framework import tensor_pb2

import lsts_tf
from lsts_tf import experiment, export
from lsts_tf import predictor as predictor_lib
from lsts_tf.features import front_end, preprocess
from lsts_tf.networks import decoder, i3d
from lsts_tf.serving import formats, litert
from lsts_tf.serving import graph as graph_lib
from tests import folders, pages, tiny_run

EVERY = {"features", "last", "serving_default"}
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
    found = formats.compare(np.reshape(got, want.shape), want)
    sys.stdout.write(f"{name}: {found}\n")
    # A comparison of flat maps would prove nothing.
    assert want.max() - want.min() > 0.1
    assert found["largest_difference"] < CLOSE
    assert found["peak_shift"] == 0


def assert_close(record):
    """All that was written."""
    for found in record["parity"].values():
        assert found["largest_difference"] < CLOSE
        assert found["peak_shift"] == 0


def test_plain_tensorflow_answers_as_the_model(
    predictor, exported, clips, maps, tmp_path
):
    rng = np.random.default_rng(3)
    shape = (3, *predictor.extractor.feature_shape)
    rgb = np.maximum(rng.normal(-0.1, 0.5, shape), 0).astype(np.float32)
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


def test_frames_may_be_squeezed_by_the_client(signatures, clips, maps):
    squeezed = np.stack([preprocess.squeeze(frame) for frame in clips[0]])
    got = signatures.last(frames=tf.constant(squeezed[None]))["saliency"]
    close("squeezed", got, maps[:1, -1])


def answer(signatures, name, values):
    """As the server does: by name, and of the type that is said there."""
    call = getattr(signatures, name)
    specs = call.structured_input_signature[1]
    assert specs.keys() == values.keys()
    return call(
        **{n: tf.constant(v, specs[n].dtype) for n, v in values.items()}
    )


def rest(signatures):
    """In the place of `urlopen`, with a server behind it."""

    def urlopen(url, data):
        assert url == "http://localhost:8501/v1/models/lsts:predict"
        body = json.loads(data)
        found = answer(signatures, body["signature_name"], body["inputs"])
        # Of an only output there is no name.
        (found,) = found.values()
        reply = json.dumps({"outputs": found.numpy().tolist()})
        return io.BytesIO(reply.encode())

    return urlopen


def grpc(signatures):
    """In the place of the modules that gRPC needs, with a server behind it."""

    def predict(request, timeout):
        assert request.model_spec.name == "lsts" and timeout > 0
        values = {n: tf.make_ndarray(v) for n, v in request.inputs.items()}
        found = answer(signatures, request.model_spec.signature_name, values)
        outputs = {n: tf.make_tensor_proto(v) for n, v in found.items()}
        return types.SimpleNamespace(outputs=outputs)

    apis = mock.MagicMock()
    apis.predict_pb2.PredictRequest.side_effect = lambda: mock.MagicMock(
        inputs=collections.defaultdict(tensor_pb2.TensorProto)
    )
    stub = apis.prediction_service_pb2_grpc.PredictionServiceStub.return_value
    stub.Predict.side_effect = predict
    return {
        "grpc": mock.MagicMock(),
        "tensorflow_serving": types.ModuleType("tensorflow_serving"),
        "tensorflow_serving.apis": apis,
    }


@pytest.mark.filterwarnings(r"ignore:\s*Warning. tf.lite")
def test_the_pages_code(
    exported, signatures, tflite, clips, maps, tmp_path, monkeypatch
):
    """Of SavedModel, both kinds of requests, and LiteRT, on nine frames."""
    monkeypatch.chdir(tmp_path)
    place = tmp_path / "workspace" / "exported"
    place.mkdir(parents=True)
    (place / "lsts").symlink_to(exported[0].parent)
    (place / "lite").symlink_to(tflite)
    monkeypatch.setattr(urllib.request, "urlopen", rest(signatures))
    lite = types.SimpleNamespace(interpreter=tf.lite)
    modules = {**grpc(signatures), "ai_edge_litert": lite}
    for name, module in modules.items():
        monkeypatch.setitem(sys.modules, name, module)
    blocks = pages.run_python("export.md", replace=("79", str(tiny_run.WINDOW)))
    names = next(blocks)
    assert names["frames"].shape == (1, tiny_run.WINDOW, 360, 640, 3)
    of_black = names["saliency"].numpy()
    assert of_black.shape == (1, 360, 640)
    # Smaller ones: text of a whole window of them is long.
    names["frames"] = clips[:1]
    for kind in ("rest", "grpc"):
        next(blocks)
        close(kind, names["saliency"], maps[:1, -1])
    # A clip is larger than gRPC's limit.
    modules["grpc"].insecure_channel.assert_called_once_with(
        "localhost:8500", options=[("grpc.max_receive_message_length", -1)]
    )
    next(blocks)
    np.testing.assert_allclose(names["saliency"], of_black, atol=CLOSE)
    assert next(blocks, None) is None


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
    assert record["left_out"] == {}
    assert record["signatures"].keys() == record["parity"].keys() == EVERY
    assert_close(record)
    there = {
        place: hashlib.sha256(data).hexdigest()
        for place, data in folders.files(output).items()
        if place != "metadata.json"
    }
    assert "saved_model.pb" in there
    assert record["files"] == there


def test_what_stands_there_stays(predictor, exported):
    before = (exported[0] / "metadata.json").read_bytes()
    with pytest.raises(FileExistsError, match="already"):
        export.export(predictor, exported[0])
    with pytest.raises(ValueError, match="saved_model, tflite"):
        export.export(predictor, exported[0], file_format="onnx")
    assert (exported[0] / "metadata.json").read_bytes() == before


def test_frames_that_are_answered_wrongly_do_not_appear(
    light, tmp_path, monkeypatch
):
    """The maps of a clip in another order, and its last one as it is."""
    monkeypatch.setattr(graph_lib, "_motion", motion_in_graph)
    of_clip = graph_lib.Graph._of_clip

    def backwards(graph, clip, *, only_last):
        return of_clip(graph, clip, only_last=only_last)[::-1]

    monkeypatch.setattr(graph_lib.Graph, "_of_clip", backwards)
    with pytest.raises(RuntimeError, match="'serving_default' differs"):
        export.export(light, tmp_path / "deep" / "1")
    assert list((tmp_path / "deep").iterdir()) == []


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
        cwd=pages.ROOT,
    )
    return output


def test_the_whole_model_in_litert(predictor, folder, tflite):
    """One window, through I3D and decoder, and the record beside it."""
    clip = tiny_run.frames(tiny_run.WINDOW, 90, 160)
    squeezed = np.stack([preprocess.squeeze(frame) for frame in clip])
    got = litert.run(tflite / "window.tflite", {"rgb": squeezed[None]})
    found = predictor.extractor.features("rgb", squeezed, length=len(clip))
    want = list(predictor.of_features(found))
    close("window.tflite", got, np.stack(want))
    record = json.loads((tflite / "metadata.json").read_text())
    assert set(record["files"]) == {"decoder.tflite", "window.tflite"}
    assert set(record["parity"]) == set(record["files"])
    # Where a map has several maxima, rounding decides which is the first.
    for found in record["parity"].values():
        assert found["largest_difference"] < CLOSE
    assert record["run"] == str(folder)
    assert record["model"] == "last"
    window = record["signatures"]["window.tflite"]["inputs"]["rgb"]
    assert window["shape"] == [1, tiny_run.WINDOW, 224, 224, 3]
    assert window["dtype"] == "uint8"
    assert [p.name for p in tflite.parent.iterdir()] == ["lite"]


class Light(front_end.FrontEnd):
    """Two layers in the place of I3D, and differences in that of TV-L1."""

    def __init__(self, streams):
        super().__init__(streams, window=16, name="light", size=(64, 64))
        self.flow = Differences()
        channels = {"rgb": 3, "flow": 2}
        self.networks = {s: two_layers(channels[s]) for s in streams}

    def part_shapes(self, stream):
        return {stream: (3, 6, 6, 8)}

    def describe(self):
        return {"streams": {stream: {} for stream in self.streams}}

    def encode_parts(self, stream, clip):
        x = preprocess.rgb(clip)
        if stream == "flow":
            x = preprocess.flow(clip, self.size)
        return {stream: i3d.pool(self.networks[stream](x[None]))[0]}


def two_layers(channels):
    """float [B, 16, 64, 64, channels] to [B, 8, 8, 8, 8]; frames differ."""
    x = signals = keras.Input((None, 64, 64, channels))
    x = keras.layers.Conv3D(
        8, (3, 7, 7), (1, 8, 8), padding="same", activation="relu"
    )(x)
    x = keras.layers.MaxPooling3D((3, 3, 3), (2, 1, 1), padding="same")(x)
    return keras.Model(signals, x)


def motion(first, second):
    """Tells which frame is the earlier one; exact, unlike any real flow.

    float32 [h, w] of 0 … 255 to [h, w, 2], pixels a frame.
    """
    return tf.stack([second - first, second / 2 - first], axis=-1) / 16


def motion_in_graph(first, second):
    """As `graph_lib._motion`."""
    pair = (tf.cast(g, tf.float32) for g in (first, second))
    return tf.cast(motion(*pair), tf.float16)


class Differences:
    """As `flow.Flow`."""

    name = "tvl1"

    def pairs(self, grays, *, chunk=None):  # noqa: ARG002
        for pair in itertools.pairwise(grays):
            yield motion(*(tf.cast(g, tf.float32) for g in pair)).numpy()


@pytest.fixture(scope="module")
def light():
    extractor = Light(("rgb", "flow"))
    model = decoder.build(
        extractor.streams, feature_shape=extractor.feature_shape, seed=0
    )
    tiny_run.calibrate(model, extractor)
    return predictor_lib.Predictor(model, extractor)


def test_flow_of_every_frame_inside_the_graph(light, tmp_path, monkeypatch):
    """Grey frames, pairs, a held start and windows of both streams.

    That TV-L1 is the same in a graph: features/tvl1_test.py, and slow below.
    """
    monkeypatch.setattr(graph_lib, "_motion", motion_in_graph)
    record = export.export(light, tmp_path / "out")
    assert record["parity"].keys() == EVERY
    loaded = tf.saved_model.load(str(tmp_path / "out"))
    # Held to the end; and two frames that have a window of their own.
    for count in (2, 18):
        clip = tiny_run.frames(count)
        frames = tf.constant(clip[None])
        want = light(clip)
        every = loaded.signatures["serving_default"](frames=frames)["saliency"]
        close(f"{count} frames with flow", every[0], want)
        last = loaded.signatures["last"](frames=frames)["saliency"]
        close("the last", last, want[-1:])
    assert np.abs(want[0] - want[-1]).max() > 0.01


def test_flow_in_litert(light, tmp_path):
    """A window of both streams: each input by its name, of its range."""
    record = export.export(light, tmp_path / "lite", file_format="tflite")
    inputs = record["signatures"]["window.tflite"]["inputs"]
    assert inputs["rgb"]["shape"] == [1, 16, 64, 64, 3]
    assert inputs["flow"]["shape"] == [1, 16, 32, 32, 2]
    assert_close(record)


@pytest.mark.slow
def test_flow_inside_the_graph(tmp_path):
    """I3D and TV-L1 themselves in both streams' windows."""
    tiny_run.make(tmp_path / "run", ("rgb", "flow"))
    predictor = predictor_lib.Predictor.load(tmp_path / "run")
    record = export.export(predictor, tmp_path / "out")
    sys.stdout.write(f"rgb, flow: {record['parity']}\n")
    assert record["parity"].keys() == EVERY
    for found in record["parity"].values():
        # Grey frames differ by a level in a few pixels; see `resize`.
        assert found["largest_difference"] < 0.01
        assert found["peak_shift"] <= 1


@pytest.mark.parametrize(
    ("what", "message"),
    [
        ({"delay": 47}, "sees 47 frames beyond a window"),
        ({"describe": lambda: {"dtype": "bfloat16"}}, "in bfloat16"),
        ({"flow": types.SimpleNamespace(name="dis")}, "'dis' is OpenCV's"),
    ],
)
def test_what_stops_frames_is_said(light, what, message):
    extractor = copy.copy(light.extractor)
    extractor.__class__ = type("Other", (Light,), what)  # Of what it computes,
    vars(extractor).update(what)  # and of what it is given.
    other = predictor_lib.Predictor(light.model, extractor)
    assert graph_lib.Graph(light).stops == ""
    graph = graph_lib.Graph(other)
    assert message in graph.stops
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
    assert "8 maps per window" in record["left_out"][graph_lib.FRAMES]
    output = record["signatures"]["features"]["output_shape"]
    assert output == [None, 8, 360, 640]
    assert record["parity"]["features"]["largest_difference"] < 1e-5


def test_a_decoder_may_pool_over_time(light, tmp_path):
    """As that of a finetuned model, which LiteRT itself cannot."""
    shape = light.extractor.feature_shape
    features = {s: keras.Input(shape, name=s) for s in ("rgb", "flow")}
    with keras.RematScope("full"):
        pool = keras.layers.AveragePooling3D((2, 1, 1))
    pooled = pool(features["rgb"])[:, 0]
    model = keras.Model(features, pooled)
    tuned = predictor_lib.Predictor(model, light.extractor)
    record = export.export(tuned, tmp_path / "lite", file_format="tflite")
    assert len(record["parity"]) == 2
    assert_close(record)


def test_comparing_finds_what_moved():
    want = np.zeros((2, 5, 6))
    want[:, 1, 1] = 1
    got = want.copy()
    got[1, 1, 1], got[1, 4, 5] = 0, 0.75
    assert list(formats.compare(got, want).values()) == [1.0, 5.0]
    assert list(formats.compare(want, want).values()) == [0.0, 0.0]
    with pytest.raises(ValueError, match="one shape"):
        formats.compare(got[:1], want)
