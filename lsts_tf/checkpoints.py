"""A run's checkpoints: whole or absent, the newest readable one counts.

All workers save, because distributed variables may have to be read together;
only the chief's files are kept. All restore the chief's.
"""

from collections.abc import Iterator
import contextlib
import pathlib
import shutil
import tempfile

from absl import logging
import tensorflow as tf


class StoppedError(RuntimeError):
    """A run cannot go on; its last good checkpoint stands."""


class Checkpoints:
    """Saves and restores what a run depends on.

    Args:
        folder: Where they lie.
        state: What is saved.
        keep: How many are kept, the newest ones.
        writes: Whether this process is the one whose files are kept.
    """

    def __init__(
        self,
        folder: pathlib.Path,
        state: tf.train.Checkpoint,
        *,
        keep: int,
        writes: bool = True,
    ) -> None:
        self.folder = folder
        self._own: str | None = None
        self._kept = tf.train.CheckpointManager(
            state, str(folder), max_to_keep=keep, checkpoint_name="step"
        )
        self._manager = self._kept
        if writes:
            _remove_unfinished(folder)
        else:
            self._own = tempfile.mkdtemp(prefix="checkpoints-")
            self._manager = tf.train.CheckpointManager(
                state, self._own, max_to_keep=1, checkpoint_name="step"
            )

    def restore(self) -> None:
        """Restore the newest checkpoint that can be read, if there is one.

        Raises:
            StoppedError: There are some, and none can be read.
        """
        restore(self._kept)

    def save(self, step: int) -> None:
        """Save; the file appears when it is whole.

        Raises:
            StoppedError: It cannot be written.
        """
        with writing(self.folder):
            self._manager.save(checkpoint_number=step)

    def close(self) -> None:
        """Remove what is not kept."""
        if self._own:
            shutil.rmtree(self._own, ignore_errors=True)


def restore(manager: tf.train.CheckpointManager) -> None:
    """Restore the newest checkpoint that can be read, if there is one."""
    for path in reversed(manager.checkpoints):
        try:
            status = manager.checkpoint.restore(path)
            status.assert_existing_objects_matched()
        except (
            tf.errors.OpError,
            IndexError,  # TensorFlow's, for a file that is too short.
            ValueError,
            AssertionError,
        ) as error:
            logging.warning(
                "Checkpoint %s is damaged (%s); trying the one before it.",
                path,
                str(error).splitlines()[0],
            )
        else:
            return
    if manager.checkpoints:
        raise StoppedError(
            f"None of the checkpoints in {manager.directory} can be read. "
            "Remove the folder to train from the start."
        )


@contextlib.contextmanager
def writing(folder: pathlib.Path) -> Iterator[None]:
    """Turns a failed write into a clear end.

    Raises:
        StoppedError: What stands inside could not write.
    """
    try:
        yield
    except (OSError, tf.errors.OpError) as error:
        raise StoppedError(
            f"Cannot write to {folder}: {str(error).splitlines()[0]} "
            "What was saved before stands. Make room on the disk, and the "
            "same command goes on."
        ) from error


def _remove_unfinished(folder: pathlib.Path) -> None:
    """Remove what a killed process left half written."""
    for path in folder.glob("step-*temp*"):
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink()
