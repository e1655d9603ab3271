"""Loss and scores of a model on stored windows, means over the windows.

Scores are the benchmark's, on maps of 8 bits, computed on the host by the
functions that `evaluate` calls.
"""

import numpy as np

from lsts_tf.media import images
from lsts_tf.scoring import metrics
from lsts_tf.scoring import scorer as scorer_lib
from lsts_tf.scoring import truth as truth_lib
from lsts_tf.training import devices, input_pipeline
from lsts_tf.training import trainer as trainer_lib

# What is scored besides the loss where no other frames' fixations are known.
METRICS = ("auc_judd", "nss", "cc", "sim", "kld")


def validate(
    trainer: trainer_lib.Trainer,
    windows: input_pipeline.StoredWindows,
    batch_size: int,
    *,
    scorer: scorer_lib.Scorer | None = None,
) -> dict[str, float]:
    """Loss and scores by name, the same on every worker.

    Each worker computes and scores its own part of each batch, of `batch_size`
    windows over all replicas. A scorer of `windows.fixations()` gives all of
    the benchmark's metrics; without it, these are `METRICS`.
    """
    names = ("loss", *(scorer.metrics if scorer else METRICS))
    found = np.zeros((len(names), len(windows)))
    part = devices.rows(trainer.strategy, batch_size)
    for batches, numbers in windows.in_order(part, batch_size):
        maps, loss = trainer.predict(batches)
        real = numbers >= 0
        if not real.any():
            continue
        numbers, maps = numbers[real], maps[real]
        truth = np.concatenate([truth for _, truth in batches])[real]
        # Each frame is scored, of several maps of a window too.
        size = maps.shape[-2:]
        levels = images.to_uint8(maps).reshape(-1, *size)
        each = [
            _scores(frame, map_, both, scorer)
            for frame, map_, both in zip(
                windows.frames(windows.windows[numbers]),
                levels,
                truth.reshape(-1, *size, 2),
                strict=True,
            )
        ]
        found[0, numbers] = loss[real]
        for row, name in enumerate(names[1:], start=1):
            values = np.array([scores[name] for scores in each])
            values = values.reshape(len(numbers), -1)
            found[row, numbers] = np.nanmean(values, axis=1)
    totals = devices.total(trainer.strategy, found)
    means = map(float, np.nanmean(totals, axis=1))
    return dict(zip(names, means, strict=True))


def _scores(
    frame: tuple[int, int],
    map_: np.ndarray,
    truth: np.ndarray,
    scorer: scorer_lib.Scorer | None,
) -> dict[str, float]:
    """Scores of a (place of the video, frame); truth is uint8 [H, W, 2]."""
    if scorer:
        row = scorer.fixations.row(*frame)
        return scorer.score(row, map_, truth[..., 0])
    return metrics.score(
        map_,
        truth[..., 0],
        truth_lib.coordinates(truth[..., 1]),
        metrics=METRICS,
    )
