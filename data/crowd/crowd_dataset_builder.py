"""Crowd as a TensorFlow dataset: one example per photograph.

500 photographs of few to many people, 1024 pixels wide and 768 high, numbered
from 1 on; 16 people looked at each for five seconds.
"""

import still_dataset


class Builder(still_dataset.StillBuilder):
    """Reads Crowd as its authors distribute it."""

    REPOSITORY = "NUS-VIP/saliency-in-crowd"
    NUMBERS = range(1, 501)
    SIZE = (768, 1024)
    # In pixels: the authors' own program blurs by as much.
    DEGREE = 26.0
