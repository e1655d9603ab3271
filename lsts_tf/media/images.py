"""Pictures on disk: saliency maps, and frames of a clip.

A map is [H, W]; as a grey PNG it has 256 levels, 0 … 255 for 0 … 1, or 65,536.
Files appear whole or not at all. Files of frames and folders of videos have
numbers for names, from 1, with any number of leading zeros: `601/0001.png` is
frame 0 of video 601.
"""

from collections.abc import Mapping, Sequence
import contextlib
import os
import pathlib
import re
import stat
import struct
from typing import NamedTuple

import cv2
from kornia_rs import io as kornia_io
import numpy as np
import PIL.Image
import PIL.ImageOps

from lsts_tf.media import files

SUFFIXES = (".png", ".npy")
# Signature and header chunk of a PNG: width, height, bits, colour, compression,
# filter, interlace.
_PNG_HEADER = struct.Struct(">16xIIBBBBB")
_PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR"
_PNG_END = b"\0\0\0\0IEND\xaeB`\x82"
_GREY_8 = (8, 0, 0, 0, 0)
# A header may ask for any size, and OpenCV would be busy with some for hours.
_MOST_PIXELS = 2**26


class MapError(files.FileError):
    """A file that is not a map."""


class Numbered(NamedTuple):
    """What a folder holds.

    Attributes:
        entries: {number: path of a file or folder}, in the order of the
            numbers.
        strays: What has no number or another type, and why.
        clashes: Numbers that two names have.
    """

    entries: Mapping[int, str]
    strays: Sequence[str]
    clashes: Sequence[str]


def numbered(
    folder: str | os.PathLike[str],
    suffixes: Sequence[str],
    *,
    folders: bool = False,
) -> Numbered:
    """Files of a folder, not below it, whose names are numbers.

    Names that begin with a point are passed over. Those with `suffixes`, which
    are in small letters, count, and folders if `folders` says so.

    Raises:
        MapError: There is no such folder.
    """
    entries: dict[int, str] = {}
    strays, clashes = [], []
    try:
        found = sorted(
            os.scandir(os.fspath(folder)), key=lambda entry: entry.name
        )
    except OSError as error:
        raise MapError(folder, f"no folder ({error.strerror}).") from error
    for entry in found:
        if entry.name.startswith("."):
            continue
        name = pathlib.PurePath(entry.name)
        try:
            # Of what a link points to; one in a loop points to nothing.
            is_folder = stat.S_ISDIR(entry.stat().st_mode)
        except OSError as error:
            strays.append(f"{entry.path}: cannot be read ({error.strerror})")
            continue
        stem = entry.name if is_folder else name.stem
        if not (folders if is_folder else name.suffix.lower() in suffixes):
            kind = "a folder" if is_folder else "a file of another type"
            strays.append(f"{entry.path}: {kind}")
        elif not re.fullmatch("[0-9]{1,9}", stem):
            strays.append(f"{entry.path}: its name is not a number")
        elif int(stem) in entries:
            other = pathlib.PurePath(entries[int(stem)]).name
            clashes.append(f"{entry.path}: has the same number as {other}")
        else:
            entries[int(stem)] = entry.path
    return Numbered(dict(sorted(entries.items())), strays, clashes)


def read(path: str | os.PathLike) -> np.ndarray:
    """Reads a map as it is, without any scaling.

    Of pictures in colour it is the first channel, red, as the benchmark's
    program takes it.

    Args:
        path: A picture of 8 or 16 bits, or an array of NumPy [H, W] or
            [H, W, 1] of real numbers.

    Returns:
        [H, W] of the file's type: uint8, uint16, or that of the array.

    Raises:
        MapError: It is none of these, is empty or damaged, or has a value
            that is not finite or beyond what float32 can hold (3.4e38), so
            that no sum of a map overflows.
    """
    try:
        if os.fspath(path).lower().endswith(".npy"):
            return _read_array(path)
        data = pathlib.Path(path).read_bytes()
    except OSError as error:
        raise MapError(path, f"cannot be read ({error.strerror}).") from error
    if not data:
        raise MapError(path, "the file is empty.")
    # An animation says in front of its first picture how many it has.
    place = data.find(b"acTL", 0, data.find(b"IDAT"))
    if place >= 0:
        several = int.from_bytes(data[place + 4 : place + 8], "big")
        raise MapError(path, f"holds {several} pictures; a map is one.")
    image = decode(data, cv2.IMREAD_UNCHANGED)
    if image is None:
        raise MapError(path, "not a picture, or a damaged one.")
    if image.ndim == 3:
        image = image[..., 2]  # OpenCV's order is blue, green, red, alpha.
    if image.dtype not in (np.uint8, np.uint16):
        raise MapError(path, f"a picture of 8 or 16 bits, not {image.dtype}.")
    return image


