"""OSIE as a TensorFlow dataset: one example per photograph.

700 photographs of several objects each, 800 pixels wide and 600 high, numbered
from 1001 on; 15 people looked at each for three seconds.
"""

import still_dataset


class Builder(still_dataset.StillBuilder):
    """Reads OSIE as its authors distribute it."""

    REPOSITORY = "NUS-VIP/predicting-human-gaze-beyond-pixels"
    NUMBERS = range(1001, 1701)
    SIZE = (600, 800)
    # In pixels: 800 were 33.7 degrees wide. The authors' own program blurs by
    # as much.
    DEGREE = 24.0
