"""Small datasets in the layouts of AViMoS, NTIRE 2026 and CrowdSAL."""

import json
import zipfile

import cv2
import numpy as np

from lsts_tf.media import writer

# Half an inch of a Full HD film; another one is upright.
SIZE = (96, 54)
UPRIGHT = (54, 96)


def clip(seed, frames, size=SIZE):
    """A bright disc that moves; where people look: pictures, maps, points."""
    rng = np.random.default_rng(seed)
    width, height = size
    scene = cv2.resize(rng.integers(0, 90, (5, 9, 3), np.uint8), size)
    rows, columns = np.mgrid[:height, :width]
    pictures, maps, points = [], [], []
    row, column = rng.uniform(0.3, 0.7, 2) * (height, width)
    for _ in range(frames):
        row, column = np.clip(
            rng.normal((row, column), 2), 6, (height - 7, width - 7)
        )
        picture = scene.copy()
        cv2.circle(picture, (int(column), int(row)), 5, (250, 240, 230), -1)
        pictures.append(picture)
        seen = np.rint(rng.normal((row, column), 2.5, (12, 2))).astype(int)
        # Several people on one pixel.
        points.append(np.concatenate([seen, seen[:3]]).tolist())
        distance = sum(
            np.exp(-((rows - r) ** 2 + (columns - c) ** 2) / 60)
            for r, c in points[-1]
        )
        distance -= distance.min()
        maps.append(np.rint(1023 * distance / distance.max()).astype(np.uint16))
    return pictures, maps, points


def film(path, frames, pixels="rgb", fps=30):
    path.parent.mkdir(parents=True, exist_ok=True)
    size = frames[0].shape[1::-1]
    with writer.Writer(path, fps=fps, size=size, pixels=pixels) as file:
        for frame in frames:
            file.write(frame)


def avimos(root, clips, splits):
    """Clips are {name: (pictures, maps, points)}, splits {name: names}."""
    for name, (pictures, maps, points) in clips.items():
        kind = "Train" if name in splits.get("train", ()) else "Test"
        film(root / "Videos" / f"{name}.mp4", pictures)
        film(root / f"Saliency{kind}" / kind / f"{name}.mp4", maps, "gray10")
        folder = root / f"Fixations{kind}" / kind / name
        (folder / "fixations").mkdir(parents=True)
        (folder / "fixations" / "0001.png").touch()
        (folder / "fixations.json").write_text(json.dumps(points))
    (root / "TrainTestSplit.json").write_text(json.dumps(splits))
    (root / "VideoInfo.json").write_text("{}")
    return root


def crowdsal(root, clips):
    """Clips are {number: (pictures, maps, points)}."""
    for number, (pictures, maps, points) in clips.items():
        folder = root / ("Train" if number <= 3000 else "Test")
        film(folder / "Videos" / f"{number:04d}.mp4", pictures)
        film(folder / "Saliency" / f"{number:04d}.mp4", maps, "gray10")
        (folder / "Fixations").mkdir(exist_ok=True)
        (folder / "Fixations" / f"{number:04d}.json").write_text(
            json.dumps(points)
        )
    (root / "metadata.jsonl").touch()
    return root


def pack(folder):
    """The folder's folders as archives, in their place."""
    for place in sorted(p for p in folder.iterdir() if p.is_dir()):
        files = sorted(p for p in place.rglob("*") if p.is_file())
        with zipfile.ZipFile(place.with_suffix(".zip"), "w") as archive:
            for file in files:
                archive.write(file, file.relative_to(place))
                file.unlink()
        for below in sorted(place.rglob("*"), reverse=True):
            below.rmdir()
        place.rmdir()
    return folder
