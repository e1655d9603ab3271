"""Crowd as a TensorFlow dataset: one example per photograph.

500 photographs of few to many people, 1024 pixels wide and 768 high, numbered
from 1 on; 16 people looked at each for five seconds.
"""

import tensorflow_datasets as tfds

import still_dataset


class Builder(still_dataset.StillBuilder):
    """Reads Crowd as its authors distribute it."""

    REPOSITORY = "NUS-VIP/saliency-in-crowd"
    NUMBERS = range(1, 501)
    SIZE = (768, 1024)
    # In pixels: the authors' own program blurs by as much.
    DEGREE = 26.0

    VERSION = tfds.core.Version("1.0.0")
    RELEASE_NOTES = {
        "1.0.0": (
            "Photographs as the JPEG files of the distribution; density maps "
            "and fixation maps of all but each observer's first fixation."
        ),
    }
    MANUAL_DOWNLOAD_INSTRUCTIONS = """
    Crowd is a git repository of its authors:

        git clone https://github.com/NUS-VIP/saliency-in-crowd

    The manual folder, given by `--manual_dir`, otherwise
    `<data_dir>/downloads/manual`, is that clone or the folder that holds it:

        <manual_dir>/data/stimuli/001.jpg ... 500.jpg
        <manual_dir>/data/eye/fixations.mat

    Nothing else of the repository is read.
    """
