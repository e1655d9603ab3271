r"""A trained model as files that need nothing of this package.

    python -m lsts_tf.export --flagfile=RUN/experiment.flags \
        --format=saved_model --output=exported/1

Without a run it takes the starter, the trained model that comes with the
package; of that, as of each model with --front_end=continuous, the decoder
alone, features in. `saved_model` is a folder that plain TensorFlow and
TensorFlow Serving load: uint8 frames in, maps out, with all preprocessing
inside. `tflite` is a folder with `decoder.tflite`, features in, and
`window.tflite`, one window of squeezed frames (and flows) in. Beside either
lies `metadata.json`: which model, which weights and whether they are random,
what goes in and comes out, SHA-256 of each file. docs/export.md shows how all
of it is asked.

What was written is loaded again and compared with the model before the folder
gets its name. The program leaves with 0, or with 1 and nothing written.
"""

from collections.abc import Callable
from collections.abc import Iterator
from collections.abc import Mapping
from collections.abc import Sequence
import contextlib
import hashlib
import itertools
import json
import pathlib
import tempfile
from typing import Any
from typing import NamedTuple
import warnings

from absl import app
from absl import flags
from absl import logging
import cv2
import keras
import numpy as np
import tensorflow as tf

import lsts_tf
from lsts_tf import experiment
from lsts_tf import parts
from lsts_tf import predictor as predictor_lib
from lsts_tf import program
from lsts_tf.media import files
from lsts_tf.serving import graph as graph_lib

METADATA = "metadata.json"
DECODER = "decoder.tflite"
WINDOW = "window.tflite"
# A file that answers more than this beside the model is not handed over: two
# and a half of 256 grey levels. Rounding alone stays far below it.
_LIMIT = 0.01

_INPUTS = {
    "frames": "uint8 RGB, 0 … 255, any size, frame 0 first",
    "rgb": "I3D's RGB features, Mixed_5c averaged: 0 and more",
    "flow": "I3D's flow features, Mixed_5c averaged: 0 and more",
}
_SIGNALS = {
    "rgb": "uint8 RGB, 0 … 255: whole frames squeezed to this size, bilinear, "
    "by area where both sides are at least twice as long",
    "flow": "TV-L1 flow at this size, (x, y) in pixels a frame, oldest first",
}
_OUTPUT = "saliency: float32, 0 … 1"


class Parity(NamedTuple):
    """How far two ways to the same maps are apart.

    Attributes:
        largest_difference: Of all pixels, where maps are 0 … 1.
        peak_shift: Largest distance between the strongest points of a map, in
            pixels.
    """

    largest_difference: float
    peak_shift: float


def compare(got: np.ndarray, want: np.ndarray) -> Parity:
    """Compares maps, float [..., H, W].

    Raises:
        ValueError: They have different shapes.
    """
    if got.shape != want.shape:
        raise ValueError(
            "Only maps of one shape can be compared. "
            f"Received: {got.shape} and {want.shape}"
        )
    size = want.shape[-2:]
    points = [
        np.stack(np.unravel_index(np.argmax(flat, axis=1), size))
        for flat in (m.reshape(-1, size[0] * size[1]) for m in (got, want))
    ]
    shifts = np.hypot(*(points[0] - points[1]))
    return Parity(float(np.abs(got - want).max()), float(shifts.max()))


