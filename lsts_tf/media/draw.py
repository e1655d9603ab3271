"""A saliency map drawn over a frame.

Images are uint8 RGB [H, W, 3]; a saliency map is float [h, w]. Only `over`
stretches a map; elsewhere the same value always has the same colour.
"""

import cv2
import numpy as np

VIEWS = ("heat", "fog")
# White columns between two images.
GAP = 4
# Below the first value a map is invisible, from the second on it has its full
# weight; between them it fades in without an edge.
_FADE = (0.08, 0.6)
# What is left of a frame where nobody looks, in a fog view.
_FOG = 0.12


def stretch(
    map_: np.ndarray, low: float | None = None, high: float | None = None
) -> np.ndarray:
    """A map with `low` at 0 and `high` at 1; 0 everywhere if they are equal.

    By default they are its own extremes.
    """
    low = map_.min() if low is None else low
    high = map_.max() if high is None else high
    if not high > low:
        return np.zeros_like(map_)
    return (map_ - np.float32(low)) / np.float32(high - low)


def heat(saliency: np.ndarray) -> np.ndarray:
    """Colours a map: black, purple, red, orange, pale yellow.

    The brightness grows with the value, so it also reads in grey and by
    colour-blind people. Values outside of 0 to 1 are clipped, NaN counts as 0.
    """
    unit = np.clip(np.nan_to_num(np.asarray(saliency, np.float32)), 0, 1)
    levels = np.rint(255 * unit).astype(np.uint8)
    coloured = cv2.applyColorMap(levels, cv2.COLORMAP_INFERNO)
    return cv2.cvtColor(coloured, cv2.COLOR_BGR2RGB)


def over(
    frame: np.ndarray,
    map_: np.ndarray,
    *,
    view: str = "heat",
    alpha: float = 0.75,
) -> np.ndarray:
    """Draws a map, resized, over a frame, with the colours of its own range.

    View "heat" colours what is salient, "fog" darkens what is not, at most to
    an eighth of its light; `alpha`, 0 to 1, is how strongly.
    """
    saliency = stretch(cv2.resize(map_, frame.shape[1::-1]))
    low, high = _FADE
    ramp = np.clip((saliency - low) / (high - low), 0, 1)[..., None]
    ramp = ramp * ramp * (3 - 2 * ramp)
    if view == "fog":
        mixed = frame * (1 - alpha * (1 - _FOG) * (1 - ramp))
    else:
        weight = alpha * ramp
        mixed = frame * (1 - weight) + heat(saliency) * weight
    return np.rint(mixed).astype(np.uint8)


def side_by_side(*images: np.ndarray) -> np.ndarray:
    """Images in a row, each of the first one's height, with white gaps."""
    height = images[0].shape[0]
    white = np.full((height, GAP, 3), 255, np.uint8)
    row = [images[0]]
    for image in images[1:]:
        width = max(1, round(image.shape[1] * height / image.shape[0]))
        size = width, height
        row += [white, cv2.resize(image, size, interpolation=cv2.INTER_AREA)]
    return np.concatenate(row, axis=1)


def annotate(image: np.ndarray, text: str) -> np.ndarray:
    """Writes a line into the lower left corner, readable on any background.

    White on a darkened strip. The letters shrink with the image, and further
    where the line would be wider than it. The image given stays as it is.
    """
    if not text:
        return image
    image = image.copy()
    height, width = image.shape[:2]
    margin = max(1, height // 60)
    scale = max(height, 240) / 720
    while True:
        font = cv2.FONT_HERSHEY_SIMPLEX, scale
        thickness = max(1, round(2 * scale))
        (wide, high), base = cv2.getTextSize(text, *font, thickness)
        if wide <= width - 2 * margin or scale < 0.1:
            break
        scale *= 0.9
    top = max(0, height - high - base - 2 * margin)
    strip = image[top:, : wide + 2 * margin]
    strip[:] = strip // 4
    place, white = (margin, height - base - margin), (255, 255, 255)
    cv2.putText(image, text, place, *font, white, thickness, cv2.LINE_AA)
    return image
