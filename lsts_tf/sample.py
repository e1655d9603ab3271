"""The sample dataset: small, learnable, and laid out on disk as DHF1K is.

Clips show a textured scene under a slowly moving camera, with one to three
vivid things that move about the whole frame and duller ones that stand still.
Simulated observers look mostly at the first moving thing: where it moved is
where they look, so that the centre of the frame is a poor guess.

Positions are (x, y) in pixels of a frame, x to the right, y down; frames are
numbered from 0, and from 1 in file names. Colours are BGR, as OpenCV writes
them. Clip numbers are DHF1K's: 1 to 500 to train on, 501 to 600 to validate,
601 to 700 to score, from 701 on without annotation. A clip depends on seed,
number and length alone, not on the clips beside it.

    python -m lsts_tf.sample --output=sample
"""

from collections.abc import Sequence
from concurrent import futures
import dataclasses
import functools
import json
import os
import pathlib
import shutil
import time

from absl import app
from absl import flags
from absl import logging
import cv2
import numpy as np

from lsts_tf.media import cores
from lsts_tf.media import files
from lsts_tf.scoring import density

HEIGHT = 360
WIDTH = 640
FPS = 30

# How far the camera may pan: the scene is this much larger on every side.
MARGIN = 48

# First number and largest count of each range; `unannotated` has no gaze.
RANGES = {
    "train": (1, 500),
    "validation": (501, 100),
    "test": (601, 100),
    "unannotated": (701, 300),
}
ANNOTATED = range(1, 701)

# As many as watched DHF1K.
OBSERVERS = 17

MANIFEST = "sample.json"


# === The files ===


def write(
    output: str | os.PathLike[str],
    *,
    train: int = 24,
    validation: int = 4,
    test: int = 8,
    unannotated: int = 2,
    frames: int = 80,
    seed: int = 0,
    workers: int | None = None,
) -> pathlib.Path:
    """Writes the clips that `output` does not hold yet.

    Args:
        output: folder for `video/` and `annotation/`; made if absent.
        train: number of clips from 001 on.
        validation: number of clips from 501 on.
        test: number of clips from 601 on.
        unannotated: number of clips from 701 on.
        frames: number of frames of each clip.
        seed: names the dataset; any number from 0 on.
        workers: number of threads; one a processor by default.

    Returns:
        The folder.

    Raises:
        ValueError: if a count is out of range, or the folder holds a dataset
            made with other arguments.
        OSError: if a clip cannot be written.
    """
    output = pathlib.Path(output)
    counts = {
        "train": train,
        "validation": validation,
        "test": test,
        "unannotated": unannotated,
    }
    numbers = _numbers(counts)
    if frames < 1 or seed < 0:
        raise ValueError(
            "A clip has at least one frame, and a seed is not negative. "
            f"Received: frames={frames}, seed={seed}."
        )
    _claim(output, {**counts, "frames": frames, "seed": seed})
    missing = [n for n in numbers if not _video_path(output, n).exists()]
    if len(missing) < len(numbers):
        logging.info(
            "%d of %d clips are in %s already.",
            *(len(numbers) - len(missing), len(numbers), output),
        )
    write_one = functools.partial(_write_clip, output, frames=frames, seed=seed)
    began = time.monotonic()
    with futures.ThreadPoolExecutor(workers or cores.usable()) as pool:
        pending = [pool.submit(write_one, number) for number in missing]
        try:
            for done, future in enumerate(futures.as_completed(pending), 1):
                left = (time.monotonic() - began) / done * (len(missing) - done)
                logging.info(
                    "Wrote clip %03d, %d of %d; %.0f s left.",
                    *(future.result(), done, len(missing), left),
                )
        finally:
            # After a failure (a full disk), do not try all the others first.
            pool.shutdown(wait=True, cancel_futures=True)
    shutil.rmtree(output / ".writing", ignore_errors=True)
    return output


def _numbers(counts: dict[str, int]) -> list[int]:
    """Clip numbers for a count a range."""
    numbers: list[int] = []
    for name, count in counts.items():
        first, largest = RANGES[name]
        if not 0 <= count <= largest:
            raise ValueError(
                f"`{name}` must be between 0 and {largest} clips. "
                f"Received: {count}."
            )
        numbers.extend(range(first, first + count))
    if not numbers:
        raise ValueError(
            "A sample dataset has at least one clip. Received: none. Ask for "
            f"some of {', '.join(counts)}."
        )
    return numbers


