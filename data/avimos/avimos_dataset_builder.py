"""AViMoS, the dataset of AIM 2024, as a TensorFlow dataset.

1,500 videos of 19 seconds on average, 1,000 of them for training; more than 70
people moved a mouse to where they looked.
"""

import tensorflow_datasets as tfds

import film_dataset


class Builder(film_dataset.FilmBuilder):
    """Reads AViMoS as its authors distribute it."""

    REPOSITORY = "msu-video-group/ECCVW24_Saliency_Prediction"

    VERSION = tfds.core.Version("1.0.0")
    RELEASE_NOTES = {
        "1.0.0": (
            "Whole videos within 640x360: frames as JPEG of quality 95, maps "
            "as PNG of 8 bits, fixations as counts."
        ),
    }
    MANUAL_DOWNLOAD_INSTRUCTIONS = """
    The archives (1,500 videos) are open to anybody at
    https://huggingface.co/datasets/ANDRYHA/AudioVisualMouseSaliency.
    Put them into one folder, packed or unpacked:

        <manual_dir>/TrainTestSplit.json
        <manual_dir>/Videos.zip
        <manual_dir>/SaliencyTrain.zip, SaliencyTest.zip
        <manual_dir>/FixationsTrain.zip, FixationsTest.zip

    The manual folder is the one given by `--manual_dir`, otherwise
    `<data_dir>/downloads/manual`. Any subset of the films works. After an
    interruption, the same command continues the build.
    """
