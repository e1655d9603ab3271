"""Frames, flows and maps in the range that a network expects.

Ranges are fixed: nothing is stretched by a clip's own extremes, so that "no
motion" is always 0. (The paper says only "rescaled to [-1, 1]"; its authors'
program stretches each clip: docs/decisions.md.) `rgb`, `flow` and `target`
are Keras operations, eager or in graphs. The rest is NumPy.

* A frame is uint8 RGB [H, W, 3].
* A flow is float [112, 112, 2], (x, y), pixels per frame of its own grid.
* Sizes are (rows, columns) of the network's input, 224 x 224 as published.
* A density map is uint8 [H, W]; fixations are uint8 [H, W], 0 or 255.
  `density` and `fixations` bring those of another size to `parts.MAP_SIZE`.
"""

from typing import Any

import cv2
import keras
import numpy as np

from lsts_tf import parts

# The paper truncates flow to [-20, 20] (section 4.2), as I3D was trained.
FLOW_LIMIT = 20.0


def describe(stream: str, size: tuple[int, int] = parts.SIZE) -> str:
    """What stands in the manifest of everything made from these functions.

    >>> describe("flow")
    '112x112 to 224x224, bilinear, vectors x 2, clip 20, / 20'
    """
    full, half = (f"{h}x{w}" for h, w in (size, parts.half(size)))
    return {
        "rgb": f"whole frame to {full}, bilinear (from twice on by area), "
        "RGB, x / 127.5 - 1",
        "flow": f"{half} to {full}, bilinear, vectors x 2, clip 20, / 20",
    }[stream]


def squeeze(
    frame: np.ndarray, size: tuple[int, int] = parts.SIZE
) -> np.ndarray:
    """Squeeze a whole frame to one size; the aspect ratio is not kept.

    Nothing is cropped, because people may look anywhere (report, section
    4.2). Bilinear without antialiasing, as the authors' program; but means
    over areas where both sides of a frame are at least twice as long, as those
    of large videos, of which that would skip pixels. From uint8 [H, W, 3] to
    uint8 [*size, 3].
    """
    twice = all(n >= 2 * m for n, m in zip(frame.shape, size, strict=False))
    rule = cv2.INTER_AREA if twice else cv2.INTER_LINEAR
    return cv2.resize(frame, size[::-1], interpolation=rule)


def rgb(frames: Any) -> Any:
    """Frames in I3D's range: [..., 3], from 0 … 255 to float32, -1 … 1."""
    return keras.ops.cast(frames, "float32") / 127.5 - 1.0


def flow(flows: Any, size: tuple[int, int] = parts.SIZE) -> Any:
    """Flows in I3D's range, on I3D's grid.

    A vector of one pixel at 112 is one of two pixels at 224, so vectors grow
    with the grid; then they are truncated to 20 pixels per frame and divided
    by 20 (report, section 4.2). From float [T, h, w, 2], pixels per frame at
    h x w, to float32 [T, *size, 2], -1 … 1.
    """
    flows = keras.ops.cast(flows, "float32")
    height, width = flows.shape[-3:-1]
    flows = keras.ops.image.resize(
        flows,
        size,
        interpolation="bilinear",
        data_format="channels_last",
    )
    flows = flows * np.array([size[1] / width, size[0] / height], np.float32)
    return keras.ops.clip(flows, -FLOW_LIMIT, FLOW_LIMIT) / FLOW_LIMIT


def mirror(stream: str, signal: np.ndarray) -> np.ndarray:
    """What a stream sees of the mirrored video: left and right exchanged.

    The signal is frames [..., H, W, 3], or flows [..., H, W, 2]: what moved to
    the right moves to the left.
    """
    mirrored = signal[..., ::-1, :]
    if stream == "flow":
        mirrored = mirrored * np.array([-1, 1], signal.dtype)
    return mirrored


def density(map_: np.ndarray) -> np.ndarray:
    """A density map at the model's size: by area to less, bilinear to more.

    From uint8 [H, W] to uint8 [*parts.MAP_SIZE]; itself if it has that size.
    """
    # Each axis by its own rule: by area, OpenCV repeats pixels to enlarge.
    rows, columns = parts.MAP_SIZE
    smaller = min(rows, len(map_)), min(columns, map_.shape[1])
    for size, rule in (
        (smaller, cv2.INTER_AREA),
        (parts.MAP_SIZE, cv2.INTER_LINEAR),
    ):
        if map_.shape != size:
            map_ = cv2.resize(map_, size[::-1], interpolation=rule)
    return map_


def fixations(map_: np.ndarray) -> np.ndarray:
    """A fixation map at the model's size: points are moved, not interpolated.

    Each fixated pixel becomes the one that its centre falls into. From uint8
    [H, W], not 0 where somebody looked, to uint8 [*parts.MAP_SIZE], 255 there;
    the map itself if it has that size.
    """
    if map_.shape == parts.MAP_SIZE:
        return map_
    # In integers, because centres may fall on the edge between two pixels.
    centres = 2 * np.argwhere(map_) + 1
    points = centres * parts.MAP_SIZE // (2 * np.array(map_.shape))
    moved = np.zeros(parts.MAP_SIZE, np.uint8)
    moved[tuple(points.T)] = 255
    return moved


def target(truth: Any) -> Any:
    """What a prediction is compared with.

    Each density map is divided by its own maximum; a map of zeros stays zero.
    (The paper trains on "the density map" of DHF1K, whose files are scaled to
    a maximum of 255: docs/decisions.md.)

    Args:
        truth: uint8 [..., H, W, 2]: density map; not 0 where somebody looked.

    Returns:
        float32 [..., H, W, 2]: density in [0, 1], fixated pixels in {0, 1}.
    """
    truth = keras.ops.cast(truth, "float32")
    peak = keras.ops.max(truth[..., :1], axis=(-3, -2), keepdims=True)
    largest = [keras.ops.maximum(peak, 1.0), keras.ops.ones_like(peak)]
    scaled = truth / keras.ops.concatenate(largest, axis=-1)
    return keras.ops.minimum(scaled, 1.0)
