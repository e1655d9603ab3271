"""Where people look in a video: LSTS in TensorFlow and Keras.

Seven packages: `media` (pixels and files), `networks` (pure Keras 3),
`features` (frames to stored features), `scoring` (maps to numbers),
`training` (features to a model), `outputs` (maps to files) and `serving` (a
model as a graph). Above them stand `experiment` (a run's settings), `windows`
(which frames), `predictor` and the programs, `lsts <verb>` or `python -m
lsts_tf.<verb>`: `sample`, `extract`, `train`, `evaluate`, `predict`, `export`.

`lsts_tf.Predictor` is a trained model, from frames to maps: docs/api.md.
"""

import os
from typing import Any

__version__ = "1.0.0"

# TensorFlow switches oneDNN on by itself only on CPUs with AVX-512 VNNI; I3D
# takes 2.1 times less CPU with it elsewhere too (docs/performance.md). It has
# to be set before TensorFlow is imported.
os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "1")


def __getattr__(name: str) -> Any:
    """`Predictor`, imported when it is asked for: TensorFlow takes seconds."""
    if name == "Predictor":
        from lsts_tf import predictor

        return predictor.Predictor
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
