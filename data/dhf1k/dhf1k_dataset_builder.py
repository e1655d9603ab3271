"""DHF1K as a TensorFlow dataset: one example per video.

Videos are numbered from 1 to 1000. A video's frames are numbered from 0 in
the dataset and from 1 on disk: `0001.png` belongs to the first decoded frame.
Everything is 640 pixels wide and 360 high.
"""

import collections
from collections.abc import Iterator
from concurrent import futures
import contextlib
import os
import re

from etils import epath
import tensorflow_datasets as tfds

import gaze_dataset
from lsts_tf.media import video

HEIGHT = 360
WIDTH = 640

# The official splits, by video number. Nobody outside the benchmark has the
# annotation of the last one.
SPLITS = {
    tfds.Split.TRAIN: range(1, 601),
    tfds.Split.VALIDATION: range(601, 701),
    tfds.Split.TEST: range(701, 1001),
}
ANNOTATED = range(1, 701)
PARTS = dict.fromkeys(("maps", "fixation"), (".png",))


class Builder(tfds.core.GeneratorBasedBuilder):
    """Reads DHF1K as its authors distribute it."""

    VERSION = tfds.core.Version("1.0.0")
    RELEASE_NOTES = {
        "1.0.0": (
            "Whole videos at 640x360: frames as JPEG of quality 95, density "
            "maps and fixation maps as the PNG files of the distribution."
        ),
    }
    MANUAL_DOWNLOAD_INSTRUCTIONS = """
    DHF1K is on cloud drives that need a browser. Follow the links in the
    README of https://github.com/wenguanwang/DHF1K, download `video.rar`
    (4.0 GB) and `annotation.rar` (3.9 GB), and unpack both, by
    `unrar x video.rar` and `unrar x annotation.rar` or 7-Zip, into the manual
    folder or into one folder in it:

        <manual_dir>/video/001.AVI ... 1000.AVI
        <manual_dir>/annotation/0001/maps/0001.png ...
        <manual_dir>/annotation/0001/fixation/0001.png ...

    The manual folder is the one given by `--manual_dir`, otherwise
    `<data_dir>/downloads/manual`. Any subset of the videos works; a video
    numbered 1 to 700 needs its folder in `annotation/`. Nothing else of the
    distribution is read.
    """

    def _info(self) -> tfds.core.DatasetInfo:
        return self.dataset_info_from_configs(
            features=gaze_dataset.features(HEIGHT, WIDTH),
            homepage="https://github.com/wenguanwang/DHF1K",
            license="CC BY 4.0 (https://creativecommons.org/licenses/by/4.0/)",
        )

    def _split_generators(
        self, dl_manager: tfds.download.DownloadManager
    ) -> dict[str, Iterator[tuple[int, gaze_dataset.Example]]]:
        root = gaze_dataset.find_root(
            epath.Path(dl_manager.manual_dir), ["video"]
        )
        videos = _find_videos(root / "video")
        # Compressing takes an hour, and a build that stops leaves nothing
        # behind: whatever file names tell is checked before.
        for number in videos:
            _find_annotation(root / "annotation", number)
        # TFDS takes a split without examples for a mistake, but half a
        # download is still of use.
        return {
            split: self._generate_examples(
                root, {n: videos[n] for n in numbers if n in videos}
            )
            for split, numbers in SPLITS.items()
            if any(number in videos for number in numbers)
        }

    def _generate_examples(
        self, root: epath.Path, videos: dict[int, epath.Path]
    ) -> Iterator[tuple[int, gaze_dataset.Example]]:
        with futures.ThreadPoolExecutor(gaze_dataset.WORKERS) as pool:
            for number, path in videos.items():
                annotation = _find_annotation(root / "annotation", number)
                frames, film = _read_video(pool, number, path)
                # The header is an estimate in some files, so it counts only
                # where there is no annotation to count by.
                length = len(annotation[0]) or film.num_frames
                if len(frames) != length:
                    raise ValueError(
                        f"Video {number} must have as many frames as maps, or, "
                        "without maps, as its header declares. Received: "
                        f"{len(frames)} frames decoded, {film.num_frames} "
                        f"declared, {len(annotation[0])} maps. With fewer "
                        "decoded than declared, the AVI file is truncated or "
                        "damaged: unpack video.rar again. Otherwise unpack "
                        "annotation.rar again."
                    )
                maps, fixations = (
                    gaze_dataset.read_all(
                        pool,
                        paths,
                        gaze_dataset.read_grey,
                        name=f"Video {number}",
                        size=(HEIGHT, WIDTH),
                    )[0]
                    for paths in annotation
                )
                found = frames, maps, fixations
                yield number, gaze_dataset.example(number, film.fps, *found)


