"""Which steps of a layer's output windows share: integers only.

A window is `window` successive frames; one starts every `stride` frames, from
frame 0. Behind each layer a window has some steps, `spacing` frames apart (1
for frames, then 2, 4, 8). The label of step j of the window that starts at
frame s is s + spacing * j. Two steps with the same label are equal in all
windows, unless what they see includes the zeros that SAME padding puts before
or behind a window: those are the left and the right border of a window. So
behind each layer there are

- dense: one value for each label, shared by all windows that want it;
- left: the first `left` steps of each window, and
- right: its last `right` steps, computed for each window.

Labels lie on a grid of gcd(stride, spacing) frames. All of this follows from
the table in `i3d` by the rules in `follow`; no layer's sizes are written here.

Frames arrive in chunks. Dense values appear as soon as the frames that they
see are there; left borders early, and wait for the rest of their window;
right borders with the last frame. Within a chunk, times are relative to the
start of the last window that the chunk completes.
"""

from collections.abc import Iterator, Sequence
import itertools
import math
from typing import NamedTuple

from lsts_tf import parts
from lsts_tf.networks import i3d


class Track(NamedTuple):
    """The steps of windows behind a layer.

    Attributes:
      steps: of one window.
      spacing: frames between successive steps.
      left: number of first steps that see the padding before the window.
      right: number of last steps that see the padding behind it.
      head: newest dense label there is when a window's last frame has
        arrived, counted from that window's start.
      ready: start of the newest window whose left border is computed by then,
        counted in the same way; None where there is no left border.
    """

    steps: int
    spacing: int
    left: int
    right: int
    head: int
    ready: int | None

    def grid(self, stride: int) -> int:
        """Returns the frames between successive dense labels."""
        return math.gcd(stride, self.spacing)

    @property
    def shared(self) -> range:
        """The steps between the borders."""
        return range(self.left, self.steps - self.right)

    def is_worth_sharing(self, stride: int) -> bool:
        """Whether borders and new dense labels are fewer than the steps."""
        new = stride // self.grid(stride)
        return self.left + self.right + new < self.steps


def in_time(layer: i3d.Layer) -> tuple[int, int]:
    """Returns a layer's temporal kernel and stride."""
    if isinstance(layer, i3d.Mixed):
        return i3d.THREE[0], 1
    return layer.kernel[0], layer.stride[0]


def follow(
    track: Track, kernel: int, step: int, stride: int, *, borders: bool = True
) -> Track:
    """Returns the track behind a layer.

    Output step j sees input steps `step * j - before + t`, t = 0 ... kernel-1.

    Args:
      track: in front of the layer.
      kernel: of the layer, in steps.
      step: the layer's temporal stride.
      stride: of the windows, in frames.
      borders: False treats the video as one window without ends.
    """
    before, _ = i3d.same_padding(track.steps, kernel, step)
    steps = -(-track.steps // step)
    spacing = track.spacing * step
    behind = track.spacing * (kernel - 1 - before)
    head = floor(track.head - behind, math.gcd(stride, spacing))
    if not borders:
        return Track(steps, spacing, 0, 0, head, None)
    left = min(steps, -(-(track.left + before) // step))
    last = (track.steps - track.right + before - kernel) // step
    right = min(steps, steps - 1 - last)
    ready = track.ready
    newest = step * (left - 1) - before + kernel - 1
    if left and newest >= track.left:
        reach = floor(track.head - track.spacing * newest, stride)
        ready = reach if ready is None else min(ready, reach)
    return Track(steps, spacing, left, right, head, ready)


def floor(number: int, grid: int) -> int:
    """Returns the largest multiple of `grid` up to a number."""
    return number // grid * grid


def tracks(
    window: int,
    stride: int,
    end_point: str = parts.MAIN,
    *,
    borders: bool = True,
) -> Iterator[tuple[i3d.Layer, Track, Track]]:
    """Yields each layer of I3D's table, the track before and behind it."""
    track = Track(window, 1, 0, 0, window - 1, None)
    for layer in i3d.layers(end_point):
        after = follow(track, *in_time(layer), stride, borders=borders)
        yield layer, track, after
        track = after


# === Borders ===


class Group(NamedTuple):
    """Successive border steps that see the same kinds of steps.

    Attributes:
      steps: of the layer's output, counted from the window's first.
      border: tap -> first index into the border in front of the layer.
      dense: taps that see dense steps.
    """

    steps: range
    border: dict[int, int]
    dense: tuple[int, ...]


def groups(
    track: Track, out: Track, kernel: int, step: int, taps: Sequence[int]
) -> tuple[list[Group], list[Group]]:
    """Returns groups of the left and of the right border behind a layer.

    Args:
      track: in front of the layer.
      out: behind it.
      kernel: of the layer, in steps.
      step: the layer's temporal stride.
      taps: those of the kernel that count.
    """
    before, _ = i3d.same_padding(track.steps, kernel, step)
    stop = track.shared.stop

    def found(steps: range, edge: range) -> Iterator[Group]:
        def seen(j: int) -> tuple[tuple[int, ...], tuple[int, ...]]:
            at = {t: step * j - before + t for t in taps}
            return (
                tuple(t for t in taps if at[t] in edge),
                tuple(t for t in taps if at[t] in track.shared),
            )

        for (border, dense), run in itertools.groupby(steps, seen):
            first, *rest = run
            starts = {t: step * first - before + t - edge.start for t in border}
            yield Group(range(first, first + 1 + len(rest)), starts, dense)

    return (
        list(found(range(out.left), range(track.left))),
        list(
            found(range(out.shared.stop, out.steps), range(stop, track.steps))
        ),
    )


# === The continuous front end ===


def delay_of(track: Track, stride: int, lookahead: int | None) -> int:
    """Returns how old windows are when features of a last layer come.

    Frames behind a window's last one that its last step sees, in strides, or
    as many as may be waited for.
    """
    beyond = max(0, track.spacing * (track.steps - 1) - track.head)
    beyond = -(-beyond // stride) * stride
    if lookahead is None:
        return beyond
    return min(beyond, floor(lookahead, stride))


def shift_of(track: Track, delay: int) -> int:
    """Returns by how many steps a window's steps must be older ones."""
    newest = track.spacing * (track.steps - 1)
    return -(-max(0, newest - delay - track.head) // track.spacing)


def least_delay(track: Track, stride: int, delay: int) -> int:
    """Returns how old windows are when the same steps of them are there.

    An early layer has its steps of a window long before the last one has its
    own, which come `delay` frames late.
    """
    newest = track.steps - 1 - shift_of(track, delay)
    waits = track.head - (track.spacing * newest - delay)
    return max(0, delay - floor(waits, stride))
