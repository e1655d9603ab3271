"""Hollywood-2 with gaze as a TensorFlow dataset: one example per shot.

The release of DHF1K's authors: a folder per shot, such as
`training/actioncliptrain00001_2/images/actioncliptrain00001_00044.png`. Shots
of a video are numbered from 1, with gaps; frames run on from shot to shot.
Sizes differ between videos; a shot may have a single frame.
"""

import re

import gaze_dataset

# Testing shots are numbered from here on.
FIRST_TESTING = 100_000


def number_of(name: str) -> int | None:
    """A shot's number, by its name, so that it is the same in any subset.

    Args:
        name: Of its folder.

    Returns:
        100 x video + shot, and 100,000 more in the testing set; None if it is
        not the name of a shot.

    >>> number_of("actioncliptrain00823_2"), number_of("actioncliptest00007_27")
    (82302, 100727)
    """
    parts = re.fullmatch(r"actionclip(train|test)(\d{5})_(\d{1,2})", name)
    if not parts:
        return None
    kind, video, shot = parts[1], int(parts[2]), int(parts[3])
    if not (1 <= video <= 999 and 1 <= shot <= 99):
        return None
    return (FIRST_TESTING if kind == "test" else 0) + 100 * video + shot


class Builder(gaze_dataset.ClipBuilder):
    """Reads Hollywood-2 as the authors of DHF1K distribute it."""

    EXAMPLE = "actioncliptrain00001_1"
    number_of = staticmethod(number_of)