def _claim(output: pathlib.Path, arguments: dict[str, int]) -> None:
    """Writes down what makes the dataset, or checks that it is the same."""
    path = output / MANIFEST
    if path.exists():
        present = json.loads(path.read_text())
        if present != arguments:
            raise ValueError(
                "A folder holds one sample dataset. Received: "
                f"{arguments} for {output}, which holds {present}. Choose "
                "another folder or remove this one."
            )
        return
    if any((output / name).exists() for name in ("video", "annotation")):
        raise ValueError(
            "A sample dataset is not written over other data. Received: "
            f"{output}, with video/ or annotation/ and without {MANIFEST}. "
            "Choose another folder."
        )
    output.mkdir(parents=True, exist_ok=True)
    files.write_text(path, json.dumps(arguments, indent=2) + "\n")


def _video_path(output: pathlib.Path, number: int) -> pathlib.Path:
    return output / "video" / f"{number:03d}.AVI"


def _write_clip(
    output: pathlib.Path, number: int, *, frames: int, seed: int
) -> int:
    """Writes a clip beside its place, then moves it there; returns number.

    The video is moved last: where there is a video, the clip is finished.
    """
    partial = output / ".writing" / f"{number:04d}"
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    clip = make_clip(number, frames=frames, seed=seed)
    _write_video(partial / "clip.avi", clip.scene)
    if number in ANNOTATED:
        _write_annotation(partial / "annotation", clip.fixations)
        annotation = output / "annotation" / f"{number:04d}"
        # Left by a run that ended between this move and the next.
        shutil.rmtree(annotation, ignore_errors=True)
        annotation.parent.mkdir(exist_ok=True)
        (partial / "annotation").rename(annotation)
    video = _video_path(output, number)
    video.parent.mkdir(exist_ok=True)
    (partial / "clip.avi").rename(video)
    return number


def _write_video(path: pathlib.Path, scene: "Scene") -> None:
    writer = cv2.VideoWriter(
        str(path), cv2.VideoWriter.fourcc(*"XVID"), FPS, (WIDTH, HEIGHT)
    )
    for index in range(scene.frames):
        writer.write(scene.render(index))
    writer.release()
    # OpenCV writes nothing, and says nothing, where it cannot.
    capture = cv2.VideoCapture(str(path))
    written = max(int(capture.get(cv2.CAP_PROP_FRAME_COUNT)), 0)
    capture.release()
    if written != scene.frames:
        raise OSError(
            f"A video must hold all {scene.frames} frames. Received: "
            f"{written} in {path}. Is the disk full?"
        )


def _write_annotation(folder: pathlib.Path, fixations: np.ndarray) -> None:
    for name in ("maps", "fixation"):
        (folder / name).mkdir(parents=True)
    for index, fixated in enumerate(fixations):
        name = f"{index + 1:04d}.png"
        _write_png(folder / "maps" / name, density.density_map(fixated))
        _write_png(folder / "fixation" / name, fixated * np.uint8(255))


def _write_png(path: pathlib.Path, image: np.ndarray) -> None:
    # Without a compression level: giving any, even the lowest, costs thrice.
    _, data = cv2.imencode(".png", image)
    path.write_bytes(data.tobytes())


