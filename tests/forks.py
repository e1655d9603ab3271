"""Programs in forks, because importing TensorFlow each time takes minutes."""

import os
import time
import traceback


def start(function, log=None):
    """A fork that calls a function, whose result is the exit code."""
    pid = os.fork()
    if not pid:
        code = 1
        try:
            if log:
                with log.open("a") as file:
                    os.dup2(file.fileno(), 1)
                    os.dup2(file.fileno(), 2)
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
