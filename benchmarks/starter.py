"""Scores of trained models beside what any model has to pass.

    python -m benchmarks.starter --dataset=osie --videos=1001-1700/7
    python -m benchmarks.starter --dataset=dhf1k --videos=2,3,501,601

Each model predicts every frame as `predict` does. Beside them stand the
benchmark's centre prior, the mean map of what the starter was trained on, and
OpenCV's spectral residual. Scores are those of `evaluate`, means over videos of
their means over frames. CPU seconds are those of a frame of a video after the
first, reading included. `--runs=starter,starter+bfloat16` compares a model with
itself in another precision, bfloat16 or int8.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
import time

from absl import app, flags
import cv2
import numpy as np
import tqdm

from lsts_tf import experiment, parts, windows
from lsts_tf import predictor as predictor_lib
from lsts_tf.features import dataset, preprocess
from lsts_tf.media import images as maps_lib
from lsts_tf.scoring import density as density_lib
from lsts_tf.scoring import scorer as scorer_lib
from lsts_tf.scoring import truth

DATASET = flags.DEFINE_string("dataset", "osie", "TFDS name of the dataset.")
VIDEOS = flags.DEFINE_string("videos", "1001-1700/7", "Videos scored.")
DATA_DIR = flags.DEFINE_string("data_dir", "", "TFDS data folder.")
RUNS = flags.DEFINE_list(
    "runs", ["starter"], "Run folders of the models scored; starter is one."
)
TRAINED_ON = flags.DEFINE_list(
    "trained_on",
    ["osie", "crowd", "scene"],
    "Datasets whose training splits give the mean map; empty: no mean map.",
)
METRICS = ("cc", "sim", "nss", "auc_judd", "sauc", "kld")

Maps = Callable[[Iterable[np.ndarray]], Iterator[np.ndarray]]


def of_run(name: str) -> Maps:
    """The maps of a trained model, in the precision behind a +, if any."""
    run, _, dtype = name.partition("+")
    return predictor_lib.Predictor.load(
        experiment.run_folder(run), dtype=dtype or None
    ).maps


def same(map_: np.ndarray) -> Maps:
    """One map for all frames."""
    return lambda frames: (map_ for _ in frames)


def spectral_residual(frames: Iterable[np.ndarray]) -> Iterator[np.ndarray]:
    """Hou and Zhang's method, as OpenCV has it, of each frame alone."""
    method = cv2.saliency.StaticSaliencySpectralResidual_create()
    for frame in frames:
        found, map_ = method.computeSaliency(np.ascontiguousarray(frame))
        if not found:
            raise RuntimeError("OpenCV found no spectral residual.")
        yield map_


def mean_map(names: Sequence[str]) -> np.ndarray:
    """Mean of the densities that training sees, float64 [360, 640]."""
    total = np.zeros(parts.MAP_SIZE)
    for name in names:
        data = dataset.Dataset(name, DATA_DIR.value)
        for video in data.videos(data.splits["train"]):
            for png in video.maps:
                density = preprocess.density(maps_lib.decode(png))
                total += density / max(density.max(), 1)
    return total / total.max()


def score(
    videos: Sequence[dataset.Video], method: Maps, scorer: scorer_lib.Scorer
) -> dict[str, float]:
    """Mean over videos of each metric's mean over frames, and CPU seconds."""
    found, seconds, frames = [], 0.0, 0
    for video in tqdm.tqdm(videos, unit="video"):
        begin = time.process_time()
        maps = [maps_lib.to_uint8(map_) for map_ in method(video.frames())]
        if found or len(videos) == 1:
            seconds += time.process_time() - begin
            frames += len(maps)
        each = [
            scorer.score(
                scorer.fixations.row(video.number, frame),
                map_,
                maps_lib.decode(png),
            )
            for frame, (map_, png) in enumerate(
                zip(maps, video.maps, strict=True)
            )
        ]
        found.append([np.nanmean([s[name] for s in each]) for name in METRICS])
    return {
        **dict(zip(METRICS, np.nanmean(found, axis=0), strict=True)),
        "CPU s": seconds / frames,
    }


def main(_: Sequence[str]) -> None:
    """Print a table."""
    data = dataset.Dataset(DATASET.value, DATA_DIR.value)
    chosen = data.choose(windows.parse_ranges(VIDEOS.value), "scoring")
    videos = list(data.videos(chosen))
    scorer = scorer_lib.Scorer(
        truth.FixationSet.of_maps(
            (video.number, frame, maps_lib.decode(png))
            for video in videos
            for frame, png in enumerate(video.fixations)
        )
    )
    methods = {name: of_run(name) for name in RUNS.value}
    methods["centre prior"] = same(density_lib.centre_prior(*parts.MAP_SIZE))
    if TRAINED_ON.value:
        methods["mean training map"] = same(mean_map(TRAINED_ON.value))
    methods["spectral residual"] = spectral_residual
    count = sum(video.num_frames for video in videos)
    print(f"{data.name}: {len(videos)} videos, {count} frames")
    columns = (*METRICS, "CPU s")
    print(f"| | {' | '.join(columns)} |")
    print(f"|---|{'---|' * len(columns)}")
    for name, method in methods.items():
        found = score(videos, method, scorer)
        figures = " | ".join(f"{found[column]:.3f}" for column in columns)
        print(f"| {name} | {figures} |", flush=True)


if __name__ == "__main__":
    app.run(main)
