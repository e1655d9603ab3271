"""OSIE as a TensorFlow dataset: one example per photograph.

700 photographs of several objects each, 800 pixels wide and 600 high, numbered
from 1001 on; 15 people looked at each for three seconds.
"""

import tensorflow_datasets as tfds

import still_dataset


class Builder(still_dataset.StillBuilder):
    """Reads OSIE as its authors distribute it."""

    REPOSITORY = "NUS-VIP/predicting-human-gaze-beyond-pixels"
    NUMBERS = range(1001, 1701)
    SIZE = (600, 800)
    # In pixels: 800 were 33.7 degrees wide. The authors' own program blurs by
    # as much.
    DEGREE = 24.0

    VERSION = tfds.core.Version("1.0.0")
    RELEASE_NOTES = {
        "1.0.0": (
            "Photographs as the JPEG files of the distribution; density maps "
            "and fixation maps of all but each observer's first fixation."
        ),
    }
    MANUAL_DOWNLOAD_INSTRUCTIONS = """
    OSIE is a git repository of its authors:

        git clone https://github.com/NUS-VIP/predicting-human-gaze-beyond-pixels

    The manual folder, given by `--manual_dir`, otherwise
    `<data_dir>/downloads/manual`, is that clone or the folder that holds it:

        <manual_dir>/data/stimuli/1001.jpg ... 1700.jpg
        <manual_dir>/data/eye/fixations.mat

    Nothing else of the repository is read.
    """
