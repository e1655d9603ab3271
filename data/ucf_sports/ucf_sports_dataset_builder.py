"""UCF Sports with gaze as a TensorFlow dataset: one example per clip.

The release of DHF1K's authors: a folder per clip, such as
`training/Diving-Side-005/images/Diving-Side_005_001.png`. Sizes differ
between clips; a clip has 21 to 143 frames.
"""

import gaze_dataset

# Clips of each class, and how many of them, the first ones, are for testing.
CLASSES = {
    "Diving-Side": (14, 4),
    "Golf-Swing-Back": (5, 5),
    "Golf-Swing-Front": (8, 1),
    "Golf-Swing-Side": (5, 0),
    "Kicking-Front": (10, 6),
    "Kicking-Side": (10, 0),
    "Lifting": (6, 2),
    "Riding-Horse": (12, 4),
    "Run-Side": (13, 4),
    "SkateBoarding-Front": (12, 4),
    "Swing-Bench": (20, 6),
    "Swing-SideAngle": (13, 4),
    "Walk-Front": (22, 7),
}
# As in DHF1K: what is scored is numbered from here on.
FIRST_TESTING = 601


def _numbers() -> dict[str, int]:
    training: list[str] = []
    testing: list[str] = []
    for name, (clips, tested) in CLASSES.items():
        names = [f"{name}-{clip:03d}" for clip in range(1, clips + 1)]
        testing += names[:tested]
        training += names[tested:]
    return {
        **{name: number for number, name in enumerate(training, 1)},
        **{name: number for number, name in enumerate(testing, FIRST_TESTING)},
    }


# By name, so that a clip keeps its number in any part of the dataset: 1 to
# 103 in training/, 601 to 647 in testing/, both in the order of names.
NUMBERS = _numbers()


class Builder(gaze_dataset.ClipBuilder):
    """Reads UCF Sports as the authors of DHF1K distribute it."""

    EXAMPLE = "Diving-Side-005"
    number_of = staticmethod(NUMBERS.get)
