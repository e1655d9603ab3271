"""Score a trained model on the videos of a split.

    python -m lsts_tf.evaluate --flagfile=RUN/experiment.flags

Scores every frame of `--test_videos` by the benchmark's definitions (see
`metrics`), on maps of 8 bits, beside a centre prior. The first 78 (79) frames
have no window and get a copy of the first map that exists (LSTS report,
section 5.3); they are also reported apart. Writes RUN/scores.json:

    {"protocol", "seed", "frames", "overall": {metric: {"mean", "ci95",
     "n_valid", "mean_of_videos"}}, "first_frames": {"number", "first",
     "rest"}, "by_video": {video: {metric: mean}}, "centre_prior": ..., ...}
"""

from collections.abc import Callable
from collections.abc import Iterator
from collections.abc import Sequence
import json
import os
import pathlib
import sys
from typing import Any

from absl import app
from absl import flags
from absl import logging
import numpy as np
import tqdm

from lsts_tf import dataset
from lsts_tf import experiment
from lsts_tf import extractor as extractor_lib
from lsts_tf import metrics
from lsts_tf import predictor as predictor_lib
from lsts_tf import preprocess
from lsts_tf import scores as scores_lib
from lsts_tf import stores
from lsts_tf import windows

METRICS = metrics.METRICS
CHUNK = 16

# Maps uint8 [T, 360, 640] of a video, by its number.
MapsOfVideo = Callable[[int], np.ndarray]


class Truth:
    """Where people looked, in all frames of the videos that are scored.

    Args:
        store: Density and fixation maps.
        videos: Videos that are scored.
        seed: Seed of the draw of other frames for shuffled AUC.
    """

    def __init__(
        self, store: stores.TruthStore, videos: Sequence[int], *, seed: int
    ) -> None:
        self._store = store
        self.videos = tuple(videos)
        self.seed = seed
        points: list[np.ndarray] = []
        self._first: dict[int, int] = {}
        for video in self.videos:
            self._first[video] = len(points)
            points += [
                np.argwhere(store.fixations(video, [frame])[0]).astype(np.int16)
                for frame in range(store.length(video))
            ]
        self._points = points
        self._others = metrics.OtherFixations(points, seed=seed)

    def score(
        self, video: int, maps: np.ndarray, baseline: np.ndarray
    ) -> scores_lib.Scores:
        """Scores of all frames of a video, from maps uint8 [T, H, W]."""
        total = self._store.length(video)
        if len(maps) != total:
            raise ValueError(
                f"Video {video} has {total} frames. Received: {len(maps)} maps"
            )
        parts = []
        for start in range(0, total, CHUNK):
            frames = range(start, min(start + CHUNK, total))
            rows = [self._first[video] + frame for frame in frames]
            values = metrics.score(
                maps[start : frames.stop],
                self._store.maps(video, list(frames)),
                [self._points[row].astype(np.int64) for row in rows],
                other=[self._others[row] for row in rows],
                baseline=baseline,
                seed=self.seed,
                frames=rows,
            )
            parts.append(
                scores_lib.Scores(
                    video=np.full(len(frames), video),
                    frame=np.array(frames),
                    values=values,
                )
            )
        return scores_lib.Scores.joined(parts)


def score_videos(
    truth: Truth, maps_of: MapsOfVideo, baseline: np.ndarray, title: str
) -> scores_lib.Scores:
    """Scores of all videos of `truth`."""
    return scores_lib.Scores.joined(
        [
            truth.score(video, maps_of(video), baseline)
            for video in tqdm.tqdm(truth.videos, desc=title, unit="video")
        ]
    )


def maps_of_store(
    predictor: predictor_lib.Predictor,
    kept: extractor_lib.Stores,
    video: int,
) -> np.ndarray:
    """Maps of every frame of a video whose features are stored.

    Returns:
        uint8 [T, 360, 640]; the frames before the first window carry a copy
        of its map.
    """
    total = kept.truth.length(video)
    targets = predictor.geometry.targets(total)
    if not targets:
        raise ValueError(
            f"Video {video} has {total} frames, fewer than a window; it "
            "cannot be scored by copying the first map."
        )

    def features() -> Iterator[dict[str, np.ndarray]]:
        rows = {
            stream: {int(t): r for r, t in enumerate(store.targets(video))}
            for stream, store in kept.features.items()
        }
        for target in targets:
            yield {
                stream: store.read(video, [rows[stream][target]])[0]
                for stream, store in kept.features.items()
            }

    found = [preprocess.to_uint8(m) for m in predictor.of_features(features())]
    return np.stack([found[0]] * targets.start + found)


