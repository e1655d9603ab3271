"""Front ends that cost next to nothing."""

import functools
import itertools

import cv2
import keras
import numpy as np

from lsts_tf import parts
from lsts_tf.features import extractor as extractor_lib
from lsts_tf.features import flow as flow_lib
from lsts_tf.features import front_end

SHAPES = {
    "Mixed_5c": (2, 2, 2, 8),
    "MaxPool3d_5a_2x2": (2, 2, 2, 832),
    "Mixed_4f": (3, 3, 6),
    "Mixed_3c": (6, 6, 4),
    "Conv3d_2c_3x3": (12, 12, 3),
}


class Pixels(front_end.FrontEnd):
    """Pixels of a window's last frame, and so is flow.

    In NumPy, because TensorFlow does not survive a fork.
    """

    shape = (1, 2, 2, 16)

    def __init__(self, streams, *, window, **_):
        super().__init__(streams, window=window, name="window", flow="dis")

    def describe(self):
        return {"streams": {stream: {} for stream in self.streams}}

    def part_shapes(self, stream):
        return {stream: self.shape}

    def flows(self, frames):
        for frame in itertools.islice(frames, 1, None):
            yield cv2.resize(frame, (112, 112))[..., :2].astype(np.float16)

    @property
    def encoders(self):
        encode = self.encode_parts
        return {s: functools.partial(encode, s) for s in self.streams}

    def encode_parts(self, stream, clip):
        # Neighbouring pixels of an enlarged frame are alike.
        apart = clip.shape[1] // 8
        pixels = clip[-1][::apart, ::apart, 0].astype(np.float32) / 255
        return {stream: pixels.reshape(self.shape)}


class Extractor(extractor_lib.Extractor):
    """I3D is a mean of pixels: everything else is real.

    Random projections of the mean frame, on a grid of each part's size.
    """

    note = "no I3D"

    def __init__(
        self,
        streams,
        *,
        window,
        size=parts.SIZE,
        skips=(),
        end_point=parts.MAIN,
        name="window",
        **_,
    ):
        self.streams = tuple(streams)
        self.window = window
        self.size = size
        self.skips = tuple(skips)
        self.end_point = end_point
        self.name = name
        self.dtype = "float32"
        self.flow = flow_lib.Flow("dis")

    def part_shapes(self, stream):
        skips = {parts.name(stream, skip): SHAPES[skip] for skip in self.skips}
        return {stream: SHAPES[self.end_point], **skips}

    @property
    def decoder_shape(self):
        if self.end_point == parts.MAIN:
            return self.feature_shape
        return super().decoder_shape

    @property
    def skip_shapes(self):
        return {skip: SHAPES[skip] for skip in self.skips}

    def _describe(self, stream):  # noqa: ARG002
        return {
            "weights": "none",
            "weights_sha256": "0" * 64,
            "preprocessing": "none",
        }

    def encode_parts(self, stream, clip):
        x = self._in_range(stream, clip)
        half = x.shape[0] // 2
        # Times, so that a window's features say where it is.
        found = {}
        for name, shape in self.part_shapes(stream).items():
            *time, rows, columns, channels = shape
            each = [keras.ops.mean(part, 0) for part in (x[:half], x[half:])]
            y = keras.ops.image.resize(
                keras.ops.stack(each)[: time[0] if time else 1],
                (rows, columns),
                data_format="channels_last",
            )
            y = keras.ops.matmul(y, _projection(x.shape[-1], channels))
            found[name] = y if time else y[0]
        return found

    # Each window alone, as any front end may have it.
    features = front_end.FrontEnd.features


@functools.cache
def _projection(channels, features):
    rng = np.random.default_rng(features)
    return rng.normal(size=(channels, features)).astype(np.float32)
