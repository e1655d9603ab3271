"""The extract program with a front end that costs next to nothing.

As a program it extracts, or is killed again and again:

    python tests/cheap_extraction.py run FLAGFILE WORKERS
    python tests/cheap_extraction.py kill FLAGFILE WORKERS KILLS
    python tests/cheap_extraction.py die FLAGFILE WORKERS VIDEO

`die` has workers that kill themselves at a video.
"""

import contextlib
import functools
import itertools
import os
import pathlib
import random
import shutil
import signal
import sys
import time

import cv2
import numpy as np

from lsts_tf import experiment, extract
from lsts_tf.features import extractor as extractor_lib
from lsts_tf.features import fill
from tests import fake_front_end, forks

# Seconds between two kills, at most.
LONGEST = 2.0
STREAMS = ("rgb", "flow")


class Extractor(fake_front_end.Extractor):
    """A mean of pixels, and so is flow: TensorFlow would not survive a fork."""

    def flows(self, frames):
        for frame in itertools.islice(frames, 1, None):
            yield cv2.resize(frame, (112, 112))[..., :2].astype(np.float16)

    @property
    def encoders(self):
        return {s: functools.partial(self.encode_parts, s) for s in STREAMS}

    def encode_parts(self, stream, clip):
        pixels = clip[:, :8, :8, 0].astype(np.float32)
        return {stream: pixels.mean(axis=0).reshape(self.feature_shape)}


def files(folder):
    """Name and content of everything that is stored."""
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(pathlib.Path(folder).rglob("*"))
        if path.is_file()
    }


def children(pid):
    found = []
    for path in pathlib.Path(f"/proc/{pid}/task").glob("*/children"):
        with contextlib.suppress(OSError):  # The thread has just ended.
            found.extend(map(int, path.read_text().split()))
    return found


def gone(pid):
    try:
        state = pathlib.Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return True
    return state.rsplit(")", 1)[1].split()[0] == "Z"


def start(settings, count):
    return forks.start(
        lambda: extract.extract(settings, ["train"], workers=count)
    )


def kill_somebody(pid, rng):
    """Kill the process or one of its workers, and wait until all have ended.

    Of a dead worker the process says so, and ends; workers end with it. One
    that wrote on would leave its unfinished file to the start after the next.
    """
    below = children(pid)
    os.kill(rng.choice([pid, *below]), signal.SIGKILL)
    os.waitpid(pid, 0)
    while not all(map(gone, below)):
        time.sleep(0.01)


def extract_under_fire(settings, count, kills, rng):
    """One extraction, from nothing to its end; how many kills it took."""
    for used in range(kills):
        pid = start(settings, count)
        code = forks.wait(pid, rng.uniform(0, LONGEST))
        if code is not None:
            assert code == 0
            return used
        kill_somebody(pid, rng)
    assert forks.wait(start(settings, count), 600) == 0
    return kills


def kill(settings, count, kills):
    """Extract again and again, until there were `kills` kills."""
    rng = random.Random(0)
    folder = pathlib.Path(settings.store_dir)
    assert extract_under_fire(settings, count, 0, rng) == 0
    want = files(folder)
    rounds = 0
    while kills:
        shutil.rmtree(folder)
        kills -= extract_under_fire(settings, count, kills, rng)
        found = files(folder)
        assert found.keys() == want.keys(), found.keys() ^ want.keys()
        assert found == want
        rounds += 1
    sys.stdout.write(f"{rounds} extractions, all identical\n")


def die_at(number):
    """Have whoever comes to this video die."""
    original = fill._fill_video

    def fill_video(video, *arguments):
        if video.number == number:
            os.kill(os.getpid(), signal.SIGKILL)
        original(video, *arguments)

    fill._fill_video = fill_video


def main(what, path, count, number="0"):
    settings = experiment.load(pathlib.Path(path))
    if what != "run":
        fill.START = "fork"
    if what == "kill":
        kill(settings, int(count), int(number))
        return
    if what == "die":
        die_at(int(number))
    extract.extract(settings, extract.SPLITS, workers=int(count))


# Also in a worker, which imports the program's main module anew.
if __name__ in ("__main__", "__mp_main__"):
    extractor_lib.Extractor = Extractor
if __name__ == "__main__":
    main(*sys.argv[1:])
