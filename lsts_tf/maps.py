"""Saliency maps on disk.

A map is [H, W]; as a grey PNG it has 256 levels, 0 … 255 for 0 … 1. Files
appear whole or not at all.
"""

import os
import pathlib

import cv2
import numpy as np


def file_name(frame: int) -> str:
    """Name of frame `frame` (from 0) in DHF1K's layout: 0001.png is frame 0."""
    return f"{frame + 1:04d}.png"


def write_png(path: pathlib.Path, image: np.ndarray) -> None:
    """Write a picture.

    Args:
        path: Where, ending in .png; its folder exists.
        image: uint8 grey [H, W], or RGB [H, W, 3].

    Raises:
        OSError: It cannot be written.
    """
    if image.ndim == 3:
        image = cv2.cvtColor(image, cv2.COLOR_RGB2BGR)
    done, data = cv2.imencode(".png", image)
    if not done:
        raise OSError(f"{path} cannot be encoded as PNG.")
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        temporary.write_bytes(data.tobytes())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def read_grey(path: pathlib.Path) -> np.ndarray:
    """Read a grey picture: uint8 [H, W].

    Raises:
        OSError: It is missing or damaged.
    """
    image = cv2.imdecode(
        np.frombuffer(path.read_bytes(), np.uint8), cv2.IMREAD_GRAYSCALE
    )
    if image is None:
        raise OSError(f"{path} is not a picture that can be read.")
    return image
