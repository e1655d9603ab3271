"""What a front end hands to a decoder: names, sizes and rules, no framework.

A window's features are one array a part. The main part of a stream is I3D's
Mixed_5c after average pooling and carries the stream's name ("rgb"); a skip
is an earlier end point of I3D and carries both names ("rgb_Mixed_4f").

A skip is [rows, columns, channels], without time: the mean over the end
point's steps of the window's last `RECENT` frames. These are the frames that
are predicted or lie right before, every front end has them without extra
layers, and a mean over all of a window would be another 96 MB to read for each
(Conv3d_2c of 79 frames).
"""

from collections.abc import Sequence
import re

MAIN = "Mixed_5c"
# End points that can be skips, from the deepest on.
SKIPS = ("Mixed_4f", "Mixed_3c", "Conv3d_2c_3x3")
RECENT = 8
# Blocks of I3D that training may begin with, from the first on.
# Behind each stands what lies in front of it, and so remains frozen.
BLOCKS = {
    "Mixed_3b": "MaxPool3d_3a_3x3",
    "Mixed_3c": "Mixed_3b",
    "Mixed_4b": "MaxPool3d_4a_3x3",
    "Mixed_4c": "Mixed_4b",
    "Mixed_4d": "Mixed_4c",
    "Mixed_4e": "Mixed_4d",
    "Mixed_4f": "Mixed_4e",
    "Mixed_5b": "MaxPool3d_5a_2x2",
    "Mixed_5c": "Mixed_5b",
}
# Rows and columns of the published network's input, and of flow.
SIZE = (224, 224)
FLOW_SIZE = (112, 112)
# A range over clips, least where little moves: docs/performance.md.
DIS_CORRELATION = "0.04 to 0.87, depending on the clip"
# Rows and columns of a map.
MAP_SIZE = (360, 640)
# Front ends by what --front_end calls them: module and class.
FRONT_ENDS = {
    "window": "lsts_tf.features.extractor:Extractor",
    "continuous": "lsts_tf.features.extractor:Extractor",
}
# The arithmetic of I3D, the most exact one first.
DTYPES = ("float32", "bfloat16", "int8")
# Maps that a model may predict of one window: its last frames.
TARGETS = (1, 8, 16)
DECODERS = ("paper", "skip", "readout")
HEADS = ("paper", "released")


def name(stream: str, end_point: str = MAIN) -> str:
    """Name of a part.

    >>> name("rgb"), name("flow", "Mixed_4f")
    ('rgb', 'flow_Mixed_4f')
    """
    return stream if end_point == MAIN else f"{stream}_{end_point}"


def stem(first: str) -> str:
    """End point that the main part is taken from.

    By the first block of I3D that is trained, one of `BLOCKS`; or "".

    >>> stem(""), stem("Mixed_5b")
    ('Mixed_5c', 'MaxPool3d_5a_2x2')
    """
    return BLOCKS[first] if first else MAIN


def recent_steps(steps: int, spacing: int) -> int:
    """How many of an end point's last steps a skip is the mean of.

    A window has `steps` there, and two of them are `spacing` frames apart.

    >>> recent_steps(40, 2), recent_steps(20, 4), recent_steps(2, 2)
    (4, 2, 2)
    """
    return min(steps, -(-RECENT // spacing))


def check_skips(skips: Sequence[str]) -> None:
    """Raise ValueError unless `skips` are some of `SKIPS`, once each."""
    if len(set(skips)) < len(skips) or not set(skips) <= set(SKIPS):
        raise ValueError(
            f"Skips are some of {', '.join(SKIPS)}, once each. "
            f"Received: {', '.join(skips)}"
        )


def parse_size(text: str) -> tuple[int, int]:
    """Rows and columns of a frame as I3D sees it.

    Flow is computed at half of that, so both are even.

    >>> parse_size("224"), parse_size("224x384")
    ((224, 224), (224, 384))

    Raises:
        ValueError: It is neither one even number nor two, of at least 32.
    """
    match = re.fullmatch(r"(\d+)(?:x(\d+))?", text)
    size = (0, 0)
    if match:
        size = int(match[1]), int(match[2] or match[1])
    if min(size) < 32 or any(n % 2 for n in size):
        raise ValueError(
            "A size must be an even number of at least 32, or rows and "
            f"columns such as 224x384. Received: {text!r}"
        )
    return size


def size_name(size: tuple[int, int]) -> str:
    """The inverse of `parse_size`.

    >>> size_name((224, 224)), size_name((224, 384))
    ('224', '224x384')
    """
    return str(size[0]) if size[0] == size[1] else f"{size[0]}x{size[1]}"


def half(size: tuple[int, int]) -> tuple[int, int]:
    """The grid on which the flow for an input of `size` is computed."""
    return size[0] // 2, size[1] // 2