# === A clip ===


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Thing:
    """Something that moves.

    Attributes:
        sprite: uint8 `[S, S, 4]`, BGR and opacity.
        path: float64 `[T, 2]`, its centre in each frame.
        angle: float64 `[T]`, its turn in degrees.
        size: float64 `[T]`, its size relative to the sprite.
    """

    sprite: np.ndarray
    path: np.ndarray
    angle: np.ndarray
    size: np.ndarray

    def draw(self, frame: np.ndarray, index: int) -> None:
        """Lays the thing over a frame, in place."""
        side = self.sprite.shape[0]
        corner = self.path[index] - side / 2
        left, top = np.floor(corner).astype(int)
        turn = cv2.getRotationMatrix2D(
            (side / 2, side / 2), self.angle[index], self.size[index]
        )
        turn[:, 2] += corner - (left, top)
        patch = cv2.warpAffine(self.sprite, turn, (side, side))
        _lay_over(frame, patch, left, top)


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Scene:
    """What the camera sees.

    Attributes:
        backdrop: uint8 `[H + 2 * MARGIN, W + 2 * MARGIN, 3]`, BGR, with all
            that stands still.
        pan: float64 `[T, 2]`, where on the backdrop the frame begins.
        light: float64 `[T]`, brightness about 1.
        things: what moves, the last one in front.
    """

    backdrop: np.ndarray
    pan: np.ndarray
    light: np.ndarray
    things: Sequence[Thing]

    @property
    def frames(self) -> int:
        """Number of frames."""
        return len(self.pan)

    def render(self, index: int) -> np.ndarray:
        """uint8 `[H, W, 3]`, BGR."""
        centre = self.pan[index] + ((WIDTH - 1) / 2, (HEIGHT - 1) / 2)
        frame = cv2.getRectSubPix(self.backdrop, (WIDTH, HEIGHT), centre)
        for thing in self.things:
            thing.draw(frame, index)
        return cv2.convertScaleAbs(frame, alpha=self.light[index])


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Clip:
    """A scene and who looked where.

    Attributes:
        scene: what there is to see.
        fixations: boolean `[T, H, W]`.
    """

    scene: Scene
    fixations: np.ndarray


def make_clip(number: int, *, frames: int, seed: int) -> Clip:
    """Invents clip `number` of the dataset `seed`."""
    moving, painting, looking = (
        np.random.default_rng(child)
        for child in np.random.SeedSequence((seed, number)).spawn(3)
    )
    radii, paths = move(moving, frames)
    return Clip(
        scene=_paint(painting, radii, paths),
        fixations=look(looking, radii, paths),
    )


# === Motion ===


def move(
    rng: np.random.Generator, frames: int
) -> tuple[np.ndarray, np.ndarray]:
    """Sizes and paths of the moving things, the most salient one first.

    Returns:
        Radii `[N]` in pixels, and paths `[N, T, 2]`.
    """
    count = rng.integers(1, 4)
    radii = np.array([rng.uniform(38, 56), *rng.uniform(20, 30, count - 1)])
    paths = np.stack([_path(rng, frames, radius) for radius in radii])
    return radii, paths


def _path(rng: np.random.Generator, frames: int, radius: float) -> np.ndarray:
    """A smooth walk `[T, 2]` that starts anywhere and stays in the frame."""
    knot = 20  # Frames from one turn to the next.
    smooth = 15
    steps = (frames + smooth) // knot + 2
    heading = rng.uniform(0, 2 * np.pi) + np.cumsum(
        rng.normal(0, 0.6, steps - 1)
    )
    stride = knot * rng.uniform(1.5, 4.5)  # Pixels; the rate is per frame.
    low = np.array([radius, radius])
    span = np.array([WIDTH, HEIGHT]) - 2 * low
    knots = np.cumsum(
        [
            low + span * rng.uniform(0, 1, 2),
            *(stride * np.stack([np.cos(heading), np.sin(heading)], axis=1)),
        ],
        axis=0,
    )
    # Reflection at the border keeps every place as likely as any other.
    knots = low + span - np.abs((knots - low) % (2 * span) - span)
    # Straight lines, then a moving average to round the turns.
    times = np.arange(frames + smooth - 1) / knot
    window = np.hanning(smooth + 2)[1:-1]
    window /= window.sum()
    return np.stack(
        [
            np.convolve(
                np.interp(times, np.arange(steps), axis), window, "valid"
            )
            for axis in knots.T
        ],
        axis=1,
    )


def _sway(
    rng: np.random.Generator, frames: int, low: float, high: float
) -> np.ndarray:
    """A slow wave `[T]` of random size around zero; `low`, `high` in frames."""
    period = rng.uniform(low, high)
    return np.sin(2 * np.pi * (np.arange(frames) / period + rng.uniform()))


# === Gaze ===


