"""The extract program with a front end that costs next to nothing.

As a program it extracts, or is killed again and again:

    python tests/cheap_extraction.py run FLAGFILE WORKERS
    python tests/cheap_extraction.py kill FLAGFILE WORKERS KILLS
    python tests/cheap_extraction.py die FLAGFILE WORKERS VIDEO

`die` has workers that kill themselves at a video.
"""

import contextlib
import functools
import os
import pathlib
import shutil
import signal
import sys
import time

from lsts_tf import experiment, extract
from lsts_tf.features import extractor as extractor_lib
from lsts_tf.features import fill
from tests import fake_front_end, folders, forks


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


def kill_somebody(pid, rng):
    """Kill the process or one of its workers, and wait until all have ended.

    Of a dead worker the process says so, and ends; workers end with it. One
    that wrote on would leave its unfinished file to the start after the next.
    """
    below = children(pid)
    os.kill(rng.choice([pid, *below]), signal.SIGKILL)
    code = forks.wait(pid, 600)
    while not all(map(gone, below)):
        time.sleep(0.01)
    return code


def kill(settings, count, kills):
    """Extract again and again, until there were `kills` kills."""

    def look():
        found = folders.files(pathlib.Path(settings.store_dir))
        shutil.rmtree(settings.store_dir)
        return found

    do = functools.partial(extract.extract, settings, ["train"], workers=count)
    rounds = forks.kill_often(do, kill_somebody, look, kills)
    sys.stdout.write(f"{rounds} extractions, all identical\n")


def before_each(patch, function):
    """Have it called with the number of each video that is begun."""
    original = fill._fill_video

    def fill_video(video, *arguments):
        function(video.number)
        original(video, *arguments)

    patch(fill, "_fill_video", fill_video)


def main(what, path, count, number="0"):
    settings = experiment.load(pathlib.Path(path))
    if what != "run":
        fill.START = "fork"
    if what == "kill":
        kill(settings, int(count), int(number))
        return
    if what == "die":

        def die(video):
            if video == int(number):
                os.kill(os.getpid(), signal.SIGKILL)

        before_each(setattr, die)
    extract.extract(settings, extract.SPLITS, workers=int(count))


# Also in a worker, which imports the program's main module anew.
if __name__ in ("__main__", "__mp_main__"):
    extractor_lib.Extractor = fake_front_end.Pixels
if __name__ == "__main__":
    main(*sys.argv[1:])
