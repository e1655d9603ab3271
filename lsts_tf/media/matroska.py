"""Whether a Matroska or WebM file is put together as it should be.

The format is one of elements: a name, a size, and so many bytes. Frames lie in
clusters, and nothing says how many there are. Readers that come upon rubbish
go on at the next cluster and keep silent; but then elements do not follow each
other without a gap any more.
"""

from collections.abc import Iterator
import os
import pathlib
from typing import BinaryIO

_SEGMENT = 0x18538067
_CLUSTER = 0x1F43B675
# What else lies in a file, in a segment, in a cluster, and everywhere.
_OTHERS = frozenset(
    [
        # EBML.
        0x1A45DFA3,
        # SeekHead, Info, Tracks, Cues, Attachments, Chapters, Tags.
        *(0x114D9B74, 0x1549A966, 0x1654AE6B, 0x1C53BB6B),
        *(0x1941A469, 0x1043A770, 0x1254C367),
        # Timestamp, SilentTracks, Position, PrevSize, SimpleBlock, BlockGroup,
        # EncryptedBlock.
        *(0xE7, 0x5854, 0xA7, 0xAB, 0xA3, 0xA0, 0xAF),
        # Void, CRC-32.
        *(0xEC, 0xBF),
    ]
)


def is_whole(path: pathlib.Path) -> bool:
    """Whether elements follow each other from the start to the end.

    What is in them is not looked at, so it reads a few bytes a frame.

    Args:
        path: A file that is known to be Matroska or WebM.

    Raises:
        OSError: It cannot be read.
    """
    with path.open("rb") as file:
        end = file.seek(0, os.SEEK_END)
        file.seek(0)
        place = 0
        for name, size in _elements(file):
            place = file.tell()
            if name == _SEGMENT and place + (size or 0) > end:
                return False
            if name not in (_SEGMENT, _CLUSTER):
                if name not in _OTHERS or size is None:
                    return False
                place = file.seek(size, os.SEEK_CUR)
        return place == end == file.tell()


def _elements(file: BinaryIO) -> Iterator[tuple[int, int | None]]:
    """Yields names and sizes of elements where the file stands.

    A size is None if it is unknown, as in a live stream.
    """
    while (name := _number(file, keep_mark=True)) is not None:
        size = _number(file, keep_mark=False)
        if size is None:
            return
        yield name, None if size < 0 else size


def _number(file: BinaryIO, *, keep_mark: bool) -> int | None:
    """A number that tells its own length; -1 if all its bits are set.

    As many zero bits as further bytes stand before a mark of one bit.
    """
    first = file.read(1)
    if not first or not first[0]:
        return None
    length = 9 - first[0].bit_length()
    data = first + file.read(length - 1)
    if len(data) < length:
        return None
    value = int.from_bytes(data, "big")
    if keep_mark:
        return value
    value &= (1 << 7 * length) - 1
    return -1 if value == (1 << 7 * length) - 1 else value