def evaluate(settings: experiment.Experiment, *, model: str) -> dict[str, Any]:
    """Score a run; returns what `scores.json` holds."""
    predictor = predictor_lib.Predictor.load(settings.run_dir, model=model)
    data = dataset.Dataset(settings.dataset, settings.data_dir)
    videos = sorted(
        data.choose(windows.parse_ranges(settings.test_videos), "scoring")
    )
    kept = extractor_lib.ready_stores(
        pathlib.Path(settings.store_dir),
        data,
        videos,
        predictor.extractor,
        stride=1,
        purpose="scoring",
    )
    truth = Truth(kept.truth, videos, seed=settings.seed)
    prior = scores_lib.centre_prior(*preprocess.MAP_SIZE)
    flat_prior = preprocess.to_uint8(prior)
    ours = score_videos(
        truth,
        lambda video: maps_of_store(predictor, kept, video),
        prior,
        "scoring",
    )
    centre = score_videos(
        truth,
        lambda video: np.broadcast_to(
            flat_prior, (kept.truth.length(video), *flat_prior.shape)
        ),
        prior,
        "centre prior",
    )
    return report(
        ours,
        centre,
        first_target=predictor.geometry.first_target,
        seed=settings.seed,
        about={
            "model": model,
            "run": settings.run_dir,
            "dataset": data.name,
            "videos": settings.test_videos,
            "front_end": predictor.extractor.describe(),
            "note": predictor.note,
        },
    )


def report(
    ours: scores_lib.Scores,
    centre: scores_lib.Scores,
    *,
    first_target: int,
    seed: int,
    about: dict[str, Any],
) -> dict[str, Any]:
    """What `scores.json` holds."""
    copied = ours.frame < first_target
    return {
        "protocol": "dhf1k",
        "seed": seed,
        "frames": len(ours.frame),
        "overall": ours.summary(seed=seed),
        "first_frames": {
            "number": first_target,
            "filled_by": "copy of the first map",
            "first": ours.where(copied).summary(seed=seed),
            "rest": ours.where(~copied).summary(seed=seed),
        },
        "centre_prior": centre.summary(seed=seed),
        "other_fixations": "ten random frames of the scored videos, seeded",
        "by_video": ours.by_video(),
        **about,
    }


def table(result: dict[str, Any]) -> str:
    """The report's means, for the terminal."""
    number = result["first_frames"]["number"]
    rows = {
        "all frames": result["overall"],
        f"first {number} (copied)": result["first_frames"]["first"],
        "the rest": result["first_frames"]["rest"],
        "centre prior": result["centre_prior"],
    }
    text = scores_lib.table(rows)
    return f"{text}\n{result['note'].upper()}\n" if result["note"] else text


def define_flags() -> None:
    """Flags of this program."""
    flags.DEFINE_enum(
        "model",
        "last",
        list(predictor_lib.MODELS),
        "Model after the last epoch, or the best in validation.",
    )
    flags.DEFINE_string(
        "output", "", "Where scores go; RUN/scores.json by default."
    )


def main(_: Sequence[str]) -> None:
    """Evaluate as the flags say."""
    settings = experiment.from_flags(flags.FLAGS)
    try:
        result = evaluate(settings, model=flags.FLAGS.model)
    except (ValueError, OSError, RuntimeError) as error:
        logging.error("%s", error)
        sys.exit(1)
    output = flags.FLAGS.output
    path = pathlib.Path(output or f"{settings.run_dir}/scores.json")
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    temporary.write_text(json.dumps(result, indent=2) + "\n")
    temporary.replace(path)
    sys.stdout.write(f"{table(result)}\n{path}\n")


if __name__ == "__main__":
    experiment.define_flags()
    define_flags()
    app.run(main)
