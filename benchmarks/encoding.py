"""What moving bits to where people look brings, at equal size.

python -m benchmarks.encoding

A synthetic scene: two grey textures that slide over each other, and attention
that moves across them. Each line is a clip encoded with offsets, beside the
plain one interpolated to the same size; PSNR where the map is above half of
its maximum, and where it is below a twentieth.
"""

import math
import pathlib
import tempfile

import cv2
import numpy as np

from lsts_tf.media import video
from lsts_tf.outputs import encoding

SIZE = (640, 360)
FRAMES = 25
RATE = 25


def scene() -> list[tuple[np.ndarray, np.ndarray]]:
    """Frames and maps."""
    width, height = SIZE
    noise = np.random.default_rng(0).normal(
        0, 1, (height + FRAMES, width + 3 * FRAMES)
    )
    noise = cv2.GaussianBlur(noise, None, 1.5)
    noise = 30 * noise / noise.std()
    rows, columns = np.indices((360, 640))
    clip = []
    for i in range(FRAMES):
        here = noise[i : i + height, 3 * i : 3 * i + width]
        there = noise[:height, 3 * (FRAMES - i) :][:, :width]
        grey = np.clip(128 + here + there, 0, 255).astype(np.uint8)
        x = 120 + 16 * i
        squares = (columns - x) ** 2 + (rows - 180) ** 2
        map_ = np.exp(-squares / (2 * 60**2)).astype(np.float32)
        clip.append((np.repeat(grey[..., None], 3, axis=-1), map_))
    return clip


def measure(
    clip: list[tuple[np.ndarray, np.ndarray]], strength: float, crf: float
) -> tuple[float, float, float]:
    """Kilobytes, PSNR inside, PSNR outside."""
    with tempfile.TemporaryDirectory() as folder:
        path = pathlib.Path(folder) / "encoded.mp4"
        with encoding.Encoder(
            path=path, fps=RATE, size=SIZE, strength=strength, crf=crf
        ) as output:
            for i, (frame, map_) in enumerate(clip):
                output.write(frame, map_, i / RATE)
        errors: tuple[list[float], list[float]] = ([], [])
        for (frame, map_), got in zip(clip, video.frames(path), strict=True):
            squares = (frame[..., 1].astype(float) - got[..., 1]) ** 2
            errors[0].append(squares[map_ > 0.5].mean())
            errors[1].append(squares[map_ < 0.05].mean())
        inside, outside = (
            10 * math.log10(255**2 / float(np.mean(e))) for e in errors
        )
        return path.stat().st_size / 1000, inside, outside


def main() -> None:
    """Print the figures."""
    clip = scene()
    plain = np.array([measure(clip, 0, crf) for crf in (20, 24, 28, 32, 36)])
    plain = plain[np.argsort(plain[:, 0])]
    sizes = np.log(plain[:, 0])
    print("strength crf      kB   inside dB (gain)    outside dB (gain)")
    for strength in (4, 8, 12):
        for crf in (24, 28, 32):
            size, inside, outside = measure(clip, strength, crf)
            usual = [
                float(np.interp(math.log(size), sizes, plain[:, k]))
                for k in (1, 2)
            ]
            print(
                f"{strength:8} {crf:3} {size:7.0f}   "
                f"{inside:6.2f} ({inside - usual[0]:+.2f})      "
                f"{outside:6.2f} ({outside - usual[1]:+.2f})"
            )


if __name__ == "__main__":
    main()