def _read_array(path: str | os.PathLike) -> np.ndarray:
    try:
        # Mapped first, because a header may declare any shape, and memory of
        # it would be taken before it is found that the file is too short.
        # Damaged shapes may also overflow.
        with np.errstate(over="raise"):
            found = np.load(path, mmap_mode="r", allow_pickle=False)
    except OSError:
        raise
    except Exception as error:  # Headers are parsed as Python.
        raise MapError(
            path, f"not a NumPy array, or a damaged one ({error})."
        ) from error
    if not isinstance(found, np.ndarray):
        found.close()
        raise MapError(path, "an archive; save one array with `np.save`.")
    array = np.array(found)
    if array.ndim == 3 and array.shape[-1] == 1:
        array = array[..., 0]
    if array.ndim != 2 or 0 in array.shape:
        raise MapError(path, f"a map is [H, W], not {list(array.shape)}.")
    if array.dtype.kind not in "buif":
        raise MapError(path, f"a map has real numbers, not {array.dtype}.")
    if array.dtype.kind == "f":
        if not np.isfinite(array).all():
            raise MapError(path, "has a value that is NaN or infinite.")
        if np.abs(array).max() > np.finfo(np.float32).max:
            raise MapError(path, "has a value beyond float32's range, 3.4e38.")
    return array


def file_name(frame: int) -> str:
    """Name of frame `frame` (from 0) in DHF1K's layout: 0001.png is frame 0."""
    return f"{frame + 1:04d}.png"


def write_png(path: pathlib.Path, image: np.ndarray) -> None:
    """Writes a picture, uint8 or uint16, grey [H, W] or RGB [H, W, 3]."""
    if image.ndim == 3:
        image = cv2.cvtColor(image, cv2.COLOR_RGB2BGR)
    done, data = cv2.imencode(".png", image)
    if not done:
        raise OSError(f"{path} cannot be encoded as PNG.")
    with files.replacing(path) as temporary:
        temporary.write_bytes(data.tobytes())


def decode(data: bytes, how: int = cv2.IMREAD_GRAYSCALE) -> np.ndarray | None:
    """Decodes a picture, grey PNG of 8 bits several times faster than OpenCV.

    These are what saliency datasets and models write. Everything else is left
    to OpenCV, and so is the last word on what is damaged.

    Returns:
        What `cv2.imdecode` returns for `how`: uint8 (unchanged also uint16),
        grey [H, W], or [H, W, 3 or 4], BGR and BGRA, of colour left unchanged;
        None, if it is no picture or a damaged one, or a PNG of more than
        2**26 pixels. A grey PNG of 8 bits is [H, W] always.
    """
    if data.startswith(_PNG_SIGNATURE) and len(data) >= _PNG_HEADER.size:
        width, height, *kind = _PNG_HEADER.unpack_from(data)
        if width * height > _MOST_PIXELS:
            return None
        # The fast decoder does not look at the end.
        if tuple(kind) == _GREY_8 and data.endswith(_PNG_END):
            # It has no exception of its own.
            with contextlib.suppress(Exception):
                return kornia_io.decode_image_png_u8(
                    data, (height, width), "mono"
                )[..., 0]
    try:
        return cv2.imdecode(np.frombuffer(data, np.uint8), how)
    except cv2.error:  # Empty, or more pixels than it allows.
        return None


def read_frame(path: pathlib.Path) -> np.ndarray:
    """Reads a picture as a frame: uint8 RGB [H, W, 3].

    It has 8 or 16 bits, in any format that Pillow reads, and is turned as its
    EXIF says; what is transparent is blended over black.

    Raises:
        files.FileError: It cannot be read, or holds several pictures.
    """
    try:
        with PIL.Image.open(path) as picture:
            picture.load()
            # Phones put a second, smaller view into a photograph (MPO).
            several = getattr(picture, "n_frames", 1)
            if several == 1 or picture.format == "MPO":
                return _frame_of(picture)
    except Exception as error:  # Each format has errors of its own.
        raise files.FileError(
            path, f"not a picture of 8 or 16 bits, or a damaged one ({error})."
        ) from error
    raise files.FileError(
        path,
        f"holds {several} pictures: make a film of them, or one file of each.",
    )


def _frame_of(picture: PIL.Image.Image) -> np.ndarray:
    with contextlib.suppress(Exception):  # Damaged EXIF turns nothing.
        picture = PIL.ImageOps.exif_transpose(picture)
    if picture.mode.startswith("I;16"):
        levels = np.rint(np.asarray(picture) / np.float32(257))
        return np.repeat(levels.astype(np.uint8)[..., None], 3, axis=-1)
    if picture.mode in ("I", "F"):
        raise ValueError(f"mode {picture.mode}")
    if not picture.has_transparency_data:
        return np.array(picture.convert("RGB"))
    pixels = np.asarray(picture.convert("RGBA"), np.float32)
    return np.rint(pixels[..., :3] * (pixels[..., 3:] / 255)).astype(np.uint8)


def to_uint8(saliency: np.ndarray) -> np.ndarray:
    """A map in [0, 1] as grey levels: rounded to the nearest of 256."""
    return np.rint(np.clip(saliency, 0.0, 1.0) * 255.0).astype(np.uint8)
