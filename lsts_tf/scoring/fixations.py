"""Where people looked in all frames of a set.

A set is all frames that are scored together, numbered through: rows, in the
order of videos and frames. Fixations are int16 [N, 2], (row, column), each
pixel once.
"""

from collections.abc import Iterable
from collections.abc import Mapping
from collections.abc import Sequence
import pathlib

import numpy as np


class FixationSet:
    """Fixations of all frames of a set.

    Attributes:
        videos: int32 [rows], video of each row, ascending.
        frames: int32 [rows], frame in its video, ascending.
        sizes: int32 [rows, 2], (H, W) of its ground truth.
    """

    _ARRAYS = ("videos", "frames", "sizes", "starts", "points")

    def __init__(
        self,
        *,
        videos: np.ndarray,
        frames: np.ndarray,
        sizes: np.ndarray,
        starts: np.ndarray,
        points: np.ndarray,
    ):
        """See `of`, which makes the arrays.

        Args:
            videos: As the attribute.
            frames: As the attribute.
            sizes: As the attribute.
            starts: int64 [rows + 1], where a row's points begin and end.
            points: int16 [N, 2].
        """
        self.videos = videos
        self.frames = frames
        self.sizes = sizes
        self._starts = starts
        self._points = points

    @classmethod
    def of(
        cls,
        videos: Mapping[int, Sequence[tuple[int, np.ndarray, tuple[int, int]]]],
    ) -> "FixationSet":
        """Of {video: [(frame, fixations, size), ...]}."""
        rows = [
            (video, *row)
            for video in sorted(videos)
            for row in sorted(videos[video], key=lambda row: row[0])
        ]
        counts = [len(points) for _, _, points, _ in rows]
        empty = [np.zeros((0, 2), np.int16)]
        return cls(
            videos=np.array([video for video, *_ in rows], np.int32),
            frames=np.array([frame for _, frame, *_ in rows], np.int32),
            sizes=np.array([row[3] for row in rows], np.int32).reshape(-1, 2),
            starts=np.cumsum([0, *counts], dtype=np.int64),
            points=np.concatenate(
                empty + [points for _, _, points, _ in rows]
            ).astype(np.int16),
        )

    @classmethod
    def of_maps(
        cls, maps: Iterable[tuple[int, int, np.ndarray]]
    ) -> "FixationSet":
        """Of (video, frame, [H, W] that is not 0 where somebody looked)."""
        videos: dict[int, list[tuple]] = {}
        for video, frame, fixated in maps:
            row = (frame, np.argwhere(fixated), fixated.shape)
            videos.setdefault(video, []).append(row)
        return cls.of(videos)

    def save(self, folder: pathlib.Path) -> None:
        """Writes it, for `load` in other processes."""
        arrays = (
            self.videos,
            self.frames,
            self.sizes,
            self._starts,
            self._points,
        )
        for name, values in zip(self._ARRAYS, arrays, strict=True):
            np.save(folder / f"{name}.npy", values)

    @classmethod
    def load(cls, folder: pathlib.Path) -> "FixationSet":
        """Reads it where it lies; processes share one copy in memory."""
        return cls(
            **{
                # Memory maps of nothing are an error.
                name: np.load(
                    path,
                    mmap_mode="r" if path.stat().st_size > 128 else None,
                )
                for name in cls._ARRAYS
                for path in [folder / f"{name}.npy"]
            }
        )

    def __len__(self) -> int:
        return len(self.videos)

    def rows(self, video: int) -> range:
        """Rows of a video."""
        first, last = np.searchsorted(self.videos, [video, video + 1])
        return range(int(first), int(last))

    def __getitem__(self, row: int) -> np.ndarray:
        """Fixations of a frame."""
        return np.asarray(
            self._points[self._starts[row] : self._starts[row + 1]]
        )

    def size(self, row: int) -> tuple[int, int]:
        """Size (H, W) of a frame's ground truth."""
        height, width = self.sizes[row].tolist()
        return height, width

    def neighbour(self, row: int) -> int:
        """The next frame of the video; of the last one, that before it."""
        rows = self.rows(int(self.videos[row]))
        return (
            min(row + 1, rows[-1]) if row + 1 in rows else max(row - 1, rows[0])
        )

    def gathered(
        self, rows: Sequence[int], size: tuple[int, int]
    ) -> np.ndarray:
        """Fixations of several frames; those of other sizes are scaled."""
        return np.concatenate(
            [
                points
                if self.size(row) == size
                # The pixel that the centre of their pixel falls into.
                else np.floor(
                    (points + 0.5) * (np.array(size) / self.sizes[row])
                ).astype(np.int16)
                for row in rows
                for points in [self[row]]
            ]
        )
