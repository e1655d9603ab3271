"""The sample dataset: small, learnable, and laid out on disk as DHF1K is.

A large bright disc and some small dim ones move about a noisy background.
Simulated observers watch the bright disc wherever it goes, so that the centre
of the frame is a poor guess.

Positions are (x, y) in pixels of a frame, x to the right, y down; frames are
numbered from 0, and from 1 in file names. Clip numbers are DHF1K's: 1 to 500
to train on, 501 to 600 to validate, 601 to 700 to score, from 701 on without
annotation. A clip depends on seed, number and length alone, not on the clips
beside it.

    python -m lsts_tf.sample --output=sample
"""

from collections.abc import Sequence
from concurrent import futures
import json
import os
import pathlib

from absl import app, flags, logging
import av
import cv2
import numpy as np

from lsts_tf import program
from lsts_tf.media import files, images
from lsts_tf.scoring import density

HEIGHT = 360
WIDTH = 640
FPS = 30

# First number, largest count and default count of each kind of clip.
KINDS = {
    "train": (1, 500, 24),
    "validation": (501, 100, 4),
    "test": (601, 100, 8),
    "unannotated": (701, 300, 2),
}
ANNOTATED = range(1, 701)

# As many as watched DHF1K.
OBSERVERS = 17

MANIFEST = "sample.json"


def write(
    output: str | os.PathLike[str],
    *,
    frames: int = 80,
    seed: int = 0,
    **clips: int,
) -> pathlib.Path:
    """Writes a dataset, unless it is there already; returns its folder.

    The folder has `video/` and `annotation/`, and appears whole or not at all.
    Each clip has `frames` frames; `seed`, from 0 on, names the dataset; `clips`
    says how many there are of each of `KINDS`, if not the default.

    Raises:
        OSError: if the folder holds anything else than this dataset, or a clip
            cannot be written.
    """
    output = pathlib.Path(output)
    counts = {kind: count for kind, (_, _, count) in KINDS.items()} | clips
    numbers = [
        KINDS[kind][0] + place
        for kind, count in counts.items()
        for place in range(count)
    ]
    manifest = json.dumps({**counts, "frames": frames, "seed": seed}) + "\n"
    path = output / MANIFEST
    if path.is_file() and path.read_text() == manifest:
        logging.info("The dataset is in %s already.", output)
        return output
    with files.new_folder(output) as root, futures.ThreadPoolExecutor() as pool:
        (root / "video").mkdir()

        def write_one(number: int) -> None:
            _write_clip(root, number, *make_clip(number, frames, seed))
            logging.info("Wrote clip %03d, one of %d.", number, len(numbers))

        list(pool.map(write_one, numbers))
        (root / MANIFEST).write_text(manifest)
    return output


def _write_clip(
    root: pathlib.Path, number: int, pictures: np.ndarray, fixations: np.ndarray
) -> None:
    """Writes a clip's video and annotation."""
    path = root / "video" / f"{number:03d}.AVI"
    with av.open(os.fspath(path), "w", format="avi") as file:
        stream = file.add_stream("mpeg4", rate=FPS, bit_rate=8_000_000)
        stream.width, stream.height = WIDTH, HEIGHT
        stream.pix_fmt = "yuv420p"
        for picture in pictures:
            frame = av.VideoFrame.from_ndarray(picture, format="rgb24")
            file.mux(stream.encode(frame))
        file.mux(stream.encode())
    if number not in ANNOTATED:
        return
    folder = root / "annotation" / f"{number:04d}"
    for kind in ("maps", "fixation"):
        (folder / kind).mkdir(parents=True)
    for frame, fixated in enumerate(fixations):
        name, map_ = images.file_name(frame), density.density_map(fixated)
        images.write_png(folder / "maps" / name, map_)
        images.write_png(folder / "fixation" / name, fixated * np.uint8(255))


# === A clip ===


