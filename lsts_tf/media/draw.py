"""A saliency map drawn over a frame.

Images are uint8 RGB [H, W, 3]; a saliency map is float [h, w] in 0 to 1, of
any size. Nothing is normalised here: the same value has the same colour in
every frame, so a video does not flicker.
"""

import cv2
import numpy as np

# Below the first value a map is invisible, from the second on it has its full
# weight; between them it fades in without an edge.
_FADE = (0.08, 0.6)
# What is left of a frame where nobody looks, in a fog view.
_FOG = 0.12


def heat(saliency: np.ndarray) -> np.ndarray:
    """Colours a map: black, purple, red, orange, pale yellow.

    The brightness grows with the value, so it also reads in grey and by
    colour-blind people.

    Args:
        saliency: float [H, W] in 0 to 1; values outside are clipped, NaN
            counts as 0.

    Returns:
        uint8 [H, W, 3].
    """
    levels = np.rint(255 * _unit(saliency)).astype(np.uint8)
    coloured = cv2.applyColorMap(levels, cv2.COLORMAP_INFERNO)
    return cv2.cvtColor(coloured, cv2.COLOR_BGR2RGB)


def blend(
    frame: np.ndarray, saliency: np.ndarray, *, alpha: float = 0.75
) -> np.ndarray:
    """Draws a map over a frame, transparent where saliency is low.

    Args:
        frame: uint8 [H, W, 3].
        saliency: float [h, w] in 0 to 1; resized to the frame.
        alpha: How opaque the map is at its strongest, 0 to 1.

    Returns:
        uint8 [H, W, 3].
    """
    saliency = _like(frame, saliency)
    weight = alpha * _ramp(saliency)[..., None]
    mixed = frame * (1 - weight) + heat(saliency) * weight
    return np.rint(mixed).astype(np.uint8)


def fog(
    frame: np.ndarray, saliency: np.ndarray, *, alpha: float = 0.75
) -> np.ndarray:
    """Leaves a frame as it is where saliency is high, and darkens the rest.

    Args:
        frame: uint8 [H, W, 3].
        saliency: float [h, w] in 0 to 1; resized to the frame.
        alpha: How dense the fog is where saliency is lowest, 0 to 1; at 1 an
            eighth of the light is left.

    Returns:
        uint8 [H, W, 3].
    """
    density = alpha * (1 - _FOG) * (1 - _ramp(_like(frame, saliency)))
    return np.rint(frame * (1 - density[..., None])).astype(np.uint8)


def side_by_side(*images: np.ndarray, gap: int = 4) -> np.ndarray:
    """Puts images in a row, with a white gap between them.

    Args:
        *images: uint8 [H, W, 3]; each is scaled to the first one's height.
        gap: Width of the gap in pixels.

    Returns:
        uint8 [H, sum of widths and gaps, 3].
    """
    height = images[0].shape[0]
    white = np.full((height, gap, 3), 255, np.uint8)
    row = [images[0]]
    for image in images[1:]:
        if image.shape[0] != height:
            width = max(1, round(image.shape[1] * height / image.shape[0]))
            image = cv2.resize(
                image, (width, height), interpolation=cv2.INTER_AREA
            )
        row += [white, image]
    return np.concatenate(row, axis=1)


def annotate(image: np.ndarray, text: str) -> np.ndarray:
    """Writes a line into the lower left corner, readable on any background.

    White on a darkened strip. The letters shrink with the image, and further
    where the line would be wider than it.

    Args:
        image: uint8 [H, W, 3]; stays as it is.
        text: One line, such as "random I3D weights".

    Returns:
        uint8 [H, W, 3].
    """
    image = image.copy()
    height, width = image.shape[:2]
    font = cv2.FONT_HERSHEY_SIMPLEX
    margin = max(1, height // 60)
    scale = max(height, 240) / 720
    while True:
        thickness = max(1, round(2 * scale))
        (wide, high), base = cv2.getTextSize(text, font, scale, thickness)
        if wide <= width - 2 * margin or scale < 0.1:
            break
        scale *= 0.9
    top = max(0, height - high - base - 2 * margin)
    strip = image[top:, : wide + 2 * margin]
    strip[:] = strip // 4
    cv2.putText(
        image,
        text,
        (margin, height - base - margin),
        font,
        scale,
        (255, 255, 255),
        thickness,
        cv2.LINE_AA,
    )
    return image


def _like(frame: np.ndarray, saliency: np.ndarray) -> np.ndarray:
    """A map in 0 to 1 of a frame's size."""
    height, width = frame.shape[:2]
    return cv2.resize(
        _unit(saliency), (width, height), interpolation=cv2.INTER_LINEAR
    )


def _ramp(saliency: np.ndarray) -> np.ndarray:
    """0 where a map fades out, 1 where it is strong, smooth between."""
    low, high = _FADE
    ramp = np.clip((saliency - low) / (high - low), 0, 1)
    return ramp * ramp * (3 - 2 * ramp)


def _unit(saliency: np.ndarray) -> np.ndarray:
    return np.clip(np.nan_to_num(np.asarray(saliency, np.float32)), 0, 1)
