"""What the challenges AIM 2024 and NTIRE 2026 and CrowdSAL take."""

import dataclasses

import cv2
import numpy as np

from lsts_tf.outputs import pictures, sink


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
                f"--first_frames=skip. Received: maps from frame {self.first}, "
                f"every {self.step} frames."
            )

    def _open(self) -> None:
        self._film = self.film(self.size, pixels="gray10")

    def _write(self, frame: np.ndarray, map_: np.ndarray, time: float) -> None:
        large = cv2.resize(map_, self.size, interpolation=cv2.INTER_LINEAR)
        levels = pictures.stretch(large, float(large.min()), float(large.max()))
        self._film.write(np.rint(levels * 1023.0).astype(np.uint16), time)