def look(
    rng: np.random.Generator, radii: np.ndarray, paths: np.ndarray
) -> np.ndarray:
    """Simulates observers who begin at the centre and then follow things.

    Each looks for a third of a second to a second at one thing, a little off
    its centre and a little late, then jumps, mostly to the first thing again.
    Some jumps lead to the centre or to nowhere. No gaze is recorded in a jump.

    Args:
        rng: source of chance.
        radii: `[N]`, of the things, the most salient one first.
        paths: `[N, T, 2]`.

    Returns:
        Boolean fixation maps `[T, H, W]`.
    """
    things, frames, _ = paths.shape
    lag = rng.integers(2, 6, OBSERVERS)
    centre = np.array([WIDTH / 2, HEIGHT / 2])
    # Where someone looks is an anchor, still or moving, and an offset to it.
    target = np.full(OBSERVERS, -1)  # -1: no thing; the anchor stands still.
    anchor = np.tile(centre, (OBSERVERS, 1))
    offset = rng.normal(0, 30, (OBSERVERS, 2))
    until = rng.integers(5, 15, OBSERVERS)
    away = np.zeros(OBSERVERS, int)  # The last frame of a jump, or before.
    fixations = np.zeros((frames, HEIGHT, WIDTH), bool)
    chances = _chances(things)
    for index in range(frames):
        jumping = np.flatnonzero(until == index)
        for observer in jumping:
            choice = rng.choice(things + 2, p=chances)
            target[observer] = choice if choice < things else -1
            spread = 0.3 * radii[choice] if choice < things else 25.0
            offset[observer] = rng.normal(0, spread, 2)
            anchor[observer] = (
                centre
                if choice == things
                else rng.uniform((0, 0), (WIDTH, HEIGHT))
            )
        until[jumping] = index + rng.integers(10, 31, jumping.size)
        away[jumping] = index + rng.integers(1, 3, jumping.size)
        followed = paths[target, np.maximum(index - lag, 0)]
        gaze = np.where(target[:, None] < 0, anchor, followed) + offset
        _mark(rng, fixations[index], gaze[away < index + (index == 0)])
    return fixations


def _chances(things: int) -> np.ndarray:
    """How likely a jump goes to each thing, to the centre, to nowhere."""
    others = 0.06 * (things - 1)
    return np.array([0.90 - others, *[0.06] * (things - 1), 0.04, 0.06])


def _mark(
    rng: np.random.Generator, fixated: np.ndarray, gaze: np.ndarray
) -> None:
    """Sets the pixels of one frame that gaze `[N, 2]` touches, in place.

    An eye tracker takes eight samples a frame. As in DHF1K's own fixation
    maps, every pixel whose column and row both occur among them is set.
    """
    samples = gaze[:, None] + rng.normal(0, 1.0, (len(gaze), 8, 2))
    columns, rows = np.moveaxis(np.rint(samples).astype(int), -1, 0)
    columns = np.broadcast_to(columns[:, None, :], (len(gaze), 8, 8))
    rows = np.broadcast_to(rows[:, :, None], (len(gaze), 8, 8))
    inside = (columns >= 0) & (columns < WIDTH) & (rows >= 0) & (rows < HEIGHT)
    fixated[rows[inside], columns[inside]] = True


# === Paint ===


def _paint(
    rng: np.random.Generator, radii: np.ndarray, paths: np.ndarray
) -> Scene:
    frames = paths.shape[1]
    things = [
        Thing(
            sprite=_sprite(rng, radius, vivid=True),
            path=path,
            angle=rng.uniform(0, 360)
            + rng.uniform(5, 25) * _sway(rng, frames, 20, 60),
            size=1 + 0.08 * _sway(rng, frames, 20, 90),
        )
        for radius, path in zip(radii, paths, strict=True)
    ]
    pan = MARGIN + np.stack(
        [
            rng.uniform(0, MARGIN - 8) * _sway(rng, frames, 120, 400)
            + 0.4 * _sway(rng, frames, 5, 12)
            for _ in "xy"
        ],
        axis=1,
    )
    return Scene(
        backdrop=_backdrop(rng),
        pan=pan,
        light=1 + 0.05 * _sway(rng, frames, 40, 200),
        things=things[::-1],
    )


