"""Which frames a prediction looks at: integers only.

Frames are numbered from 0, as they are decoded; frame k of a video carries
annotation file k + 1 of DHF1K. A window is named by its target, the last frame
that it holds, and predicts where people look in that frame. Flow k is the
motion from frame k - 1 to frame k; there is no flow 0. A window of flows for
target n holds the flows n - length + 1 ... n. RGB & Flow uses the same frames
in both streams (LSTS report, sections 3.1 to 3.3).

A clip of fewer frames than a window has none, or is played backwards before
its start, so that each of its frames has one (`Geometry.short`). Frames below
0 are those that are played before it.

    >>> Geometry().first_target
    78
    >>> Geometry.of(("rgb", "flow")).first_target
    79
    >>> Geometry().window(78)
    range(0, 79)
"""

from collections.abc import Iterable, Sequence
import dataclasses
import re
from typing import Any

STREAMS = ("rgb", "flow")
FIRST_FRAMES = ("repeat", "mirror", "copy", "skip")
SHORT_CLIPS = ("skip", "mirror")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Geometry:
    """The shape of every window of one experiment.

    Attributes:
        length: Frames (or flows) in a window.
        stride: Distance between the targets of successive windows.
        first: First usable frame: 0 for RGB alone, 1 where flow is used.
        short: What becomes of clips of fewer than `length` frames: "skip",
            they have no window; "mirror", each of their frames has one. (A
            clip of just `length` frames is not short, but has one flow too
            few: where flow is used, it has no window either way.)
    """

    length: int = 79
    stride: int = 1
    first: int = 0
    short: str = "skip"

    def __post_init__(self) -> None:
        if self.length < 1 or self.stride < 1:
            raise ValueError(
                f"A window needs length >= 1 and stride >= 1. Received: {self}"
            )

    @classmethod
    def of(cls, streams: Sequence[str], **more: Any) -> "Geometry":
        """Geometry of a model that reads `streams`; `more` but `first`."""
        check_streams(streams)
        return cls(first=int("flow" in streams), **more)

    @property
    def first_target(self) -> int:
        """First frame that has a whole window."""
        return self.first + self.length - 1

    def targets(self, num_frames: int) -> range:
        """Frames of a video of `num_frames` frames that have a window."""
        first = 0 if self.mirrors(num_frames) else self.first_target
        return range(first, num_frames, self.stride)

    def mirrors(self, num_frames: int) -> bool:
        """Whether a clip of `num_frames` frames is mirrored."""
        return self.short == "mirror" and 0 < num_frames < self.length

    def lead(self, num_frames: int) -> tuple[int, ...]:
        """Frames to play before a clip, in order; none but before a short one.

        >>> Geometry(length=4, short="mirror").lead(3)
        (1, 2, 1)
        """
        if not self.mirrors(num_frames):
            return ()
        return prefix(self.first_target, num_frames, "mirror")

    def hops(self, num_frames: int, maps: int) -> list[tuple[int, range]]:
        """Windows that give each frame one map, if each gives several.

        A window gives maps of its last `maps` frames. Windows are `maps`
        frames apart; the last one ends with the video, and of the frames that
        it shares with the one before, that one's maps are kept.

        Returns:
            (target, frames whose maps are taken from it), in order. The
            frames before the first one have no map.

        >>> Geometry(length=16).hops(25, 8)
        [(15, range(8, 16)), (23, range(16, 24)), (24, range(24, 25))]
        """
        each = dataclasses.replace(self, stride=maps).targets(num_frames)
        first, targets = each.start, list(each)
        if targets and targets[-1] != num_frames - 1:
            targets.append(num_frames - 1)
        starts = [max(first - maps + 1, 0), *(t + 1 for t in targets)]
        return [
            (target, range(start, target + 1))
            for start, target in zip(starts, targets, strict=False)
        ]

    def window(self, target: int) -> range:
        """Frames (flows) that the prediction for frame `target` looks at.

        Of mirrored clips, some of them are below 0: the last frame of `lead`
        is -1.
        """
        return range(target - self.length + 1, target + 1)


def check_streams(streams: Sequence[str]) -> None:
    """Raise ValueError unless `streams` are one or more of rgb, flow."""
    ordered = tuple(s for s in STREAMS if s in streams)
    if not streams or tuple(streams) != ordered:
        raise ValueError(
            "`streams` must be ('rgb',), ('flow',) or ('rgb', 'flow'). "
            f"Received: {tuple(streams)!r}"
        )


