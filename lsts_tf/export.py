r"""Export a trained model to files that run elsewhere.

    python -m lsts_tf.export --flagfile=RUN/experiment.flags \
        --format=saved_model --output=exported/1

Without a run it takes the starter, the trained model that comes with the
package. Of a model with --front_end=continuous, such as the starter, only the
decoder is exported, which takes features. `saved_model` is a folder that plain
TensorFlow and TensorFlow Serving load: uint8 frames in, maps out, with all
preprocessing inside. `tflite` is a folder with `decoder.tflite`, which takes
features, and `window.tflite`, which takes one window of squeezed frames (and
flows); neither needs this package. `hub` is a run folder for a model hub, which
`Predictor.load` reads. `metadata.json` beside them names the model, its weights
and whether they are random, inputs and outputs, and the SHA-256 of each file.
docs/export.md shows how to call them.

What was written is loaded again and compared with the model before the folder
gets its name. The program exits with 0, or with 1 and nothing written.
"""

from collections.abc import Mapping, Sequence
import json
import pathlib
from typing import TYPE_CHECKING, Any

from absl import app, flags, logging

import lsts_tf
from lsts_tf import experiment, option, program
from lsts_tf.media import files

if TYPE_CHECKING:
    from lsts_tf import predictor as predictor_lib

# Each is a function of `serving.formats`.
FORMATS = ("saved_model", "tflite", "hub")
METADATA = "metadata.json"


def export(
    predictor: "predictor_lib.Predictor",
    output: pathlib.Path,
    *,
    file_format: str = "saved_model",
    about: Mapping[str, Any] | None = None,
    run: pathlib.Path | None = None,
) -> dict[str, Any]:
    """Writes a model in one of `FORMATS`, whole or not at all.

    It makes the folder `output`; "hub" needs the run folder that the model is
    of. `about` is what else `metadata.json` is to say; what stands there is
    returned.

    Raises:
        FileExistsError: There is something at `output`.
        RuntimeError: What was written answers something else than the model.
        ValueError: Another format, or "hub" without a run.
    """
    if file_format not in FORMATS:
        raise ValueError(
            f"A format is one of {', '.join(FORMATS)}. "
            f"Received: {file_format!r}"
        )
    if file_format == "hub" and run is None:
        raise ValueError("The format hub needs a run. Received: run=None")
    # TensorFlow takes seconds: help and errors above do not wait for it.
    import keras
    import tensorflow as tf

    from lsts_tf.serving import formats, hub
    from lsts_tf.serving import graph as graph_lib

    graph = graph_lib.Graph(predictor)
    if graph.stops and file_format != "hub":
        logging.warning(
            "The exported model takes only features: %s.", graph.stops
        )
    if predictor.note:
        logging.warning("RANDOM WEIGHTS: %s", predictor.note)
    with files.new_folder(output) as folder:
        write = getattr(formats, file_format)
        answers, left_out = write(graph, folder)
        if run and file_format == "hub":
            hub.complete(folder, run, name=str(output), note=predictor.note)
        record = {
            "format": file_format,
            "lsts_tf": lsts_tf.__version__,
            "tensorflow": tf.__version__,
            "keras": keras.__version__,
            "streams": list(predictor.extractor.streams),
            "front_end": predictor.extractor.describe(),
            "random_weights": bool(predictor.note),
            "note": predictor.note,
            **(about or {}),
            "signatures": {n: a.signature() for n, a in answers.items()},
            "left_out": left_out,
            "parity": {n: a.parity(n) for n, a in answers.items()},
            "files": {
                str(path.relative_to(folder)): files.sha256(path)
                for path in sorted(folder.rglob("*"))
                if path.is_file()
            },
        }
        text = json.dumps(record, indent=2, ensure_ascii=False)
        files.write_text(folder / METADATA, text + "\n")
    return record


def define_flags() -> None:
    """Flags of this program."""
    flags.DEFINE_enum("format", "saved_model", list(FORMATS), "Format to write")
    flags.DEFINE_string("output", None, "Folder to make", required=True)
    option.define_flags(experiment.MODEL_FLAG)


def main(_: Sequence[str]) -> None:
    """Export as the flags say."""
    values = flags.FLAGS
    with program.terminable(), program.exit_codes():
        run = experiment.chosen_run()
        # As in `export`.
        from lsts_tf import predictor as predictor_lib

        predictor = predictor_lib.Predictor.load(
            run.folder, model=values.model, sources=run.sources
        )
        export(
            predictor,
            pathlib.Path(values.output),
            file_format=values.format,
            about={"run": run.run_name, "model": values.model},
            run=run.folder,
        )
        logging.info("Written: %s", values.output)


if __name__ == "__main__":
    experiment.define_flags()
    define_flags()
    app.run(main)
