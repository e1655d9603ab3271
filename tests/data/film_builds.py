"""Builds of CrowdSAL that are killed, and go on: each ends in the same bytes.

python -m tests.data.film_builds FOLDER KILLS
"""

import contextlib
import multiprocessing
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


def build(manual, data_dir):
    os.setsid()
    clip_folders.build(crowdsal_dataset_builder.Builder, manual, data_dir)


def finished(seconds, *arguments):
    """Whether a build ends by itself in so many seconds; otherwise a kill."""
    # A fork, because importing TFDS takes seconds.
    fork = multiprocessing.get_context("fork")
    process = fork.Process(target=build, args=arguments)
    process.start()
    process.join(seconds)
    if process.exitcode is None:
        process.kill()
        with contextlib.suppress(ProcessLookupError):  # Before it has a group.
            os.killpg(process.pid, signal.SIGKILL)
        process.join()
        return False
    assert not process.exitcode
    return True


def contents(folder):
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {path.relative_to(folder): path.read_bytes() for path in files}


def main(folder, kills):
    film_dataset.PROCESSES, film_dataset.START = 2, "fork"
    root, rng = pathlib.Path(folder), random.Random(0)
    manual = msu_folders.crowdsal(
        root / "manual",
        {n: msu_folders.clip(*about) for n, about in CLIPS.items()},
    )
    begin = time.monotonic()
    assert finished(300, manual, root / "whole")
    longest = time.monotonic() - begin
    want = contents(root / "whole" / "crowdsal" / "1.0.0")
    done, kept, builds = 0, 0, 0
    while done < int(kills):
        builds += 1
        target = root / f"killed-{builds}"
        while not finished(
            rng.uniform(0, longest) if done < int(kills) else 300,
            *(manual, target),
        ):
            done += 1
            kept += bool(list(target.glob("crowdsal/.1.0.0*/train-*")))
        assert contents(target / "crowdsal" / "1.0.0") == want
        assert [p.name for p in (target / "crowdsal").iterdir()] == ["1.0.0"]
    sys.stdout.write(f"{done} kills in {builds} builds, {kept} kept films\n")


if __name__ == "__main__":
    main(*sys.argv[1:])
