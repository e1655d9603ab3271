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
import re
import struct
from typing import Any, NamedTuple

import cv2
from etils import epath
import numpy as np
import tensorflow_datasets as tfds

JPEG_QUALITY = 95

# One decodes while the others compress.
WORKERS = max(2, min(8, os.cpu_count() or 2))

# The split of each folder of clips.
FOLDERS = {tfds.Split.TRAIN: "training", tfds.Split.TEST: "testing"}

IMAGES = (".png", ".jpg", ".jpeg")
_PARTS = ("images", "maps", "fixation maps")

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
    """Compresses a BGR frame; the file's colours are the right ones."""
    _, data = cv2.imencode(
        ".jpg", frame, (cv2.IMWRITE_JPEG_QUALITY, JPEG_QUALITY)
    )
    return data.tobytes()


def png(image: np.ndarray) -> bytes:
    """Compresses a grey image without loss."""
    return cv2.imencode(".png", image)[1].tobytes()


class PngHeader(NamedTuple):
    """What a PNG file says of itself; a decoder would hide some of it."""

    width: int
    height: int
    depth: int
    colour: int

    @property
    def grey(self) -> bool:
        """Whether it is as the contract has it: grey, 8 bits."""
        return (self.depth, self.colour) == (8, 0)

    def __str__(self) -> str:
        kinds = {0: "grey", 2: "RGB", 3: "palette", 4: "grey+alpha", 6: "RGBA"}
        kind = kinds.get(self.colour, f"colour type {self.colour}")
        return f"{self.width}x{self.height}, {kind}, {self.depth} bits"


def png_header(data: bytes) -> PngHeader | None:
    """The header of a PNG file, or None if it is none."""
    # Signature, length and name of the first chunk, then what it says.
    header = re.match(rb"\x89PNG\r\n\x1a\n....IHDR(.{10})", data, re.DOTALL)
    return PngHeader(*struct.unpack(">IIBB", header[1])) if header else None


def decode(data: bytes, flags: int) -> np.ndarray | None:
    """Decodes a picture; None if it cannot be."""
    if not data:
        return None
    return cv2.imdecode(np.frombuffer(data, np.uint8), flags)


def read_image(path: epath.Path) -> tuple[bytes, tuple[int, int]]:
    """A picture as JPEG, and its size (H, W).

    Raises:
        ValueError: It cannot be decoded.
    """
    frame = decode(path.read_bytes(), cv2.IMREAD_COLOR)
    if frame is None:
        raise ValueError(
            "images must be PNG or JPEG files. Received: "
            f"{os.fspath(path)}, which cannot be decoded. Unpack the archive "
            "again."
        )
    return jpeg(frame), frame.shape[:2]


def read_grey(path: epath.Path) -> tuple[bytes, tuple[int, int]]:
    """A map as PNG, and its size (H, W).

    A grey file of 8 bits stays as it is, byte for byte. Others are written
    anew if that loses nothing: fewer bits, or colours that are all grey.

    Raises:
        ValueError: It is no such file.
    """
    data = path.read_bytes()
    header = png_header(data)
    pixels = decode(data, cv2.IMREAD_UNCHANGED) if header else None
    if pixels is None:
        received = "unreadable pixels" if header else "no PNG file"
    else:
        grey = _as_grey(pixels)
        if grey is not None:
            if not header.grey:
                data = png(grey)
            return data, grey.shape
        received = str(header)
    raise ValueError(
        "maps and fixation maps must be grey PNG files of at most 8 bits. "
        f"Received: {received} in {os.fspath(path)}. Unpack the archive again."
    )


def _as_grey(pixels: np.ndarray) -> np.ndarray | None:
    """The grey levels of a picture; None if it has colours or more bits."""
    if pixels.dtype != np.uint8:
        return None
    if pixels.ndim == 2:
        return pixels
    colours = pixels[..., :3]
    grey = np.ascontiguousarray(colours[..., 0])
    return grey if (colours == grey[..., None]).all() else None


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


# === Clips: folders of pictures ===


class Clip(NamedTuple):
    """A clip's files, in the order of time."""

    name: str
    images: Sequence[epath.Path]
    maps: Sequence[epath.Path]
    fixations: Sequence[epath.Path]


def find_clips(
    manual_dir: epath.Path, number_of: Callable[[str], int | None], example: str
) -> dict[str, dict[int, Clip]]:
    """Clips of each split that has some, by number.

    Whatever file names tell is checked here, before the first picture is read:
    reading takes long, and a build that stops leaves nothing behind.

    Args:
        manual_dir: The manual folder.
        number_of: The number of a clip of this name; None if it is no name of
            a clip.
        example: Name of a clip, for messages.

    Raises:
        ValueError: A clip's pictures do not belong together, or there is none.
    """
    root = find_root(manual_dir, tuple(FOLDERS.values()))
    clips: dict[int, epath.Path] = {}
    splits: dict[str, dict[int, Clip]] = {}
    for split, folder in FOLDERS.items():
        for path in _folders(root / folder):
            number = number_of(path.name)
            if number is None:
                raise ValueError(
                    f"Clips are named as in the distribution, such as "
                    f"{example}. Received: {os.fspath(path)}. Move it "
                    "elsewhere."
                )
            if number in clips:
                raise ValueError(
                    f"Clip {path.name} must be one folder. Received: "
                    f"{os.fspath(clips[number])} and {os.fspath(path)}. "
                    "Remove one."
                )
            clips[number] = path
            splits.setdefault(split, {})[number] = find_clip(path)
    if not clips:
        raise ValueError(
            f"There must be at least one clip, such as {example}. Received: "
            f"none in {os.fspath(root)}. Unpack the archives there."
        )
    # TFDS takes a split without examples for a mistake, but half a download
    # is still of use: such a split is not among these.
    return {
        split: dict(sorted(found.items())) for split, found in splits.items()
    }


