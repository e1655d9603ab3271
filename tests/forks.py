"""Programs in forks, because importing TensorFlow each time takes minutes."""

import os
import random
import time
import traceback


def start(function):
    """A fork that calls a function, whose result is the exit code."""
    pid = os.fork()
    if not pid:
        code = 1
        try:
            code = function()
        except BaseException:
            traceback.print_exc()
        os._exit(code or 0)
    return pid


def wait(pid, seconds):
    """The exit code, or None if it still runs after so long."""
    end = time.monotonic() + seconds
    while True:
        done, code = os.waitpid(pid, os.WNOHANG)
        if done:
            return os.waitstatus_to_exitcode(code)
        if time.monotonic() > end:
            return None
        time.sleep(0.005)


def kill_often(function, kill, look, kills):
    """Kills a program at random moments; how often it was done all the same.

    Args:
        function: What is started in a fork, again until it is done.
        kill: Kills it by its number and a random generator; its exit code.
        look: What there is when it is done, a dictionary; removes it.
        kills: How often to kill it.
    """
    rng = random.Random(kills)
    begin = time.monotonic()
    assert wait(start(function), 600) == 0
    longest = 1.1 * (time.monotonic() - begin)
    want = look()
    rounds = used = 0
    while used < kills:
        before, code = used, None
        while code != 0:
            pid = start(function)
            code = wait(pid, rng.uniform(0, longest) if used < kills else 600)
            if code is None:
                code, used = kill(pid, rng), used + 1
            else:
                assert code == 0
        found = look()
        for what in want.keys() | found.keys():
            assert found.get(what) == want.get(what), f"{what} differs"
        rounds += 1
        if used == before:
            # The machine had more to do when the whole one was timed.
            longest *= 0.7
    return rounds