def prefix(num_missing: int, num_frames: int, mode: str) -> tuple[int, ...]:
    """Frames to play before a clip so that its first frame has a window.

    They are `num_missing` numbers, in the order of playing, of a clip of one
    frame or more. "mirror" reflects it in time about frame 0 (… 3 2 1 | 0 1 2
    3 …), back and forth if it is short; "repeat" shows frame 0.

    >>> prefix(4, 3, "mirror")
    (0, 1, 2, 1)
    """
    if num_frames < 1 or mode not in ("mirror", "repeat"):
        raise ValueError(
            "'mirror' and 'repeat' put frames before a clip of at least one "
            f"frame. Received: {mode!r}, {num_frames} frames"
        )
    if mode == "repeat" or num_frames == 1:
        return (0,) * num_missing
    period = 2 * (num_frames - 1)
    steps = (k % period for k in range(num_missing, 0, -1))
    return tuple(min(k, period - k) for k in steps)


def first_map(num_missing: int, mode: str, stride: int = 1) -> int:
    """First frame of a clip that gets a map; then each `stride`-th has one.

    The first `num_missing` frames have no whole window. The mode is one of
    `FIRST_FRAMES`: with "copy" and "skip" windows hold frames of the clip only,
    so the frames that have one decide which of the first ones get a copy.

    >>> [first_map(78, mode) for mode in FIRST_FRAMES]
    [0, 0, 0, 78]
    >>> [first_map(78, mode, stride=5) for mode in FIRST_FRAMES]
    [0, 0, 3, 78]
    """
    if mode == "skip":
        return num_missing
    return num_missing % stride if mode == "copy" else 0


def parse_ranges(text: str) -> frozenset[int]:
    """Numbers named by a text such as "1-500", "1,5,601-700" or "7-700/7".

    >>> sorted(parse_ranges("1-3,7")), sorted(parse_ranges("7-21/7"))
    ([1, 2, 3, 7], [7, 14, 21])
    """
    numbers: set[int] = set()
    for part in filter(None, text.replace(" ", "").split(",")):
        match = re.fullmatch(r"(\d+)(?:-(\d+)(?:/([1-9]\d*))?)?", part)
        if match is None:
            raise ValueError(
                "Videos are named by numbers and ranges, with a step if not "
                "every number is meant, for instance '1-500,601' or '7-700/7'. "
                f"Received: {text!r}"
            )
        first, last, step = match[1], match[2] or match[1], match[3] or "1"
        if int(last) < int(first):
            raise ValueError(
                "A range of videos must not end before it starts. Received: "
                f"{part!r}"
            )
        numbers.update(range(int(first), int(last) + 1, int(step)))
    return frozenset(numbers)


def parse_videos(
    text: str, datasets: Sequence[str]
) -> dict[str, frozenset[int]]:
    """Videos of several datasets, by number.

    Args:
        text: Numbers and ranges. The name of a dataset and a colon before one
            of them say that it, and what follows, is of that dataset; before
            the first name, they are of the first dataset.
        datasets: TFDS names; a version may follow a colon.

    Returns:
        {name without version: numbers}, of the datasets that have any.

    Raises:
        ValueError: The text names another dataset, or no numbers.

    >>> found = parse_videos("1-3,ucf_sports:1,7", ["dhf1k", "ucf_sports"])
    >>> {name: sorted(numbers) for name, numbers in found.items()}
    {'dhf1k': [1, 2, 3], 'ucf_sports': [1, 7]}
    """
    names = [dataset.partition(":")[0] for dataset in datasets]
    found: dict[str, frozenset[int]] = {}
    name = names[0]
    for part in filter(None, text.replace(" ", "").split(",")):
        before, colon, ranges = part.rpartition(":")
        if colon:
            name = before
        if name not in names:
            raise ValueError(
                f"Videos must be of {' or '.join(names)}. Received: {part!r}"
            )
        found[name] = found.get(name, frozenset()) | parse_ranges(ranges)
    return found


def num_windows(frame_counts: Iterable[int], geometry: Geometry) -> int:
    """Windows of several videos together."""
    return sum(len(geometry.targets(count)) for count in frame_counts)
