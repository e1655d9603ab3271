"""Small datasets of clips in the layout of DHF1K's authors, for tests."""

import fractions

import av
import cv2
import numpy as np
import tensorflow as tf
import tensorflow_datasets as tfds

LAZY = {
    name: tfds.decode.SkipDecoding() for name in ("frames", "maps", "fixations")
}


def write_picture(path, image):
    path.parent.mkdir(parents=True, exist_ok=True)
    assert cv2.imwrite(str(path), image)


def write_film(path, pictures, codec, pixels, rate, times=None):
    """RGB pictures, equally spaced or at times in ticks of the rate."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with av.open(str(path), "w") as out:
        stream = out.add_stream(codec, rate=rate)
        stream.height, stream.width, _ = pictures[0].shape
        stream.pix_fmt = pixels
        stream.codec_context.time_base = tick = fractions.Fraction(1, rate)
        times = times or range(len(pictures))
        for time, picture in zip(times, pictures, strict=True):
            frame = av.VideoFrame.from_ndarray(picture, format="rgb24")
            frame.pts, frame.time_base = time, tick
            out.mux(stream.encode(frame))
        out.mux(stream.encode())
    return path


def plain(size, *colours):
    """RGB pictures [H, W, 3] of one colour each."""
    return [np.full((*size, 3), colour, np.uint8) for colour in colours]


def gaussians(points, size, sigma, shift=0):
    """A Gaussian at each (row, column), one after the other, up to 255."""
    rows, columns = np.mgrid[: size[0], : size[1]] - shift
    total = np.zeros(size)
    for row, column in points:
        squared = (rows - row) ** 2 + (columns - column) ** 2
        total += np.exp(-squared / (2 * sigma**2))
    return 255 * total / (total.max() or 1)


def write_clip(folder, names, *, size=(36, 64), scene=0):
    """Writes a clip; frames, maps and fixations differ from frame to frame.

    Where people look moves with a bright disc.
    """
    height, width = size
    for index, name in enumerate(names):
        row = height // 3 + index % (height // 3)
        column = width // 4 + (2 * index + 7 * scene) % (width // 2)
        (frame,) = plain(size, (20, 40, 100 + 10 * (index % 3)))  # BGR
        cv2.circle(frame, (column, row), 4, (250, 250, 250), -1)
        write_picture(folder / "images" / f"{name}.png", frame)
        density = np.rint(gaussians([(row, column)], size, 6)).astype(np.uint8)
        write_picture(folder / "maps" / f"{name}.png", density)
        fixated = np.zeros(size, np.uint8)
        fixated[row, column] = fixated[row + 1, column] = 255
        write_picture(folder / "fixation" / f"{name}.png", fixated)
    return folder


def pictures(example, feature, count=None):
    """Pictures of an example, decoded: RGB [H, W, 3], or grey [H, W]."""
    return [
        tf.io.decode_image(data).numpy().squeeze()
        for data in example[feature].numpy()[:count]
    ]


def build(builder_class, manual_dir, data_dir):
    builder = builder_class(data_dir=data_dir)
    builder.download_and_prepare(
        download_config=tfds.download.DownloadConfig(
            manual_dir=manual_dir, try_download_gcs=False
        )
    )
    return tfds.builder_from_directory(builder.data_dir)


def examples(builder, split):
    """Examples of a split by number, pictures still encoded."""
    found = builder.as_dataset(split=split, decoders=LAZY)
    by_number = {int(example["video"]): example for example in found}
    return dict(sorted(by_number.items()))
