"""The extract program with a front end that costs next to nothing.

As a program it extracts, or is killed again and again:

    python tests/cheap_extraction.py run SETTINGS.json WORKERS
    python tests/cheap_extraction.py kill SETTINGS.json WORKERS KILLS
    python tests/cheap_extraction.py die SETTINGS.json WORKERS VIDEO

`die` has workers that kill themselves at a video, or at once if it is 0.

It logs in SETTINGS.log each file that a process begins and ends to write.
"""

import contextlib
import itertools
import json
import logging
import os
import pathlib
import random
import shutil
import signal
import sys
import time

import cv2
import numpy as np

from lsts_tf import experiment
from lsts_tf import extract
from lsts_tf import parts
from lsts_tf.features import extractor as extractor_lib
from lsts_tf.features import preprocess
from lsts_tf.features import stores
from lsts_tf.features import workers

SHAPE = (1, 2, 2, 16)
# Seconds between two kills, at most.
LONGEST = 2.0


class Flow:
    """Pixels as flow."""

    batch = 1

    def describe(self):
        return {"method": "pixels"}


class Extractor:
    """As `extractor.Extractor`, but a feature is a mean of pixels."""

    feature_shape = SHAPE
    front_end = "window"
    note = ""
    size = parts.SIZE
    skips = ()
    end_point = parts.MAIN

    def __init__(self, streams, *, window, **_):
        self.streams = streams
        self.window = window
        self.flow = Flow()

    def describe(self):
        return {"streams": {stream: {} for stream in self.streams}}

    def part_shapes(self, stream):
        return {stream: SHAPE}

    def squeeze(self, frame):
        return preprocess.squeeze(frame)

    def flows(self, frames):
        for frame in itertools.islice(frames, 1, None):
            yield cv2.resize(frame, (112, 112))[..., :2].astype(np.float16)

    def all_parts(self, stream, signal, *, stride=1, **_):
        recent = []
        for index, element in enumerate(signal):
            recent.append(element[:8, :8, 0].astype(np.float32).reshape(SHAPE))
            since = index - self.window + 1
            if since >= 0 and since % stride == 0:
                yield {stream: np.mean(recent[-self.window :], axis=0)}


def settings_of(path):
    values = json.loads(pathlib.Path(path).read_text())
    return experiment.Experiment(
        **{
            name: tuple(value) if isinstance(value, list) else value
            for name, value in values.items()
        }
    )


def files(folder):
    """Name and content of everything that is stored."""
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(pathlib.Path(folder).rglob("*"))
        if path.is_file() and path.name != ".lock"
    }


class Log:
    """Lines (process, what, file), whole even if the process is killed."""

    def __init__(self, path):
        self.path = path

    def write(self, what, root, video):
        line = f"{os.getpid()} {what} {root.name}/{video}\n"
        with self.path.open("a") as file:
            file.write(line)

    def install(self):
        """Log what is written to the stores from now on."""
        original = stores.Store.writer

        @contextlib.contextmanager
        def writer(store, video, **place):
            self.write("begin", store.root, video)
            with original(store, video, **place) as found:
                yield found
            self.write("end", store.root, video)

        stores.Store.writer = writer

    def lines(self):
        if not self.path.exists():
            return []
        return [line.split() for line in self.path.read_text().splitlines()]


def check(lines):
    """Nothing was computed twice but what was under way at a kill."""
    ended, open_ = set(), {}
    for pid, what, file in lines:
        if what == "begin":
            assert file not in ended, f"{file} was computed again"
            assert pid not in open_, f"{pid} left {open_.get(pid)}"
            open_[pid] = file
        else:
            assert open_.pop(pid) == file
            ended.add(file)


def children(pid):
    found = []
    for path in pathlib.Path(f"/proc/{pid}/task").glob("*/children"):
        with contextlib.suppress(OSError):
            found.extend(map(int, path.read_text().split()))
    return found


def gone(pid):
    with contextlib.suppress(OSError):
        state = pathlib.Path(f"/proc/{pid}/stat").read_text()
        return state.rsplit(")", 1)[1].split()[0] == "Z"
    return True


def start(settings, count):
    """A fork, because importing TensorFlow each time would take minutes."""
    pid = os.fork()
    if not pid:
        try:
            extract.extract(settings, ["train"], workers=count)
        except BaseException:
            logging.exception("extraction failed")
            os._exit(1)
        os._exit(0)
    return pid


def kill_somebody(pid, rng):
    """Kill the process or one of its workers; whether it was the process."""
    below = children(pid)
    victim = rng.choice([pid, *below])
    os.kill(victim, signal.SIGKILL)
    if victim == pid:
        os.waitpid(pid, 0)
        while not all(map(gone, below)):  # Its workers end with it.
            time.sleep(0.01)
    return victim == pid


def extract_under_fire(settings, count, kills, rng):
    """One extraction, from nothing to its end; how many kills it took."""
    used = 0
    pid = start(settings, count)
    while True:
        if used == kills:
            assert os.waitpid(pid, 0)[1] == 0
            return used
        time.sleep(rng.uniform(0, LONGEST))
        done, code = os.waitpid(pid, os.WNOHANG)
        if done:
            assert code == 0
            return used
        used += 1
        if kill_somebody(pid, rng):
            pid = start(settings, count)


def kill(settings, log, count, kills):
    """Extract again and again, until there were `kills` kills."""
    rng = random.Random(0)
    folder = pathlib.Path(settings.store_dir)
    assert extract_under_fire(settings, count, 0, rng) == 0
    want = files(folder)
    log.install()
    rounds = 0
    while kills:
        shutil.rmtree(folder)
        log.path.unlink(missing_ok=True)
        kills -= extract_under_fire(settings, count, kills, rng)
        check(log.lines())
        found = files(folder)
        assert found.keys() == want.keys(), found.keys() ^ want.keys()
        assert found == want
        rounds += 1
    sys.stdout.write(f"{rounds} extractions, all identical\n")


def die_at(number):
    """Have workers that come to this video die, always."""
    original = extractor_lib.extract_video

    def extract_video(video, *arguments, **keywords):
        if video.number == number:
            os.kill(os.getpid(), signal.SIGKILL)
        original(video, *arguments, **keywords)

    extractor_lib.extract_video = extract_video
    if not number:
        workers.Work.open = lambda _: os.kill(os.getpid(), signal.SIGKILL)


def main(what, path, count, number="0"):
    settings = settings_of(path)
    if what != "run":
        workers.START = "fork"
    if what == "kill":
        workers.RETRIES = 1000
        log = Log(pathlib.Path(path).with_suffix(".log"))
        kill(settings, log, int(count), int(number))
        return
    if what == "die":
        die_at(int(number))
    extract.extract(settings, extract.SPLITS, workers=int(count))


# Also in a worker, which imports the program's main module anew.
if __name__ in ("__main__", "__mp_main__"):
    extractor_lib.Extractor = Extractor
if __name__ == "__main__":
    main(*sys.argv[1:])
