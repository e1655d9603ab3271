"""The dataset of NTIRE 2026 as a TensorFlow dataset.

2,000 videos of 18 seconds on average, 1,200 of them for training; more than 70
people moved a mouse to where they looked.
"""

import film_dataset


class Builder(film_dataset.FilmBuilder):
    """Reads the dataset of NTIRE 2026 as its authors distribute it."""

    REPOSITORY = "msu-video-group/NTIRE26_Saliency_Prediction"
    HUB = "VideoSaliencyChallenge"