def export(
    predictor: predictor_lib.Predictor,
    output: pathlib.Path,
    *,
    file_format: str = "saved_model",
    about: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Writes a model in another format, whole or not at all.

    Args:
        predictor: The model.
        output: The folder to make.
        file_format: "saved_model" or "tflite".
        about: What else `metadata.json` is to say.

    Returns:
        What stands in `metadata.json`.

    Raises:
        FileExistsError: There is something at `output`.
        RuntimeError: What was written answers something else than the model.
        ValueError: Another format.
    """
    if file_format not in _FORMATS:
        raise ValueError(
            f"A format is one of {', '.join(_FORMATS)}. "
            f"Received: {file_format!r}"
        )
    graph = graph_lib.Graph(predictor)
    if graph.stops:
        logging.warning("Only features can be taken: %s.", graph.stops)
    if predictor.note:
        logging.warning("RANDOM WEIGHTS: %s", predictor.note)
    with files.new_folder(output) as folder:
        found = _FORMATS[file_format](predictor, graph, folder)
        for name, parity in found["parity"].items():
            logging.info(
                "%s: largest difference %.2g, strongest point shifted by %.1f "
                "pixels",
                name,
                *parity,
            )
            if not parity.largest_difference <= _LIMIT:
                raise RuntimeError(
                    f"What was written as {name!r} differs from the model by "
                    f"{parity.largest_difference}, so nothing is kept."
                )
        found |= {
            "parity": {n: p._asdict() for n, p in found["parity"].items()}
        }
        record = _describe(predictor, file_format) | dict(about or {}) | found
        record["files"] = dict(_checksums(folder))
        text = json.dumps(record, indent=2, ensure_ascii=False)
        files.write_text(folder / METADATA, text + "\n")
    return record


def _describe(
    predictor: predictor_lib.Predictor, file_format: str
) -> dict[str, Any]:
    return {
        "format": file_format,
        "lsts_tf": lsts_tf.__version__,
        "tensorflow": tf.__version__,
        "keras": keras.__version__,
        "streams": list(predictor.extractor.streams),
        "front_end": predictor.extractor.describe(),
        "random_weights": bool(predictor.note),
        "note": predictor.note,
    }


def _checksums(folder: pathlib.Path) -> Iterator[tuple[str, str]]:
    for path in sorted(folder.rglob("*")):
        if path.is_file():
            with path.open("rb") as file:
                digest = hashlib.file_digest(file, "sha256").hexdigest()
            yield str(path.relative_to(folder)), digest


def _saved_model(
    predictor: predictor_lib.Predictor,
    graph: graph_lib.Graph,
    folder: pathlib.Path,
) -> dict[str, Any]:
    functions = graph.functions()
    graph_lib.save(functions, graph.variables, str(folder))
    loaded = tf.saved_model.load(str(folder))
    calls = loaded.signatures
    features = _features(predictor)
    parity = {
        graph_lib.FEATURES: compare(
            calls[graph_lib.FEATURES](**features)["saliency"].numpy(),
            _of_features(predictor, features),
        )
    }
    if graph_lib.LAST in functions:
        frames = _frames()
        every = np.stack(list(predictor.maps(frames)))
        wanted = {graph_lib.LAST: every[-1], graph_lib.FRAMES: every}
        for name, want in wanted.items():
            got = calls[name](frames=tf.constant(frames[None]))
            parity[name] = compare(got["saliency"].numpy(), want[None])
    signatures = {
        name: _signature(function, _INPUTS)
        for name, function in functions.items()
    }
    return {
        "signatures": signatures,
        "left_out": {graph_lib.FRAMES: graph.stops} if graph.stops else {},
        "parity": parity,
    }


def _tflite(
    predictor: predictor_lib.Predictor,
    graph: graph_lib.Graph,
    folder: pathlib.Path,
) -> dict[str, Any]:
    extractor: Any = predictor.extractor
    if extractor.end_point != parts.MAIN:
        raise ValueError(
            "LiteRT has no pooling over time, and the decoder of a finetuned "
            "model holds blocks of I3D that pool. Received: a model tuned "
            f"behind {extractor.end_point}; export it by "
            "--format=saved_model."
        )
    decoder = graph.features(batch=1)
    _convert(decoder, graph.variables, folder / DECODER)
    features = _features(predictor)
    parity = {
        DECODER: compare(
            run_tflite(folder / DECODER, features),
            _of_features(predictor, features),
        )
    }
    signatures = {DECODER: _signature(decoder, _INPUTS)}
    if not graph.stops_window:
        window, variables = graph.clip()
        _convert(window, variables, folder / WINDOW)
        signals = _signals(predictor)
        encoded = {
            stream: np.asarray(
                predictor.extractor.encode_parts(stream, signal[0])[stream]
            )
            for stream, signal in signals.items()
        }
        parity[WINDOW] = compare(
            run_tflite(folder / WINDOW, signals),
            np.stack(list(predictor.of_features([encoded]))),
        )
        signatures[WINDOW] = _signature(window, _SIGNALS)
    return {
        "signatures": signatures,
        "left_out": {WINDOW: graph.stops_window} if graph.stops_window else {},
        "parity": parity,
    }


_FORMATS: dict[str, Callable[..., dict[str, Any]]] = {
    "saved_model": _saved_model,
    "tflite": _tflite,
}


def _signature(function: Any, meanings: Mapping[str, str]) -> dict[str, Any]:
    specs = function.structured_input_signature[1]
    return {
        "inputs": {
            name: {
                "dtype": spec.dtype.name,
                "shape": spec.shape.as_list(),
                "meaning": meanings[name.partition("_")[0]],
            }
            for name, spec in specs.items()
        },
        "output": _OUTPUT,
        "output_shape": function.structured_outputs["saliency"].shape.as_list(),
    }


def _convert(
    function: Any, variables: Sequence[Any], path: pathlib.Path
) -> None:
    """Writes a function as LiteRT, of operations that it has built in."""
    with tempfile.TemporaryDirectory() as folder:
        graph_lib.save({"serving_default": function}, variables, folder)
        converter = tf.lite.TFLiteConverter.from_saved_model(folder)
        path.write_bytes(converter.convert())


def run_tflite(
    path: pathlib.Path, inputs: Mapping[str, np.ndarray]
) -> np.ndarray:
    """Answers of a LiteRT file, [N, 360, 640], to inputs of N, one by one."""
    with deprecated_interpreter():
        interpreter = tf.lite.Interpreter(str(path))
    call = interpreter.get_signature_runner("serving_default")
    count = len(next(iter(inputs.values())))
    found = [
        call(**{name: array[k : k + 1] for name, array in inputs.items()})
        for k in range(count)
    ]
    return np.concatenate([answer["saliency"] for answer in found])


@contextlib.contextmanager
def deprecated_interpreter() -> Iterator[None]:
    """TensorFlow 2.21 still brings the interpreter, and warns of its end.

    Its successor, ai_edge_litert, reads the same files; it would be another
    dependency for one check.
    """
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=r"\s*Warning: tf\.lite")
        yield


# === What both ways are asked ===


def _features(predictor: predictor_lib.Predictor) -> dict[str, np.ndarray]:
    """Two windows' features as I3D leaves them: not negative, many zeros."""
    rng = np.random.default_rng(0)
    found = {}
    for stream in predictor.extractor.streams:
        for part, shape in predictor.extractor.part_shapes(stream).items():
            some = np.maximum(rng.normal(-0.1, 0.5, (2, *shape)), 0)
            found[part] = some.astype(np.float32)
    return found


def _of_features(
    predictor: predictor_lib.Predictor, features: Mapping[str, np.ndarray]
) -> np.ndarray:
    """Maps [N, 360, 640], or [N, hop, 360, 640] of several a window."""
    each = (
        dict(zip(features, some, strict=True))
        for some in zip(*features.values(), strict=True)
    )
    maps = np.stack(list(predictor.of_windows(each)))
    return maps if predictor.hop > 1 else maps[:, 0]


def _frames(count: int = 2) -> np.ndarray:
    """Frames of drifting blobs, uint8 [count, 90, 160, 3].

    Few: where motion is ambiguous, rounding alone may end TV-L1 elsewhere in
    single pixels, and the maps then say nothing of the graph. Two frames,
    mirrored, have two flows, and on these it does not.
    """
    rng = np.random.default_rng(0)
    coarse = rng.integers(0, 256, (9, 16, 3), np.uint8)
    scene = cv2.resize(coarse, (160, 90), interpolation=cv2.INTER_CUBIC)
    return np.stack([np.roll(scene, 2 * k, axis=1) for k in range(count)])


def _signals(predictor: predictor_lib.Predictor) -> dict[str, np.ndarray]:
    """One window of each stream: [1, window, h, w, channels]."""
    extractor = predictor.extractor
    frames = _frames(2)
    places = itertools.islice(itertools.cycle((0, 1)), extractor.window)
    found: dict[str, np.ndarray] = {}
    if "rgb" in extractor.streams:
        squeezed = [extractor.squeeze(frame) for frame in frames]
        found["rgb"] = np.stack([squeezed[k] for k in places])[None]
    if "flow" in extractor.streams:
        rng = np.random.default_rng(0)
        shape = (extractor.window, 8, 8, 2)
        coarse = rng.normal(0, 2, shape).astype(np.float32)
        rows, columns = parts.half(extractor.size)
        large = [cv2.resize(c, (columns, rows)) for c in coarse]
        found["flow"] = np.stack(large)[None]
    return found


def define_flags() -> None:
    """Flags of this program."""
    flags.DEFINE_enum("format", "saved_model", list(_FORMATS), "What to write.")
    flags.DEFINE_string("output", None, "Folder to make.", required=True)
    flags.DEFINE_enum(
        "model",
        "last",
        list(predictor_lib.MODELS),
        "Model after the last epoch, or the best in validation.",
    )


def main(_: Sequence[str]) -> None:
    """Export as the flags say."""
    values = flags.FLAGS
    with program.terminable(), program.exit_codes():
        run = experiment.chosen_run()
        predictor = predictor_lib.Predictor.load(
            run.folder, model=values.model, sources=run.sources
        )
        export(
            predictor,
            pathlib.Path(values.output),
            file_format=values.format,
            about={"run": run.name, "model": values.model},
        )
        logging.info("Written: %s", values.output)


if __name__ == "__main__":
    experiment.define_flags()
    define_flags()
    app.run(main)
