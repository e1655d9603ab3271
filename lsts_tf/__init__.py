"""Where people look in a video: LSTS in TensorFlow and Keras.

The modules in the order of the data's walk: `windows` and `experiment` are
the words; `video`, `flow`, `preprocess`, `metrics`, `losses`, `overlay` the
signals; `i3d`, `i3d_weights`, `sliding_i3d`, `decoder`, `optimizers` the
networks; `dataset`, `stores`, `maps`, `predictions`, `annotations`,
`fixations` what is on disk; `extractor`, `input_pipeline`, `monitor`,
`predictor`, `scorer`, `jobs`, `workers`, `cluster`, `charts` the assembly;
`sink`, `attention`, `encoding`, `reframe`, `report` what is made of maps.
Programs are `python -m lsts_tf.<verb>`: `sample`, `extract`, `train`,
`evaluate`, `predict`.
"""

import os

# TensorFlow switches oneDNN on by itself only on CPUs with AVX-512 VNNI; I3D
# runs about 2.5 times faster with it on any x86 (docs/performance.md). It has
# to be set before TensorFlow is imported.
os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "1")
