"""CrowdSAL as a TensorFlow dataset.

5,000 videos of 18 seconds on average, 2.7 million frames; more than 75 people
moved a mouse to where they looked. Videos 1 to 3000 are for training.
"""

import tensorflow_datasets as tfds

import film_dataset


class Builder(film_dataset.FilmBuilder):
    """Reads CrowdSAL as its authors distribute it."""

    REPOSITORY = "msu-video-group/CrowdSAL"
    SPLITS = {
        tfds.Split.TRAIN: range(1, 3001),
        tfds.Split.TEST: range(3001, 5001),
    }

    VERSION = tfds.core.Version("1.0.0")
    RELEASE_NOTES = {
        "1.0.0": (
            "Whole videos within 640x360: frames as JPEG of quality 95, maps "
            "as PNG of 8 bits, fixations as counts."
        ),
    }
    MANUAL_DOWNLOAD_INSTRUCTIONS = """
    The files (5,000 videos) are open to anybody at
    https://huggingface.co/datasets/ANDRYHA/CrowdSAL. Put them into one folder,
    packed or unpacked:

        <manual_dir>/Train/Videos/0001.mp4 ... 3000.mp4
        <manual_dir>/Train/Saliency/0001.mp4 ...
        <manual_dir>/Train/Fixations/0001.json ...
        <manual_dir>/Test/...                           3001 to 5000

    The manual folder is the one given by `--manual_dir`, otherwise
    `<data_dir>/downloads/manual`. Any subset of the films works. After an
    interruption, the same command continues the build.
    """