def _backdrop(rng: np.random.Generator) -> np.ndarray:
    """Sky and ground, clutter, and dull things that stand on the ground."""
    height, width = HEIGHT + 2 * MARGIN, WIDTH + 2 * MARGIN
    # Some cameras look down and see no sky.
    horizon = height * (rng.uniform(0.2, 0.5) if rng.uniform() < 0.75 else -1)
    ridge = horizon + 60 * (_noise(rng, 1, width, octaves=6) - 0.5)
    ground = _step(np.arange(height)[:, None] - ridge)[..., None]
    sky = _surface(rng, height, width, roughness=0.45)
    picture = 60 + 0.75 * sky
    picture += (_surface(rng, height, width, roughness=0.75) - picture) * ground
    picture = np.clip(picture, 0, 255).astype(np.uint8)
    top = max(horizon, 0) + 10
    # From far to near, so that what is near and large hides what is far.
    for y in np.sort(rng.uniform(top, height, rng.integers(25, 50))):
        near = 0.35 + (y - top) / (height - top)
        large = rng.uniform() < 0.2
        radius = near * (rng.uniform(28, 42) if large else rng.uniform(5, 20))
        sprite = _sprite(rng, radius, vivid=False)
        half = sprite.shape[0] // 2
        left = rng.integers(-half, width - half)
        _lay_over(picture, sprite, left, int(y) - half)
    return picture


def _surface(
    rng: np.random.Generator, height: int, width: int, *, roughness: float
) -> np.ndarray:
    """float32 `[height, width, 3]`: a muted two-coloured, lit texture."""
    first, second = (_colour(rng, vivid=False) for _ in range(2))
    texture = _noise(rng, height, width, octaves=8, roughness=roughness)
    texture = texture[..., None]
    # Most of the contrast stays with the texture, some goes to the colour.
    mixed = first + (0.5 * (second - first)) * texture
    mixed *= 0.55 + 0.75 * texture
    left, right = rng.uniform(0.8, 1.15, 2)
    slope = np.linspace(left, right, width, dtype=np.float32)
    return mixed * slope[:, None]


def _sprite(
    rng: np.random.Generator, radius: float, *, vivid: bool
) -> np.ndarray:
    """uint8 `[S, S, 4]`: a shaded, patterned blob or box and its shadow."""
    half = int(np.ceil(1.45 * radius))
    x, y = np.meshgrid(*2 * [np.arange(-half, half + 1) / radius])
    edge = _outline(rng, x, y)
    opacity = _step(edge * radius)
    pattern = _pattern(rng, x, y)[..., None]
    first = _colour(rng, vivid=vivid)
    second = _colour(rng, vivid=vivid) * (0.25 if vivid else 0.8)
    shade = np.clip(1.05 - 0.35 * (0.7 * x + 0.9 * y), 0.45, 1.3)[..., None]
    grain = 0.85 + 0.3 * _noise(rng, *x.shape, octaves=5)[..., None]
    colour = (second + (first - second) * pattern) * shade * grain
    # The shadow falls to the lower right: the same shape, moved and soft.
    shift = np.array([[1, 0, 0.14 * radius], [0, 1, 0.2 * radius]])
    shadow = cv2.warpAffine(opacity, shift, opacity.shape[::-1])
    shadow = 0.45 * cv2.GaussianBlur(shadow, (0, 0), 0.08 * radius)
    total = opacity + (1 - opacity) * shadow
    colour *= (opacity / np.maximum(total, 1e-6))[..., None]
    return np.clip(np.dstack([colour, 255 * total]).round(), 0, 255).astype(
        np.uint8
    )


def _outline(
    rng: np.random.Generator, x: np.ndarray, y: np.ndarray
) -> np.ndarray:
    """Distance inside (positive) a shape of about unit radius."""
    if rng.uniform() < 0.3:
        box = np.maximum(np.abs(x) / rng.uniform(0.7, 1), np.abs(y) / 0.75)
        return 1 - box
    angle = np.arctan2(y, x)
    reach = 0.85 + sum(
        rng.uniform(0, 0.18) / k * np.cos(k * angle + rng.uniform(0, 6.3))
        for k in (2, 3, 5)
    )
    return reach - np.hypot(x, y)