def _folders(folder: epath.Path) -> list[epath.Path]:
    if not folder.is_dir():
        return []
    return [
        path
        for path in sorted(folder.iterdir())
        if path.is_dir() and not path.name.startswith(".")
    ]


class ClipBuilder(tfds.core.GeneratorBasedBuilder, skip_registration=True):
    """Reads a dataset that the authors of DHF1K distribute as clips."""

    # Name of a clip, for messages.
    EXAMPLE = ""

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
        found = find_clips(
            epath.Path(dl_manager.manual_dir),
            self.number_of,
            example=self.EXAMPLE,
        )
        return {
            split: self._generate_examples(clips)
            for split, clips in found.items()
        }

    def _generate_examples(
        self, clips: Mapping[int, Clip]
    ) -> Iterator[tuple[int, Example]]:
        with futures.ThreadPoolExecutor(WORKERS) as pool:
            for number, clip in clips.items():
                yield number, {"video": number, **_read_clip(pool, clip)}


def find_clip(folder: epath.Path) -> Clip:
    """The files of a clip, put together by their numbers.

    Raises:
        ValueError: They do not belong together; it names the clip and how many
            there are of each kind.
    """
    fixations = folder / "fixation"
    if not fixations.is_dir() and (folder / "fixations").is_dir():
        fixations = folder / "fixations"
    places = (folder / "images", folder / "maps", fixations)
    found = [
        _numbered(place, folder.name, suffixes)
        for place, suffixes in zip(
            places, (IMAGES, (".png",), (".png",)), strict=True
        )
    ]
    told = ", ".join(
        f"{len(files)} {part}"
        for files, part in zip(found, _PARTS, strict=True)
    )
    counts = {len(files) for files in found}
    if len(counts) > 1 or 0 in counts:
        raise ValueError(
            f"Clip {folder.name} must have a map and a fixation map for each "
            f"image. Received: {told} in {os.fspath(folder)}. Unpack it "
            "again, or remove the clip."
        )
    images = list(found[0])
    for files, part in zip(found, _PARTS, strict=True):
        numbers = list(files)
        first, last = numbers[0], numbers[-1]
        if last - first + 1 != len(numbers):
            absent = min(set(range(first, last)) - set(numbers))
            raise ValueError(
                f"The {part} of clip {folder.name} must be numbered without "
                f"gaps. Received: {told}, the {part} from {first} to {last} "
                f"without {absent}, in {os.fspath(folder)}. Unpack it again, "
                "or remove the clip."
            )
        if first not in (images[0], 1):
            raise ValueError(
                f"The {part} of clip {folder.name} must be numbered like its "
                f"images, or from 1. Received: {told}, the images from "
                f"{images[0]}, the {part} from {first}, in "
                f"{os.fspath(folder)}. Unpack it again, or remove the clip."
            )
    return Clip(folder.name, *(list(files.values()) for files in found))


def _numbered(
    folder: epath.Path, clip: str, suffixes: Sequence[str]
) -> dict[int, epath.Path]:
    """Files by the last number in their name, in the order of the numbers.

    Names that begin with a point, or have no number or another type, are
    passed over: fixation/ holds a folder of .mat files.
    """
    files: dict[int, epath.Path] = {}
    for path in sorted(folder.iterdir()) if folder.is_dir() else ():
        number = re.search(r"(\d+)$", path.stem)
        if (
            path.name.startswith(".")
            or path.suffix.lower() not in suffixes
            or not number
        ):
            continue
        if int(number[1]) in files:
            raise ValueError(
                f"Clip {clip} must have one file per number. Received: "
                f"{files[int(number[1])].name} and {path.name} in "
                f"{os.fspath(folder)}. Remove one."
            )
        files[int(number[1])] = path
    return dict(sorted(files.items()))


def _read_clip(pool: futures.Executor, clip: Clip) -> Example:
    """An example of all that a clip's files hold, but for its number."""
    name = f"Clip {clip.name}"
    frames, size = read_all(pool, clip.images, read_image, name=name)
    maps, fixations = (
        read_all(pool, paths, read_grey, name=name, size=size)[0]
        for paths in (clip.maps, clip.fixations)
    )
    return {
        "name": clip.name,
        "fps": CLIP_FPS,
        "num_frames": len(frames),
        "frames": frames,
        "maps": maps,
        "fixations": fixations,
    }
