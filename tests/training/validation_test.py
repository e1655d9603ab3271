"""Scores of the mini-validation, however it is spread."""

import numpy as np
import pytest
import tensorflow as tf

from lsts_tf import experiment
from lsts_tf.media import images
from lsts_tf.scoring import metrics
from lsts_tf.scoring import scorer as scorer_lib
from lsts_tf.scoring import truth as truth_lib
from lsts_tf.training import input_pipeline, validation
from lsts_tf.training import trainer as trainer_lib
from tests import tiny_training

SHAPE = (1, 2, 2, 8)


class Windows(input_pipeline.StoredWindows):
    """Seven windows of a video."""

    _maps = 1

    def __init__(self):
        rng = np.random.default_rng(3)
        self.windows = np.array([(1, target) for target in range(7)])
        self.features = rng.random((7, *SHAPE)).astype(np.float16)
        self.truth = rng.integers(0, 256, (7, 16, 16, 2), np.uint8)
        self.truth[..., 1] = self.truth[..., 1] > 230

    def read(self, chosen):
        targets = chosen[:, 1]
        return {"rgb": self.features[targets]}, self.truth[targets]


def test_validation_scores_the_saved_maps(monkeypatch, mirrored):
    tiny_training.install(monkeypatch.setattr)
    windows = Windows()
    density, fixated = windows.truth[..., 0], windows.truth[..., 1]
    points = [np.argwhere(map_) for map_ in fixated]
    scorer = scorer_lib.Scorer(
        truth_lib.FixationSet(
            (1, frame, rows, (16, 16)) for frame, rows in enumerate(points)
        )
    )
    for strategy in (tf.distribute.get_strategy(), mirrored):
        trainer = trainer_lib.Trainer(
            experiment.Experiment(batch_size=12, strategy="one"),
            strategy,
            feature_shape=SHAPE,
        )
        maps = tf.function(trainer.model, autograph=False)(
            {"rgb": windows.features}, training=False
        )
        levels = images.to_uint8(maps.numpy()[..., 0])
        assert len(np.unique(levels)) > 10
        few, every = (
            validation.validate(trainer, windows, 4, scorer=given)
            for given in (None, scorer)
        )
        assert set(few) == {"loss", *validation.METRICS}
        assert set(every) == {"loss", *metrics.METRICS}
        each = [
            scorer.score(frame, levels[frame], density[frame])
            for frame in range(7)
        ]
        for name, value in every.items():
            if name in few:
                assert few[name] == value
            if name != "loss":
                mean = np.nanmean([scores[name] for scores in each])
                assert value == pytest.approx(mean, abs=1e-12)