def _pattern(
    rng: np.random.Generator, x: np.ndarray, y: np.ndarray
) -> np.ndarray:
    """Stripes, checks or spots between 0 and 1."""
    rate = rng.uniform(6, 11)
    angle = rng.uniform(0, np.pi)
    along = np.sin(rate * (x * np.cos(angle) + y * np.sin(angle)))
    across = np.sin(rate * (y * np.cos(angle) - x * np.sin(angle)))
    waves = (along, along * across, np.minimum(along, across) + 0.3)
    return _step(4 * waves[rng.integers(len(waves))])


def _step(values: np.ndarray) -> np.ndarray:
    """From 0 to 1 as values go from -1 to 1; float32."""
    return np.clip(0.5 + values / 2, 0, 1).astype(np.float32)


def _colour(rng: np.random.Generator, *, vivid: bool) -> np.ndarray:
    """float32 `[3]`, BGR."""
    saturation, value = (
        (rng.uniform(0.75, 1), rng.uniform(0.85, 1))
        if vivid
        else (rng.uniform(0.05, 0.4), rng.uniform(0.3, 0.65))
    )
    hsv = np.array([[[rng.uniform(0, 360), saturation, value]]], np.float32)
    return 255 * cv2.cvtColor(hsv, cv2.COLOR_HSV2BGR)[0, 0]


def _noise(
    rng: np.random.Generator,
    height: int,
    width: int,
    *,
    octaves: int,
    roughness: float = 0.6,
) -> np.ndarray:
    """float32 `[height, width]` in [0, 1]: clouds of ever finer grain.

    Each octave has `roughness` times the contrast of the one before.
    """
    total = np.zeros((height, width), np.float32)
    for octave in range(octaves):
        cells = 2**octave
        rows = min(height, cells + 1)
        coarse = rng.random((rows, min(width, 2 * cells + 1)), np.float32)
        total += roughness**octave * cv2.resize(
            coarse, (width, height), interpolation=cv2.INTER_CUBIC
        )
    low, high = total.min(), total.max()
    return (total - low) / max(high - low, 1e-6)


def _lay_over(
    picture: np.ndarray, patch: np.ndarray, left: int, top: int
) -> None:
    """Blends BGRA over BGR in place; parts outside the picture are cut."""
    height, width, _ = picture.shape
    x0, y0 = max(left, 0), max(top, 0)
    x1 = min(left + patch.shape[1], width)
    y1 = min(top + patch.shape[0], height)
    if x0 >= x1 or y0 >= y1:
        return
    patch = patch[y0 - top : y1 - top, x0 - left : x1 - left]
    below = picture[y0:y1, x0:x1]
    opacity = cv2.cvtColor(patch[..., 3], cv2.COLOR_GRAY2BGR) / np.float32(255)
    blended = below + (patch[..., :3] - below.astype(np.float32)) * opacity
    below[:] = np.rint(blended).astype(np.uint8)


# === The program ===


def _define_flags() -> None:
    flags.DEFINE_string("output", None, "Folder to write.", required=True)
    for name, count in (
        ("train", 24),
        ("validation", 4),
        ("test", 8),
        ("unannotated", 2),
    ):
        first, largest = RANGES[name]
        flags.DEFINE_integer(
            name,
            count,
            f"Number of clips from {first:03d} on.",
            lower_bound=0,
            upper_bound=largest,
        )
    flags.DEFINE_integer("frames", 80, "Frames of a clip.", lower_bound=1)
    flags.DEFINE_integer("seed", 0, "Names the dataset.", lower_bound=0)


def main(argv: Sequence[str]) -> None:
    """Writes the dataset that the flags describe."""
    if len(argv) > 1:
        raise app.UsageError(f"Only flags are taken. Received: {argv[1:]}.")
    values = flags.FLAGS
    output = write(
        values.output,
        train=values.train,
        validation=values.validation,
        test=values.test,
        unannotated=values.unannotated,
        frames=values.frames,
        seed=values.seed,
    )
    logging.info("The sample dataset is in %s.", output)


if __name__ == "__main__":
    _define_flags()
    app.run(main)
