"""A run that no training made: windows of nine frames, random weights."""

import json

import cv2
import keras
import numpy as np

from lsts_tf import experiment
from lsts_tf.features import front_end as front_end_lib
from lsts_tf.media import files
from lsts_tf.networks import decoder

WINDOW = 9


def make(folder, streams=("rgb",), **more):
    """Write the run; what it is, as settings."""
    settings = experiment.Experiment(
        run_dir=str(folder),
        streams=streams,
        window=WINDOW,
        rgb_weights=("random",),
        flow_weights=("random",),
        **more,
    )
    folder.mkdir(parents=True)
    settings.save(folder / experiment.FLAGFILE)
    extractor = front_end_lib.load(**settings.front_end_arguments())
    files.write_text(
        folder / front_end_lib.DESCRIPTION, json.dumps(extractor.describe())
    )
    model = decoder.build(
        streams, feature_shape=extractor.feature_shape, seed=0
    )
    calibrate(model, extractor)
    model.save(folder / "model.keras")
    return settings


def calibrate(model, extractor):
    """Give BatchNorm the statistics of some features, so that maps differ."""
    batches = [
        layer
        for layer in model.layers
        if isinstance(layer, keras.layers.BatchNormalization)
    ]
    for layer in batches:
        layer.momentum = 0.0
    rng = np.random.default_rng(0)
    shape = (2, *extractor.feature_shape)
    features = {
        s: np.maximum(rng.normal(-0.1, 0.5, shape), 0).astype(np.float32)
        for s in extractor.streams
    }
    model(features, training=True)
    for layer in batches:
        layer.momentum = decoder.BATCH_NORM_MOMENTUM


def frames(count, height=90, width=161, seed=0):
    """A drifting texture, uint8 [count, height, width, 3]."""
    rng = np.random.default_rng(seed)
    coarse = rng.integers(0, 256, (9, 16, 3), np.uint8)
    scene = cv2.resize(coarse, (width, height), interpolation=cv2.INTER_NEAREST)
    return np.stack([np.roll(scene, 3 * k, axis=1) for k in range(count)])