def _find_videos(folder: epath.Path) -> dict[int, epath.Path]:
    """Files by video number, in numeric order.

    Names must not be sorted instead: `1000.AVI` comes before `101.AVI`.
    """
    videos: dict[int, epath.Path] = {}
    for path in sorted(folder.iterdir()):
        if path.suffix.lower() != ".avi" or path.name.startswith("."):
            continue
        number = int(path.stem) if re.fullmatch(r"\d{3,4}", path.stem) else 0
        if not 1 <= number <= 1000:
            raise ValueError(
                "Videos are named by their number, 001.AVI to 1000.AVI. "
                f"Received: {os.fspath(path)}. Move it elsewhere."
            )
        if (other := videos.setdefault(number, path)) != path:
            raise ValueError(
                f"Video {number} must be one file. Received: {other.name} and "
                f"{path.name} in {os.fspath(folder)}. Remove one."
            )
    if not videos:
        raise ValueError(
            "There must be at least one video, such as 001.AVI. Received: "
            f"none in {os.fspath(folder)}. Unpack video.rar there."
        )
    return dict(sorted(videos.items()))


def _find_annotation(
    annotation: epath.Path, number: int
) -> list[list[epath.Path]]:
    """Map and fixation files of a video; none for a test video."""
    folder = annotation / f"{number:04d}"
    if number not in ANNOTATED:
        if folder.exists():
            raise ValueError(
                f"Video {number} is a test video, which DHF1K does not "
                f"annotate. Received: {os.fspath(folder)}. Remove the folder, "
                "or give video and folder a number up to 700."
            )
        return [[], []]
    if not folder.is_dir():
        raise ValueError(
            f"Video {number} needs its annotation. Received: no folder "
            f"{os.fspath(folder)}. Unpack annotation.rar there, or remove "
            "the video."
        )
    return gaze_dataset.find_parts(folder, f"Video {number}", PARTS)


def _read_video(
    pool: futures.Executor, number: int, path: epath.Path
) -> tuple[list[bytes], video.Video]:
    """JPEG frames, and the film that they are of."""
    frames: list[bytes] = []
    # A raw frame is 0.7 MB and a video has up to 1558 of them: only a few may
    # wait for a worker.
    waiting: collections.deque[futures.Future[bytes]] = collections.deque()
    try:
        film = video.Video(path)
        if film.size != (WIDTH, HEIGHT):
            raise ValueError(
                f"Video {number} must be {WIDTH}x{HEIGHT}. Received: "
                f"{film.size[0]}x{film.size[1]} in {os.fspath(path)}."
            )
        # Whether frames are lost is seen when they are counted.
        with contextlib.suppress(video.TruncatedVideoError):
            for frame in film:
                waiting.append(pool.submit(gaze_dataset.jpeg, frame))
                if len(waiting) > 2 * gaze_dataset.WORKERS:
                    frames.append(waiting.popleft().result())
    except video.VideoError as error:
        raise ValueError(
            f"Video {number} must be an AVI file that FFmpeg can read. "
            f"Received: {error} Unpack video.rar again."
        ) from error
    frames.extend(future.result() for future in waiting)
    return frames, film
