"""How fast a camera's overlays come, and how late.

    python -m benchmarks.live --video=FILE [--flagfile=RUN/experiment.flags] \
        [--seconds=30] [--every=1]

plays a recording of a camera at its own pace through what the page of
`lsts_tf.app` shows live, `outputs.live`. With --video=- it comes by a pipe, for
instance as Y4M. It prints the overlays a second, and the seconds from a frame
to its overlay, both after the first one: until then everything compiles.
"""

from collections.abc import Sequence
import functools
import os
import time

from absl import app, flags
import numpy as np

from lsts_tf import experiment, predictor
from lsts_tf.media import sources
from lsts_tf.outputs import live

VIDEO = flags.DEFINE_string(
    "video", None, "A video file, or - for standard input.", required=True
)
SECONDS = flags.DEFINE_float("seconds", 30, "Seconds of it that are played.")
EVERY = flags.DEFINE_integer("every", 1, "Show every Nth frame to the model.")

# Seconds that the first overlay may take.
_PATIENCE = 600


def play(
    camera: live.Live, source: sources.Source, *, seconds: float, every: int
) -> tuple[list[float], int, float]:
    """Shows a source to the model, each frame at its time.

    Its first frame is held until an overlay comes.

    Args:
        camera: What takes frames.
        source: The film.
        seconds: How much of it is played.
        every: Only every Nth frame is shown.

    Returns:
        Delays of the overlays in seconds; how many frames were shown; and how
        long that took.
    """
    frames = iter(source)
    held, _ = next(frames)
    begin = time.monotonic()
    while not camera(held):
        if time.monotonic() - begin > _PATIENCE:
            raise RuntimeError(f"No overlay came within {_PATIENCE} s.")
        time.sleep(1 / source.fps)
    delays, shown = [], 0
    begin = time.monotonic()
    for number, (frame, at) in enumerate(frames):
        if at > seconds:
            break
        if number % every:
            continue
        time.sleep(max(0.0, begin + at - time.monotonic()))
        found = camera(frame)
        shown += 1
        if found:
            delays.append(found.delay)
    return delays, shown, time.monotonic() - begin


def main(_: Sequence[str]) -> None:
    """Print the figures."""
    chosen = experiment.chosen_run()
    ahead = live.lookahead(chosen.front_end)
    camera = live.Live(
        functools.partial(
            predictor.Predictor.load,
            chosen.folder,
            sources=chosen.sources,
            lookahead=ahead,
        )
    )
    source = sources.open_source([VIDEO.value])
    delays, shown, took = play(
        camera, source, seconds=SECONDS.value, every=EVERY.value
    )
    camera.end()
    if not delays:
        raise RuntimeError("No overlay came: play more --seconds.")
    width, height = source.size
    print(
        f"{chosen.run_name}, {chosen.front_end}, lookahead {ahead}, "
        f"chunks of {live.CHUNK}; {os.cpu_count()} cores, load "
        f"{os.getloadavg()[0]:.1f}"
    )
    print(
        f"camera  {width}x{height}, {shown / took:.1f} frames a second, "
        f"{shown} frames"
    )
    print(f"overlay {len(delays) / took:.1f} frames a second")
    median, most = np.percentile(delays, [50, 95])
    print(f"delay   {median:.2f} s median, {most:.2f} s for 95 %")


if __name__ == "__main__":
    experiment.define_flags()
    app.run(main)
