"""A run's checkpoints: whole or absent, the newest readable one counts.

All workers save, because distributed variables may have to be read together;
only the chief's files are kept. All restore the chief's.
"""

from collections.abc import Iterator
from collections.abc import Sequence
import contextlib
import pathlib
import shutil
import tempfile

from absl import logging
import tensorflow as tf

from lsts_tf.media import files


class StoppedError(RuntimeError):
    """A run cannot go on; its last good checkpoint stands."""


class Checkpoints:
    """Saves and restores what a run depends on.

    Which there are is said by the files themselves: TensorFlow's list of them
    is a file that can be damaged, too, and is written anew from what lies
    there.

    Args:
        folder: Where they lie.
        state: What is saved.
        keep: How many are kept, the newest ones.
        writes: Whether this process is the one whose files are kept.

    Raises:
        StoppedError: The list cannot be written.
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
        self._state = state
        self._keep = keep
        self._own: str | None = None
        if writes:
            _remove_unfinished(folder)
            self._manager = self._manager_of(_found(folder))
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
        paths = _found(self.folder)
        damaged: list[pathlib.Path] = []
        while paths and not _restored(self._state, paths[-1]):
            damaged.append(paths.pop())
        if damaged and not paths:
            raise StoppedError(
                f"None of the checkpoints in {self.folder} can be read. "
                "Remove the folder to train from the start."
            )
        if damaged and not self._own:
            # Damaged ones count as the oldest, so they go first.
            self._manager = self._manager_of([*damaged, *paths])

    def save(self, step: int) -> None:
        """Save; the file appears when it is whole.

        Raises:
            StoppedError: It cannot be written.
        """
        with writing(self.folder):
            path = pathlib.Path(self._manager.save(checkpoint_number=step))
            if not self._own:
                # TensorFlow leaves to the system when they reach the disk.
                for file in self.folder.glob(f"{path.name}.*"):
                    files.sync(file)
                files.sync(self.folder / "checkpoint")
                files.sync(self.folder)

    def close(self) -> None:
        """Remove what is not kept."""
        if self._own:
            shutil.rmtree(self._own, ignore_errors=True)

    def _manager_of(
        self, paths: Sequence[pathlib.Path]
    ) -> tf.train.CheckpointManager:
        """TensorFlow's manager of these checkpoints, the oldest first."""
        with writing(self.folder):
            _write_list(self.folder, paths)
        return tf.train.CheckpointManager(
            self._state,
            str(self.folder),
            max_to_keep=self._keep,
            checkpoint_name="step",
        )


def _found(folder: pathlib.Path) -> list[pathlib.Path]:
    """Checkpoints by their files, without suffix, the oldest first."""
    # The index is what is written last.
    paths = [path.with_suffix("") for path in folder.glob("step-*.index")]
    numbers = {
        path: int(path.name.removeprefix("step-"))
        for path in paths
        if path.name.removeprefix("step-").isdecimal()
    }
    return sorted(numbers, key=numbers.__getitem__)


def _restored(state: tf.train.Checkpoint, path: pathlib.Path) -> bool:
    """Restore a checkpoint; False, and a warning, where it is damaged."""
    try:
        status = state.restore(str(path))
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
        return False
    return True


def _write_list(folder: pathlib.Path, paths: Sequence[pathlib.Path]) -> None:
    """TensorFlow's list of checkpoints, the oldest first."""
    listed = folder / "checkpoint"
    if not paths:
        listed.unlink(missing_ok=True)
        return
    lines = [f'model_checkpoint_path: "{paths[-1].name}"']
    lines += [f'all_model_checkpoint_paths: "{p.name}"' for p in paths]
    # Without times a manager takes none of them for its own.
    lines += ["all_model_checkpoint_timestamps: 1.0"] * len(paths)
    lines.append("last_preserved_timestamp: 0.0")
    files.write_text(listed, "\n".join(lines) + "\n")


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
    for path in [*folder.glob("step-*temp*"), *folder.glob(".checkpoint.*")]:
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink()
