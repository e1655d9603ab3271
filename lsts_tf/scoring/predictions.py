"""Maps of any model, as files.

A folder holds one clip for each video: a folder of its frames' maps
(`0601/0001.png`, pictures of 8 or 16 bits, or `.npy`), or a video of them
(`0601.mp4`). Frames are numbered from 0 here and from 1 in names of files.
Nothing is decoded before it is asked for.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
import functools
import os
import pathlib
from typing import NamedTuple

import numpy as np

from lsts_tf.media import images, video

Maps = Iterator[np.ndarray | images.MapError]


class Clip(NamedTuple):
    """The maps of a video.

    Attributes:
        frames: Numbers of the frames, ascending.
        read: Maps [H, W] of some frames in ascending order, or why one cannot
            be had.
    """

    frames: Sequence[int]
    read: Callable[[Sequence[int]], Maps]


def _of_files(files: Mapping[int, str], frames: Sequence[int]) -> Maps:
    """By {frame: the file of its map}."""
    for frame in frames:
        try:
            yield images.read(files[frame])
        except images.MapError as error:
            yield error


def _of_film(file: str, frames: Sequence[int]) -> Maps:
    """By a video of the maps: the first channel, red.

    Decoding stops behind the last frame that is asked for.
    """
    wanted = list(frames)
    reason = "the video is shorter than it declares."
    try:
        for number, image in enumerate(video.frames(file)):
            if not wanted:
                return
            if number == wanted[0]:
                wanted.pop(0)
                yield np.ascontiguousarray(image[..., 0])
    except video.VideoError as error:
        reason = error.reason
    for frame in wanted:
        yield images.MapError(file, f"frame {frame + 1}: {reason}")


def find(
    folder: str | os.PathLike,
    problems: dict[str, list[str]],
    videos: frozenset[int] = frozenset(),
) -> dict[int, Clip]:
    """{video: its clip} of a model; looks for files and does not read maps.

    Only frames of videos whose files estimate their number are counted. It
    looks into `videos`, or into all if none is named, and adds to `problems`:
    "extra" are files and folders that are no map, "clashes" names that have the
    same number as others, "unreadable" videos that cannot be opened.

    Raises:
        images.MapError: There is no such folder, or no clip in it.
    """
    clips: dict[int, Clip] = {}
    top = images.numbered(folder, video.SUFFIXES, folders=True)
    looked = [top]
    if not top.entries:
        raise images.MapError(
            folder,
            "has no numbered folder or video; the map of frame 1 of video 601 "
            "is 0601/0001.png.",
        )
    for number, path in top.entries.items():
        if videos and number not in videos:
            continue
        if pathlib.Path(path).is_dir():
            inside = images.numbered(path, images.SUFFIXES)
            looked.append(inside)
            files = {n - 1: file for n, file in inside.entries.items()}
            clips[number] = Clip(
                tuple(files), functools.partial(_of_files, files)
            )
            continue
        try:
            frames = range(video.count_frames(path))
            clips[number] = Clip(frames, functools.partial(_of_film, path))
        except video.VideoError as error:
            problems["unreadable"].append(str(error))
    for found in looked:
        problems["extra"] += found.strays
        problems["clashes"] += found.clashes
    return clips
