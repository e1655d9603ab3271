"""Training made so small that it can be killed again and again.

A decoder of two layers, maps of 16 x 16, features that are pixels, a dataset
that is computed. As a program it trains, or is killed until it is done:

    python -m tests.tiny_training run FLAGFILE
    python -m tests.tiny_training kill FLAGFILE KILLS [kill|term]

`kill` compares each survivor with a run that nobody killed: weights, optimiser,
scores and curves, bit for bit.
"""

import collections
import contextlib
import functools
import json
import os
import pathlib
import shutil
import signal
import socket
import sys

import cv2
import numpy as np

from lsts_tf import experiment, parts
from lsts_tf.features import dataset
from lsts_tf.features import extractor as extractor_lib
from lsts_tf.media import files
from lsts_tf.networks import decoder
from lsts_tf.training import checkpoints, loop
from tests import fake_front_end, forks, run_folder

MAP_SIZE = (16, 16)
TABLE = (decoder.Deconvolution("d1", 4, (4, 4), (4, 4)),)
FRAMES = 9


class Dataset(dataset.Dataset):
    """Videos 1 … 6 of noise, where people look at the brightest corner."""

    name = "tiny:1.0.0"

    def __init__(self, *_):
        self.frame_counts = dict.fromkeys(range(1, 7), FRAMES)

    def videos(self, numbers):
        for number in sorted(set(numbers)):
            rng = np.random.default_rng(number)
            maps, fixations, frames = (
                rng.integers(0, high, (FRAMES, *MAP_SIZE, *more), np.uint8)
                for high, *more in ((256,), (2,), (256, 3))
            )
            yield dataset.Video(
                number=number,
                fps=30.0,
                jpegs=pngs(frames),
                maps=pngs(maps),
                fixations=pngs(fixations),
            )


def pngs(images):
    return tuple(cv2.imencode(".png", i)[1].tobytes() for i in images)


def install(patch=setattr):
    """Make everything tiny; `patch` is as `monkeypatch.setattr`."""
    patch(decoder, "TEMPORAL_FILTERS", 8)
    patch(decoder, "DECONVOLUTIONS", TABLE)
    # With --dropout channels are left out here, too.
    patch(decoder, "DROPOUT_FILTERS", 8)
    patch(parts, "MAP_SIZE", MAP_SIZE)
    patch(dataset, "Dataset", Dataset)
    patch(extractor_lib, "Extractor", fake_front_end.Pixels)


def settings(folder, **changes):
    """30 windows of 4 frames: 5 steps of 6 an epoch."""
    return experiment.Experiment(
        **{
            "run_dir": str(folder / "run"),
            "store_dir": str(folder / "stores"),
            "dataset": "tiny",
            "train_videos": "1-5",
            "val_videos": "6",
            "window": 4,
            "rgb_weights": ("random",),
            "loss": "kld-cc",
            "learning_rate": 1e-3,
            "batch_size": 6,
            "epochs": 4,
            "val_stride": 2,
            "checkpoint_steps": 3,
            "log_steps": 1,
            "image_windows": 1,
            "strategy": "one",
            "deterministic": True,
        }
        | changes
    )


def curves(folder):
    """(tag, step) -> value of all curves that repeat."""
    from tensorboard.util import tensor_util

    events = run_folder.events(folder / "logs")
    return {
        (tag, point.step): float(tensor_util.make_ndarray(point.tensor_proto))
        for tag in events.Tags()["tensors"]
        if tag.startswith(("train/", "validation/"))
        for point in events.Tensors(tag)
    }


def variables(folder):
    """All that the newest checkpoint holds, by name."""
    import tensorflow as tf

    newest = checkpoints.found(pathlib.Path(folder) / "checkpoints")[-1]
    reader = tf.train.load_checkpoint(str(newest))
    return {
        name: np.asarray(reader.get_tensor(name))
        for name in sorted(reader.get_variable_to_shape_map())
        if name.endswith("VARIABLE_VALUE")
    }


def weights(folder):
    """The model's variables of the newest checkpoint, in one order."""
    found = variables(folder).items()
    return [value for name, value in found if name.startswith("model/")]


def state(folder):
    """Everything that has to be equal at the end."""
    return {
        "newest": checkpoints.found(folder / "checkpoints")[-1].name,
        "variables": {n: v.tobytes() for n, v in variables(folder).items()},
        "scores": (folder / "metrics.jsonl").read_text(),
        "curves": curves(folder),
    }


def free_addresses(count):
    """Addresses of workers on this machine."""
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for free in sockets:
            free.bind(("localhost", 0))
        return [f"localhost:{free.getsockname()[1]}" for free in sockets]


def tf_config(hosts, number):
    """What tells a worker of the others."""
    task = {"type": "worker", "index": number}
    return json.dumps({"cluster": {"worker": hosts}, "task": task})


def run(settings):
    import tensorflow as tf

    tf.config.threading.set_inter_op_parallelism_threads(1)
    tf.config.threading.set_intra_op_parallelism_threads(1)
    if settings.strategy == "mirrored":
        cpu = tf.config.list_physical_devices("CPU")[0]
        tf.config.set_logical_device_configuration(
            cpu, [tf.config.LogicalDeviceConfiguration()] * 2
        )
    return loop.run(settings)


def kill(path, kills, how="kill"):
    wanted = experiment.load(pathlib.Path(path))
    folder = pathlib.Path(wanted.run_dir)
    codes = collections.Counter()

    def end(pid, _):
        os.kill(pid, signal.SIGTERM if how == "term" else signal.SIGKILL)
        code = forks.wait(pid, 60)
        assert code in ((0, 143, -15) if how == "term" else (0, -9))
        codes[code] += 1
        return code

    def look():
        found = state(folder)
        left_behind = [
            p.name
            for p in folder.rglob("*")
            if (p.name[0] == "." and p.name != files.LOCK) or "temp" in p.name
        ]
        assert not left_behind, left_behind
        shutil.rmtree(folder)
        return found

    do = functools.partial(run, wanted)
    rounds = forks.kill_often(do, end, look, kills)
    sys.stdout.write(f"{rounds} trainings, {dict(codes)}, all identical\n")
    # Other moments are before the first step, or at the end.
    assert how != "term" or codes[143] >= kills // 5, codes


def main(what, path, count="0", how="kill"):
    install()
    if what == "kill":
        kill(path, int(count), how)
        return
    sys.exit(run(experiment.load(pathlib.Path(path))))


if __name__ == "__main__":
    main(*sys.argv[1:])
