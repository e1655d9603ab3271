"""Other views of a video, to train on besides the whole frame.

A view is the video mirrored, or a crop of it, stretched to the whole frame:
nearer, broader or narrower, off the middle, and mirrored or not. Where people
look in it is where they looked in that part of the frame. A video's views are a
pure function of its number, so that whoever computes features and whoever reads
the truth see the same one, and those of few stills teach as many more would.
"""

from collections.abc import Sequence
import dataclasses

import numpy as np

# The smallest part of a side that a crop has.
SMALLEST = 0.5


@dataclasses.dataclass(frozen=True, kw_only=True)
class View:
    """One view of every video.

    Attributes:
        mirrored: Whether it is the whole frame with left and right exchanged.
        crop: Number of the crop, from 1; 0 for the whole frame.
    """

    mirrored: bool = False
    crop: int = 0

    @property
    def name(self) -> str:
        """What tells its stores from others; "" for the video as it is."""
        if self.crop:
            return f"view{self.crop}"
        return "mirrored" if self.mirrored else ""

    def describe(self) -> dict[str, str | bool]:
        """What decides the numbers of its features besides the video's."""
        if self.crop:
            share = f"{SMALLEST:g} to 1 of each side"
            return {"view": f"crop {self.crop}, {share}"}
        return {"mirrored": True} if self.mirrored else {}

    def of(self, video: int, image: np.ndarray) -> np.ndarray:
        """What the view shows of a frame [H, W, C], or a map [H, W]; no copy.

        By its number in its dataset each video has crops of its own.
        """
        if not self.crop:
            return image[:, ::-1] if self.mirrored else image
        rng = np.random.Generator(np.random.Philox(key=[video, self.crop]))
        sides = rng.uniform(SMALLEST, 1.0, 2)
        starts = rng.uniform(0.0, 1.0, 2) * (1.0 - sides)
        size = np.array(image.shape[:2])
        first = np.minimum((starts * size).astype(int), size - 1)
        # One row and column at least.
        stop = np.rint((starts + sides) * size).astype(int)
        stop = np.maximum(stop, first + 1)
        found = image[first[0] : stop[0], first[1] : stop[1]]
        return found[:, ::-1] if rng.random() < 0.5 else found


WHOLE = View()
MIRRORED = View(mirrored=True)


def chosen(*, flip: bool, crops: int) -> Sequence[View]:
    """The views besides the whole one: the mirrored one, then the crops."""
    mirrored = [MIRRORED] if flip else []
    return [*mirrored, *(View(crop=n) for n in range(1, crops + 1))]
