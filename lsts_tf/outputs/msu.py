"""What the challenges AIM 2024 and NTIRE 2026 and CrowdSAL take."""

import dataclasses

import cv2
import numpy as np

from lsts_tf.media import draw
from lsts_tf.outputs import sink


@sink.output("msu", "{video}.mp4")
@dataclasses.dataclass(kw_only=True)
class Submission(sink.Sink):
    """A grey film of a film's name, size and number of frames.

    H.264 of 10 bits, almost without loss. Each map is stretched over its own
    range, as the challenges' program does when it reads it.
    """

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.first or self.step != 1:
            raise ValueError(
                "A submission has a map for each frame: leave out --every and "
                f"--first_frames=skip. Received: the first map is of frame "
                f"{self.first}, then of each {self.step}."
            )

    def _open(self) -> None:
        self._film = self.film(self.size, pixels="gray10")

    def _write(self, frame: np.ndarray, map_: np.ndarray, time: float) -> None:
        large = cv2.resize(map_, self.size, interpolation=cv2.INTER_LINEAR)
        levels = np.rint(draw.stretch(large) * 1023.0)
        self._film.write(levels.astype(np.uint16), time)
