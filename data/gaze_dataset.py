"""What the datasets in this folder share: the contract, and how files are read.

A dataset is a folder here whose builder writes one example per video:

* `video`: int64, its number, which does not depend on what else is there, so
  that any part of a dataset can be built.
* `fps`: float32; `num_frames`: int64, T.
* `frames`: T JPEG images, RGB, [H, W, 3].
* `maps`, `fixations`: T PNG images, grey, 8 bits, [H, W, 1]; none where
  annotations are withheld.

H and W may differ between videos, not within one.

UCF Sports and Hollywood-2, as the authors of DHF1K distribute them, come as
clips: folders of pictures, `{training,testing}/<clip>/{images,maps,fixation}`.
Their examples have the folder's `name` as well. In each of the three folders a
picture's number is the last one in its file's name. Numbers run on without a
gap; they need not begin with 1. Maps and fixation maps have the numbers of the
images, or count from 1.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent import futures
import os
import pathlib
import re
import sys
from typing import Any, ClassVar

import cv2
from etils import epath
import numpy as np
import tensorflow_datasets as tfds

# The `tfds` command takes this folder off the path when it has read a builder;
# other processes need it later, and `lsts_tf` lies beside it.
for _folder in pathlib.Path(__file__).resolve().parents[:2]:
    if str(_folder) not in sys.path:
        sys.path.append(str(_folder))

from lsts_tf.media import files, images  # noqa: E402

JPEG_QUALITY = 95

# One decodes while the others compress.
WORKERS = max(2, min(8, os.cpu_count() or 2))

# The split of each folder of clips.
FOLDERS = {"training": tfds.Split.TRAIN, "testing": tfds.Split.TEST}

IMAGES = (".png", ".jpg", ".jpeg")
# Bits and colour of a PNG that is grey, of 8 bits, where its header says so.
_GREY_8 = b"\x08\0"

# Folders of pictures do not tell their rate. This is what those who train on
# them take; nothing is computed from it.
CLIP_FPS = 24.0

Example = dict[str, Any]


def features(
    height: int | None = None, width: int | None = None, **more: Any
) -> tfds.features.FeaturesDict:
    """The contract's features.

    Args:
        height: Of all frames and maps; None where it varies.
        width: Likewise.
        **more: Features of this dataset alone.
    """
    maps = (None, height, width, 1)
    return tfds.features.FeaturesDict(
        {
            "video": np.int64,
            "fps": np.float32,
            "num_frames": np.int64,
            "frames": tfds.features.Video(
                shape=(None, height, width, 3), encoding_format="jpeg"
            ),
            "maps": tfds.features.Video(shape=maps, encoding_format="png"),
            "fixations": tfds.features.Video(shape=maps, encoding_format="png"),
            **more,
        }
    )


def example(
    number: int,
    fps: float,
    frames: Sequence[bytes],
    maps: Sequence[bytes],
    fixations: Sequence[bytes],
    **more: Any,
) -> Example:
    """An example of the contract; `more` are features of its dataset alone."""
    return {
        "video": number,
        "fps": fps,
        "num_frames": len(frames),
        "frames": frames,
        "maps": maps,
        "fixations": fixations,
        **more,
    }


def find_root(manual_dir: epath.Path, names: Sequence[str]) -> epath.Path:
    """The folder of the data: the manual one, or one in it.

    Args:
        manual_dir: The manual folder.
        names: Folders of which it has one at least.

    Raises:
        ValueError: There is none, or several.
    """
    found = [
        (root, root / name)
        for root in [manual_dir, *sorted(manual_dir.iterdir())]
        for name in names
        if (root / name).is_dir()
    ]
    roots = {root for root, _ in found}
    if len(roots) != 1:
        wanted = " or ".join(f"`{name}/`" for name in names)
        raise ValueError(
            "The manual folder, or exactly one folder in it, must contain "
            f"{wanted}. Received: {os.fspath(manual_dir)} with "
            f"{[os.fspath(folder) for _, folder in found] or 'none'}. Choose "
            "another with --manual_dir."
        )
    return roots.pop()


def jpeg(frame: np.ndarray) -> bytes:
    """Compresses an RGB frame."""
    _, data = cv2.imencode(
        ".jpg",
        cv2.cvtColor(frame, cv2.COLOR_RGB2BGR),
        (cv2.IMWRITE_JPEG_QUALITY, JPEG_QUALITY),
    )
    return data.tobytes()


def png(image: np.ndarray) -> bytes:
    """Compresses a grey image without loss."""
    return cv2.imencode(".png", image)[1].tobytes()


def read_image(path: epath.Path) -> tuple[bytes, tuple[int, int]]:
    """A picture as JPEG, and its size (H, W).

    Raises:
        ValueError: It cannot be decoded.
    """
    try:
        frame = images.read_frame(path)
    except files.FileError as error:
        raise ValueError(
            f"images must be whole PNG or JPEG files. Received: {error} Unpack "
            "the archive again."
        ) from error
    return jpeg(frame), frame.shape[:2]


def read_grey(path: epath.Path) -> tuple[bytes, tuple[int, int]]:
    """A map as PNG, and its size (H, W).

    A grey file of 8 bits stays as it is, byte for byte. Others are written
    anew if that loses nothing: fewer bits, or colours that are all grey.

    Raises:
        ValueError: It is no such file.
    """
    data = path.read_bytes()
    pixels = images.decode(data, cv2.IMREAD_UNCHANGED)
    received = "no picture, or a damaged one"
    if pixels is not None:
        received = f"{pixels.dtype} {list(pixels.shape)}"
        grey = pixels if pixels.ndim == 2 else pixels[..., 0].copy()
        colours = pixels.reshape(*grey.shape, -1)[..., :3]
        if grey.dtype == np.uint8 and (colours == grey[..., None]).all():
            is_kept = data[:26].endswith(_GREY_8)
            return data if is_kept else png(grey), grey.shape
    raise ValueError(
        "maps and fixation maps must be grey PNG files of at most 8 bits. "
        f"Received: {received} in {os.fspath(path)}. Unpack the archive again."
    )


def read_all(
    pool: futures.Executor,
    paths: Sequence[epath.Path],
    read: Callable[[epath.Path], tuple[bytes, tuple[int, int]]],
    *,
    name: str,
    size: tuple[int, int] | None = None,
) -> tuple[list[bytes], tuple[int, int] | None]:
    """The pictures of a video, and their one size (H, W).

    Args:
        pool: What reads them.
        paths: Their files.
        read: `read_image` or `read_grey`.
        name: Of the video, for messages.
        size: What they must have; None for that of the first one.

    Raises:
        ValueError: A file cannot be read, or not all are of one size.
    """
    try:
        found = list(pool.map(read, paths))
    except ValueError as error:
        raise ValueError(f"{name}: {error}") from error
    for (_, (height, width)), path in zip(found, paths, strict=True):
        size = size or (height, width)
        if (height, width) != size:
            raise ValueError(
                f"{name}: all images and maps must be {size[1]}x{size[0]}. "
                f"Received: {width}x{height} in {os.fspath(path)}. Unpack the "
                "archive again."
            )
    return [data for data, _ in found], size


# === Folders of numbered pictures ===


def find_parts(
    folder: epath.Path,
    name: str,
    parts: Mapping[str, Sequence[str]],
) -> list[list[epath.Path]]:
    """The pictures of a video, part by part, in the order of time.

    Names that begin with a point, or have no number or another type, are
    passed over: DHF1K's fixation/ holds a folder of .mat files.

    Args:
        folder: Holds a folder for each part.
        name: Of the video, for messages.
        parts: {a part's folder: suffixes of its pictures}. All have the
            numbers of the images, if there are any, or count from 1.

    Raises:
        ValueError: They do not belong together.
    """
    found: dict[str, dict[int, epath.Path]] = {}
    for part, suffixes in parts.items():
        numbered = found[part] = {}
        for path in sorted((folder / part).glob("[!.]*")):
            number = re.search(r"(\d+)$", path.stem)
            if path.suffix.lower() not in suffixes or not number:
                continue
            if (other := numbered.setdefault(int(number[1]), path)) != path:
                raise ValueError(
                    f"{name} must have one file of each number. Received: "
                    f"{other.name} and {path.name} in {os.fspath(folder)}. "
                    "Remove one."
                )
    length = len(found[part])
    starts = {1, min(found.get("images", ()), default=1)}
    fitting = [list(range(start, start + length)) for start in starts]
    if not length or any(sorted(of) not in fitting for of in found.values()):
        told = ", ".join(
            f"{len(of)} {part}"
            + (f" from {min(of)} to {max(of)}" if of else "")
            for part, of in found.items()
        )
        raise ValueError(
            f"{name} must have a picture of each frame in "
            f"{', '.join(parts)}, of the same numbers or from 1 on, without a "
            f"gap. Received: {told} in {os.fspath(folder)}. Unpack it again, "
            "or remove the video."
        )
    return [[path for _, path in sorted(of.items())] for of in found.values()]


class ClipBuilder(tfds.core.GeneratorBasedBuilder, skip_registration=True):
    """Reads a dataset that the authors of DHF1K distribute as clips."""

    VERSION = tfds.core.Version("1.0.0")
    RELEASE_NOTES: ClassVar = {
        "1.0.0": (
            "Whole clips at their own size: frames as JPEG of quality 95, "
            "density maps and fixation maps as PNG."
        ),
    }
    # Name of a clip.
    EXAMPLE = ""

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        cls.MANUAL_DOWNLOAD_INSTRUCTIONS = f"""
    The dataset is given away by the authors of DHF1K by way of cloud drives
    that only a browser can open. Follow the links in the README of
    https://github.com/wenguanwang/DHF1K, fetch its archive and unpack it into
    the manual folder itself or into one folder in it:

        <manual_dir>/training/{cls.EXAMPLE}/images/*.png
        <manual_dir>/training/{cls.EXAMPLE}/maps/*.png
        <manual_dir>/training/{cls.EXAMPLE}/fixation/*.png
        <manual_dir>/testing/...

    The manual folder is the one given by `--manual_dir`, otherwise
    `<data_dir>/downloads/manual`. Any subset of the clips will do. Nothing
    else of the distribution is read.
    """

    @staticmethod
    def number_of(name: str) -> int | None:
        """The number of a clip of this name; None if it is no clip's name."""
        raise NotImplementedError

    def _info(self) -> tfds.core.DatasetInfo:
        return self.dataset_info_from_configs(
            features=features(name=tfds.features.Text()),
            homepage="https://github.com/wenguanwang/DHF1K",
        )

    def _split_generators(
        self, dl_manager: tfds.download.DownloadManager
    ) -> dict[str, Iterator[tuple[int, Example]]]:
        root = find_root(epath.Path(dl_manager.manual_dir), [*FOLDERS])
        clips: dict[int, epath.Path] = {}
        splits: dict[str, dict[int, epath.Path]] = {}
        for folder, split in FOLDERS.items():
            for path in sorted((root / folder).glob("[!.]*")):
                if not path.is_dir():
                    continue
                number = self.number_of(path.name)
                if number is None:
                    raise ValueError(
                        f"Clips are named as in the distribution, such as "
                        f"{self.EXAMPLE}. Received: {os.fspath(path)}. Move "
                        "it elsewhere."
                    )
                if (other := clips.setdefault(number, path)) != path:
                    raise ValueError(
                        f"Clip {path.name} must be one folder. Received: "
                        f"{os.fspath(other)} and {os.fspath(path)}. Remove one."
                    )
                # Reading takes long, and a build that stops leaves nothing
                # behind: whatever file names tell is checked before.
                _clip_parts(path)
                splits.setdefault(split, {})[number] = path
        if not clips:
            raise ValueError(
                f"There must be at least one clip, such as {self.EXAMPLE}. "
                f"Received: none in {os.fspath(root)}. Unpack the archives "
                "there."
            )
        # TFDS takes a split without examples for a mistake, but half a download
        # is still of use: such a split is not among these.
        return {
            split: self._generate_examples(of) for split, of in splits.items()
        }

    def _generate_examples(
        self, clips: Mapping[int, epath.Path]
    ) -> Iterator[tuple[int, Example]]:
        with futures.ThreadPoolExecutor(WORKERS) as pool:
            for number, folder in sorted(clips.items()):
                name = f"Clip {folder.name}"
                pictures, *grey = _clip_parts(folder)
                frames, size = read_all(pool, pictures, read_image, name=name)
                maps, fixations = (
                    read_all(pool, paths, read_grey, name=name, size=size)[0]
                    for paths in grey
                )
                found = frames, maps, fixations
                yield (
                    number,
                    example(number, CLIP_FPS, *found, name=folder.name),
                )


def _clip_parts(folder: epath.Path) -> list[list[epath.Path]]:
    plural = "s" if (folder / "fixations").is_dir() else ""
    return find_parts(
        folder,
        f"Clip {folder.name}",
        {"images": IMAGES, "maps": IMAGES[:1], f"fixation{plural}": IMAGES[:1]},
    )
