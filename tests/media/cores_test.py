import os
import pathlib
import subprocess
import sys

import pytest

from lsts_tf.media import cores

linux_only = pytest.mark.skipif(
    sys.platform != "linux", reason="Others cannot choose cores."
)


def test_at_least_one():
    assert 1 <= cores.usable() <= os.cpu_count()


@linux_only
def test_what_a_process_may_not_use_does_not_count():
    code = (
        "import os; os.sched_setaffinity(0, [min(os.sched_getaffinity(0))])\n"
        "from lsts_tf.media import cores; print(cores.usable())"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=pathlib.Path(__file__).parents[2],
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.strip() == "1"
