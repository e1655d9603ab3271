"""Maps of any model, as files.

A folder holds one clip for each video: a folder of its frames' maps
(`0601/0001.png`, pictures of 8 or 16 bits, or `.npy`), or a video of them
(`0601.mp4`). Frames are numbered from 0 here and from 1 in names of files.
Nothing is decoded before it is asked for.
"""

import collections
from collections.abc import Iterator, Mapping, Sequence
import dataclasses
import os
import pathlib

import numpy as np

from lsts_tf.media import images, video


@dataclasses.dataclass(frozen=True)
class FrameFiles:
    """A clip with one file for each map.

    Attributes:
        files: {frame: its file}.
    """

    files: Mapping[int, str]

    @property
    def frames(self) -> Sequence[int]:
        """Numbers of the frames, ascending."""
        return tuple(self.files)

    def read(
        self, frames: Sequence[int]
    ) -> Iterator[np.ndarray | images.MapError]:
        """Maps [H, W] of some frames, or why one cannot be had."""
        for frame in frames:
            try:
                yield images.read(self.files[frame])
            except images.MapError as error:
                yield error


@dataclasses.dataclass(frozen=True)
class VideoFile:
    """A clip that is a video of its maps.

    Attributes:
        file: The video.
        frames: Numbers of its frames; see `video.count_frames`.
    """

    file: str
    frames: Sequence[int]

    def read(
        self, frames: Sequence[int]
    ) -> Iterator[np.ndarray | images.MapError]:
        """Maps [H, W] of some frames in ascending order; see `FrameFiles`.

        It is the first channel, red. Decoding stops behind the last frame
        that is asked for.
        """
        wanted = collections.deque(frames)
        reason = "the video is shorter than it declares."
        try:
            for number, image in enumerate(video.frames(self.file)):
                if not wanted:
                    return
                if number == wanted[0]:
                    wanted.popleft()
                    yield np.ascontiguousarray(image[..., 0])
        except video.VideoError as error:
            reason = error.reason
        for frame in wanted:
            yield images.MapError(self.file, f"frame {frame + 1}: {reason}")


Clip = FrameFiles | VideoFile


class Predictions:
    """The maps of a model.

    Attributes:
        folder: Where they are.
        clips: {video: its clip}.
        strays: Files and folders that are no map, and why.
        clashes: Names that have the same number as others.
        unreadable: Videos that cannot be opened, and why.
    """

    def __init__(
        self,
        folder: str | os.PathLike,
        videos: frozenset[int] = frozenset(),
    ):
        """Looks for files; does not read maps.

        Only frames of videos whose files estimate their number are counted.

        Args:
            folder: Folder of clips.
            videos: Those to look into; all, if none is named.

        Raises:
            images.MapError: There is no such folder, or no clip in it.
        """
        self.folder = pathlib.Path(folder)
        self.clips: dict[int, Clip] = {}
        self.unreadable: list[str] = []
        top = images.numbered(folder, video.SUFFIXES, folders=True)
        self.strays, self.clashes = list(top.strays), list(top.clashes)
        if not top.entries:
            raise images.MapError(
                folder,
                "has no numbered folder or video; the map of frame 1 of "
                "video 601 is 0601/0001.png.",
            )
        for number, path in top.entries.items():
            if not videos or number in videos:
                self._add(number, path)

    def _add(self, number: int, path: str) -> None:
        if pathlib.Path(path).is_dir():
            inside = images.numbered(path, images.SUFFIXES)
            self.strays += inside.strays
            self.clashes += inside.clashes
            self.clips[number] = FrameFiles(
                {n - 1: file for n, file in inside.entries.items()}
            )
            return
        try:
            count = video.count_frames(path)
            self.clips[number] = VideoFile(path, range(count))
        except video.VideoError as error:
            self.unreadable.append(str(error))
