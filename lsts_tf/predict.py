r"""Where people look in any video: an overlay to watch, and maps.

    python -m lsts_tf.predict --flagfile=RUN/experiment.flags \
        --video=in.mp4 --output=out

Writes `overlay.mp4`, `maps/0001.png` … (8-bit, one a frame, of the frame's
size) and `prediction.json`, which says what they were made with. The program
leaves with 0; with 1 when nothing could be done; with 3 when frames of the
video are missing, after writing all that could be decoded.
"""

from collections.abc import Iterator
from collections.abc import Sequence
import json
import os
import pathlib
import shutil
import sys

from absl import app
from absl import flags
from absl import logging
import cv2
import numpy as np
import tqdm

from lsts_tf import experiment
from lsts_tf import files
from lsts_tf import maps as maps_lib
from lsts_tf import overlay
from lsts_tf import predictor as predictor_lib
from lsts_tf import preprocess
from lsts_tf import program
from lsts_tf import video as video_lib
from lsts_tf import windows

INCOMPLETE = 3


class _Source:
    """Frames of a file; a damaged file ends early and is remembered."""

    def __init__(self, path: str) -> None:
        self.video = video_lib.Video(path)
        self.damage = ""

    def __iter__(self) -> Iterator[np.ndarray]:
        try:
            yield from self.video
        except video_lib.TruncatedVideoError as error:
            self.damage = str(error)


def predict(
    predictor: predictor_lib.Predictor,
    path: str,
    output: pathlib.Path,
    *,
    first_frames: str = "mirror",
    alpha: float = 0.6,
) -> str:
    """Write overlay and maps of one video.

    Args:
        predictor: The model.
        path: The video.
        output: Folder to write to; earlier results in it are replaced.
        first_frames: See `Predictor.maps`.
        alpha: Strength of the overlay, 0 … 1.

    Returns:
        What is wrong with the video, or "".
    """
    source = _Source(path)
    output.mkdir(parents=True, exist_ok=True)
    temporary = output / f".maps.{os.getpid()}"
    temporary.mkdir()
    width, height = source.video.size
    saliency = predictor.maps(source, first_frames=first_frames)
    # A second reader for the frames that are drawn on: the first one is some
    # hundred frames ahead, too many to hold at full size.
    frames = iter(_Source(path))
    count = 0
    try:
        with video_lib.Writer(
            output / "overlay.mp4", fps=source.video.fps, size=(width, height)
        ) as writer:
            bar = tqdm.tqdm(
                saliency,
                total=source.video.num_frames,
                desc="predicting",
                unit="frame",
            )
            for map_, frame in zip(bar, frames, strict=False):
                large = cv2.resize(
                    map_, (width, height), interpolation=cv2.INTER_LINEAR
                )
                maps_lib.write_png(
                    temporary / maps_lib.file_name(count),
                    preprocess.to_uint8(large),
                )
                drawn = overlay.blend(frame, _visible(large), alpha=alpha)
                if predictor.note:
                    drawn = overlay.annotate(drawn, predictor.note)
                writer.write(drawn)
                count += 1
        final = output / "maps"
        if final.exists():
            shutil.rmtree(final)
        temporary.rename(final)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    record = {
        "video": str(path),
        "frames": count,
        "fps": source.video.fps,
        "size": [width, height],
        "first_frames": first_frames,
        "front_end": predictor.extractor.describe(),
        "note": predictor.note,
        "damage": source.damage,
    }
    text = json.dumps(record, indent=2)
    files.write_text(output / "prediction.json", text + "\n")
    return source.damage


def _visible(map_: np.ndarray) -> np.ndarray:
    """A map over its own range, for the eye."""
    low, high = float(map_.min()), float(map_.max())
    return (map_ - low) / max(high - low, 1e-6)


def define_flags() -> None:
    """Flags of this program."""
    flags.DEFINE_string("video", None, "Video to predict.", required=True)
    flags.DEFINE_string("output", None, "Folder to write to.", required=True)
    flags.DEFINE_enum(
        "first_frames",
        "mirror",
        [m for m in windows.FIRST_FRAMES if m != "skip"],
        "What the frames before the first whole window are predicted from.",
    )
    flags.DEFINE_enum(
        "model",
        "last",
        list(predictor_lib.MODELS),
        "Model after the last epoch, or the best in validation.",
    )
    flags.DEFINE_float("alpha", 0.6, "Strength of the overlay, 0 … 1.")


def main(_: Sequence[str]) -> None:
    """Predict as the flags say."""
    settings = experiment.from_flags(flags.FLAGS)
    values = flags.FLAGS
    with program.exit_codes():
        model = predictor_lib.Predictor.load(
            settings.run_dir, model=values.model
        )
        damage = predict(
            model,
            values.video,
            pathlib.Path(values.output),
            first_frames=values.first_frames,
            alpha=values.alpha,
        )
    if damage:
        logging.error("%s What was decoded is written.", damage)
        sys.exit(INCOMPLETE)
    logging.info("Overlay: %s", pathlib.Path(values.output) / "overlay.mp4")


if __name__ == "__main__":
    experiment.define_flags()
    define_flags()
    app.run(main)
