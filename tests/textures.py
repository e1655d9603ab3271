"""Grey pictures smooth enough to have a motion."""

import cv2
import numpy as np


def texture(height, width, seed=0):
    noise = np.random.default_rng(seed).random((height, width), np.float32)
    image = sum(
        cv2.GaussianBlur(noise, (0, 0), s) * s**1.5 for s in (1.5, 4, 10)
    )
    return cv2.normalize(image, None, 0, 255, cv2.NORM_MINMAX, cv2.CV_8U)


def moving(count, dx, dy, seed=0, size=(112, 112)):
    """Frames of a texture that moves by (dx, dy) a frame: [count, *size]."""
    image = texture(size[0] + 64, size[1] + 64, seed)
    return np.stack(
        [
            cv2.warpAffine(
                image,
                np.float32([[1, 0, k * dx], [0, 1, k * dy]]),
                image.shape[::-1],
                flags=cv2.INTER_CUBIC,
            )[32:-32, 32:-32]
            for k in range(count)
        ]
    )
