"""A predictor that costs next to nothing; as a program, `predict` with it.

A map is the last frame of its window in grey, nine by sixteen squares of it,
made a little brighter by what came before: so a map tells its frame, and that
it saw others.
"""

import collections
import os
import signal
import time

from absl import app
import cv2
import keras
import numpy as np

from lsts_tf import experiment, predict
from lsts_tf import predictor as predictor_lib
from lsts_tf.features import front_end as front_end_lib

NOTE = "random I3D weights (rgb)"


class Extractor:
    """As `extractor.Extractor`; a feature is float32 [9, 16, 1]."""

    streams = ("rgb",)
    note = NOTE

    def __init__(self, *, window=79, front_end="window"):
        self.window = window
        self.front_end = front_end
        self.skip_shapes = {}

    def describe(self):
        return {"window": self.window, "front_end": self.front_end}

    def prepare(self, frame):
        grey = cv2.cvtColor(frame, cv2.COLOR_RGB2GRAY)
        small = cv2.resize(grey, (16, 9), interpolation=cv2.INTER_AREA)
        return {"rgb": small[..., None]}

    def of_clip(self, prepared, *, stride=1, starts_still=False, **_):
        if starts_still:
            prepared = front_end_lib.held(prepared, self.window - 1)
        recent = collections.deque(maxlen=self.window)
        for index, frame in enumerate(prepared):
            recent.append(frame["rgb"].astype(np.float32))
            since = index - self.window + 1
            if since >= 0 and since % stride == 0:
                mean = np.mean(recent, axis=0)
                yield index, {"rgb": (0.9 * recent[-1] + 0.1 * mean) / 255}


class Slow(Extractor):
    """A frame takes some seconds; counts them."""

    def __init__(self, seconds):
        super().__init__()
        self.seconds = seconds
        self.seen = 0

    def prepare(self, frame):
        time.sleep(self.seconds)
        self.seen += 1
        return super().prepare(frame)


class Deadly(Extractor):
    """An upright film kills the process."""

    def prepare(self, frame):
        if frame.shape[0] > frame.shape[1]:
            os.kill(os.getpid(), signal.SIGKILL)
        return super().prepare(frame)


def predictor(extractor=None, **kwargs):
    """With windows of 79 frames, as the published ones."""
    features = keras.Input((9, 16, 1), name="rgb")
    maps = keras.layers.UpSampling2D(40, interpolation="nearest")(features)
    model = keras.Model({"rgb": features}, maps)
    return predictor_lib.Predictor(model, extractor or Extractor(**kwargs))


def deadly():
    """With `Deadly`."""
    return predictor(Deadly())


def load(*_, **__):
    """Takes the place of `Predictor.load`."""
    return predictor()


if __name__ == "__main__":
    predict._load = load
    experiment.define_flags()
    predict.define_flags()
    app.run(predict.main)
