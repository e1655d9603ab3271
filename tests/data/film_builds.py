"""Builds of CrowdSAL that are killed, and go on: each ends in the same bytes.

python -m tests.data.film_builds FOLDER KILLS
"""

import contextlib
import os
import pathlib
import shutil
import signal
import sys

from crowdsal import crowdsal_dataset_builder
import film_dataset
from tests import clip_folders, folders, forks, msu_folders

CLIPS = {n: (n, 12) for n in (1, 2, 3, 4, 3001, 3002)}


def main(folder, kills):
    film_dataset.PROCESSES, film_dataset.START = 2, "fork"
    root = pathlib.Path(folder)
    manual = msu_folders.crowdsal(
        root / "manual",
        {n: msu_folders.clip(*about) for n, about in CLIPS.items()},
    )
    target, kept = root / "tfds" / "crowdsal", []

    def build():
        os.setsid()
        clip_folders.build(
            crowdsal_dataset_builder.Builder, manual, target.parent
        )

    def kill(pid, _):
        os.kill(pid, signal.SIGKILL)
        with contextlib.suppress(ProcessLookupError):  # Before it has a group.
            os.killpg(pid, signal.SIGKILL)
        kept.extend(list(target.glob(".1.0.0*/train-*"))[:1])
        return forks.wait(pid, 60)

    def look():
        assert folders.listed(target) == ["1.0.0"]
        found = folders.contents(target)
        shutil.rmtree(target)
        return found

    rounds = forks.kill_often(build, kill, look, int(kills))
    sys.stdout.write(f"{kills} kills in {rounds} builds, {len(kept)} kept\n")


if __name__ == "__main__":
    main(*sys.argv[1:])
