"""CrowdSAL as a TensorFlow dataset.

5,000 videos of 18 seconds on average, 2.7 million frames; more than 75 people
moved a mouse to where they looked. Videos 1 to 3000 are for training.
"""

import tensorflow_datasets as tfds

import film_dataset


class Builder(film_dataset.FilmBuilder):
    """Reads CrowdSAL as its authors distribute it."""

    REPOSITORY = "msu-video-group/CrowdSAL"
    HUB = "CrowdSAL"
    SPLITS = {
        tfds.Split.TRAIN: range(1, 3001),
        tfds.Split.TEST: range(3001, 5001),
    }
    LAYOUT = """
        <manual_dir>/Train/Videos/0001.mp4 ... 3000.mp4
        <manual_dir>/Train/Saliency/0001.mp4 ...
        <manual_dir>/Train/Fixations/0001.json ...
        <manual_dir>/Test/...                           3001 to 5000
"""
