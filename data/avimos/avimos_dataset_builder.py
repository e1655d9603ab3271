"""AViMoS, the dataset of AIM 2024, as a TensorFlow dataset.

1,500 videos of 19 seconds on average, 1,000 of them for training; more than 70
people moved a mouse to where they looked.
"""

import film_dataset


class Builder(film_dataset.FilmBuilder):
    """Reads AViMoS as its authors distribute it."""

    REPOSITORY = "msu-video-group/ECCVW24_Saliency_Prediction"
    HUB = "AudioVisualMouseSaliency"
