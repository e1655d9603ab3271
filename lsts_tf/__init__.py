"""Where people look in a video: LSTS in TensorFlow and Keras.

The modules in the order of the data's walk: `windows`, `parts`, `experiment`
are the words; `video`, `sources`, `flow`, `preprocess`, `metrics`, `losses`,
`overlay` the signals; `i3d`, `i3d_weights`, `sliding_i3d`, `tuned_i3d`,
`decoder`, `layers`, `optimizers` the networks; `dataset`, `stores`, `maps`,
`predictions`, `annotations`, `fixations` what is on disk; `extractor`,
`joint`, `input_pipeline`, `trainer`, `accumulation`, `devices`,
`checkpoints`, `monitor`, `predictor`, `serving`, `scorer`, `jobs`, `workers`,
`cluster`, `charts` the assembly; `outputs`, `sink`, `attention`, `encoding`,
`reframe`, `report` what is made of maps.
Programs are `python -m lsts_tf.<verb>`: `sample`, `extract`, `train`,
`evaluate`, `predict`, `export`.

`lsts_tf.Predictor` is a trained model, from frames to maps: docs/api.md.
"""

import os
from typing import Any

__version__ = "0.1.0"

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
