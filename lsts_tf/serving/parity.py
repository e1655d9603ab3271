"""How far an exported model is from the model, and what both are asked."""

from collections.abc import Mapping
from typing import NamedTuple

import cv2
import numpy as np

from lsts_tf import predictor as predictor_lib


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


def features(predictor: predictor_lib.Predictor) -> dict[str, np.ndarray]:
    """Two windows' features as I3D leaves them: not negative, many zeros."""
    rng = np.random.default_rng(0)
    found = {}
    for stream in predictor.extractor.streams:
        for part, shape in predictor.extractor.part_shapes(stream).items():
            some = np.maximum(rng.normal(-0.1, 0.5, (2, *shape)), 0)
            found[part] = some.astype(np.float32)
    return found


def of_features(
    predictor: predictor_lib.Predictor, features: Mapping[str, np.ndarray]
) -> np.ndarray:
    """Maps [N, 360, 640], or [N, hop, 360, 640] of several a window."""
    each = (
        dict(zip(features, some, strict=True))
        for some in zip(*features.values(), strict=True)
    )
    maps = np.stack(list(predictor.of_windows(each)))
    return maps if predictor.hop > 1 else maps[:, 0]


def frames() -> np.ndarray:
    """Two frames of drifting blobs, uint8 [2, 180, 320, 3].

    Few: where motion is ambiguous, rounding alone may end TV-L1 elsewhere in
    single pixels, and the maps then say nothing of the graph. Two frames have
    one flow that is not zero, and on this it does not.
    """
    rng = np.random.default_rng(0)
    coarse = rng.integers(0, 256, (9, 16, 3), np.uint8)
    scene = cv2.resize(coarse, (320, 180), interpolation=cv2.INTER_CUBIC)
    return np.stack([scene, np.roll(scene, 4, axis=1)])


def signals(predictor: predictor_lib.Predictor) -> dict[str, np.ndarray]:
    """One window of each stream: [1, window, h, w, channels]."""
    extractor = predictor.extractor
    some = frames()
    found: dict[str, np.ndarray] = {}
    for stream in extractor.streams:
        if stream == "rgb":
            each = [extractor.prepare(frame)["rgb"] for frame in some]
        else:
            # There and back.
            back_and_forth = extractor.flows([*some, some[0]])
            each = [flow.astype(np.float32) for flow in back_and_forth]
        places = np.arange(extractor.window) % len(each)
        found[stream] = np.stack(each)[places][None]
    return found
