"""Builds of CrowdSAL that are killed, and go on: each ends in the same bytes.

python -m tests.data.film_builds FOLDER KILLS
"""

import os
import pathlib
import random
import signal
import sys
import time

from crowdsal import crowdsal_dataset_builder
import film_dataset
from tests import clip_folders, msu_folders

CLIPS = {n: (n, 12) for n in (1, 2, 3, 4, 3001, 3002)}


def start(manual, data_dir):
    """A fork in a group of its own, because importing TFDS takes seconds."""
    pid = os.fork()
    if not pid:
        os.setsid()
        code = 1
        try:
            clip_folders.build(
                crowdsal_dataset_builder.Builder, manual, data_dir
            )
            code = 0
        finally:
            os._exit(code)
    return pid


def finished(pid, seconds):
    """Whether it ended by itself after at most so long; otherwise a kill."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        done, code = os.waitpid(pid, os.WNOHANG)
        if done:
            assert not code, code
            return True
        time.sleep(0.005)
    os.killpg(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    return False


def contents(folder):
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def main(folder, kills):
    film_dataset.PROCESSES, film_dataset.START = 2, "fork"
    root, rng = pathlib.Path(folder), random.Random(0)
    manual = msu_folders.crowdsal(
        root / "manual",
        {n: msu_folders.clip(*about) for n, about in CLIPS.items()},
    )
    begin = time.monotonic()
    assert finished(start(manual, root / "whole"), 300)
    longest = time.monotonic() - begin
    want = contents(root / "whole" / "crowdsal" / "1.0.0")
    done, kept, builds = 0, 0, 0
    while done < int(kills):
        builds += 1
        target = root / f"killed-{builds}"
        while not finished(
            start(manual, target),
            rng.uniform(0, longest) if done < int(kills) else 300,
        ):
            done += 1
            kept += bool(list(target.glob("crowdsal/.1.0.0*/train-*")))
        assert contents(target / "crowdsal" / "1.0.0") == want
        assert [p.name for p in (target / "crowdsal").iterdir()] == ["1.0.0"]
    sys.stdout.write(f"{done} kills in {builds} builds, {kept} kept films\n")


if __name__ == "__main__":
    main(*sys.argv[1:])