def make_clip(
    number: int, frames: int, seed: int
) -> tuple[np.ndarray, np.ndarray]:
    """Invents clip `number` of the dataset `seed`.

    Returns:
        Frames, uint8 `[T, H, W, 3]`, RGB; and fixation maps, boolean
        `[T, H, W]`.
    """
    rng = np.random.default_rng((seed, number))
    watched = move(rng, frames, radius=45)
    fixations = look(rng, watched)
    pictures = np.tile(_background(rng), (frames, 1, 1, 1))
    for _ in range(rng.integers(1, 5)):
        radius = int(rng.integers(15, 26))
        path = move(rng, frames, radius)
        _draw(pictures, path, radius, rng.integers(90, 150, 3))
    # Last, so that it hides what it crosses.
    _draw(pictures, watched, 45, rng.integers(190, 256, 3))
    return pictures, fixations


def move(rng: np.random.Generator, frames: int, radius: float) -> np.ndarray:
    """The centre of a disc that bounces off the frame's borders, `[T, 2]`."""
    span = np.array([WIDTH, HEIGHT]) - 2 * radius
    heading, speed = rng.uniform(0, 2 * np.pi), rng.uniform(2, 5)
    velocity = speed * np.array([np.cos(heading), np.sin(heading)])
    start = span * rng.uniform(size=2)
    straight = start + np.arange(frames)[:, None] * velocity
    return radius + span - np.abs(straight % (2 * span) - span)


def look(rng: np.random.Generator, path: np.ndarray) -> np.ndarray:
    """Simulates observers who watch what moves along a path.

    Each one looks a little beside the centre of the disc and a little late,
    at times somewhere else altogether, and moves the eyes on after half a
    second.

    Returns:
        Boolean fixation maps `[T, H, W]`.
    """
    frames = len(path)
    fixations = np.zeros((frames, HEIGHT, WIDTH), bool)
    size = np.array([WIDTH, HEIGHT])
    for start in range(0, frames, FPS // 2):
        steps = np.arange(start, min(start + FPS // 2, frames))
        for _ in range(OBSERVERS):
            if rng.uniform() < 0.9:
                late = np.maximum(steps - rng.integers(2, 6), 0)
                gaze = path[late] + rng.normal(0, 13, 2)
            else:
                gaze = np.tile(size * rng.uniform(size=2), (len(steps), 1))
            x, y = np.clip(gaze, 0, size - 1).astype(int).T
            fixations[steps, y, x] = True
    return fixations


def _background(rng: np.random.Generator) -> np.ndarray:
    """Coarse and fine grey noise, uint8 `[H, W, 3]`."""
    coarse, fine = (
        cv2.resize(rng.random(size, np.float32), (WIDTH, HEIGHT))
        for size in ((9, 16), (90, 160))
    )
    grey = 20 + 60 * coarse + 30 * fine
    return np.repeat(grey[..., None].astype(np.uint8), 3, axis=2)


def _draw(
    pictures: np.ndarray, path: np.ndarray, radius: int, colour: np.ndarray
) -> None:
    """Draws a disc into every frame, in place."""
    # OpenCV takes positions in sixteenths of a pixel.
    for picture, (x, y) in zip(pictures, np.rint(16 * path), strict=True):
        centre, rest = (int(x), int(y)), (cv2.FILLED, cv2.LINE_AA, 4)
        cv2.circle(picture, centre, 16 * radius, colour.tolist(), *rest)


# === The program ===


def _define_flags() -> None:
    flags.DEFINE_string("output", None, "Folder to write.", required=True)
    for kind, (first, largest, count) in KINDS.items():
        flags.DEFINE_integer(
            kind,
            count,
            f"Number of clips numbered from {first:03d} on, up to {largest}.",
            *(0, largest),
        )
    flags.DEFINE_integer("frames", 80, "Number of frames of each clip.", 1)
    flags.DEFINE_integer("seed", 0, "Seed of the dataset.", 0)


def main(argv: Sequence[str]) -> None:
    """Writes the dataset that the flags describe."""
    if len(argv) > 1:
        raise app.UsageError(f"Only flags are taken. Received: {argv[1:]}.")
    values = flags.FLAGS
    with program.exit_codes():
        output = write(
            values.output,
            **{kind: values[kind].value for kind in KINDS},
            frames=values.frames,
            seed=values.seed,
        )
        logging.info("The sample dataset is in %s.", output)


if __name__ == "__main__":
    _define_flags()
    app.run(main)
