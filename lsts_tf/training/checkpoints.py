"""A run's checkpoints: whole or absent, the newest readable one counts.

Checkpoint N is `step-N.index` beside `step-N.data-…`. All workers save,
because distributed variables may have to be read together; only the chief's
files are kept. All restore the chief's.
"""

from collections.abc import Iterator
import contextlib
import dataclasses
import pathlib
import tempfile

from absl import logging
import tensorflow as tf

from lsts_tf.media import files


class StoppedError(RuntimeError):
    """A run cannot continue; its last good checkpoint stands."""


@dataclasses.dataclass
class Checkpoints:
    """Saves and restores what a run depends on; the newest `keep` are kept.

    `writes` says whether this process is the one whose files are kept.
    """

    folder: pathlib.Path
    state: tf.train.Checkpoint
    keep: int
    writes: bool = True

    def __post_init__(self) -> None:
        self._damaged: list[pathlib.Path] = []

    def restore(self) -> None:
        """Restore the newest checkpoint that can be read, if there is one.

        Raises:
            StoppedError: There are some, and none can be read.
        """
        paths = found(self.folder)
        while paths and not _restored(self.state, paths[-1]):
            self._damaged.append(paths.pop())
        if self._damaged and not paths:
            raise StoppedError(
                f"None of the checkpoints in {self.folder} can be read. "
                "Remove the folder to train from the start."
            )

    def save(self, step: int) -> None:
        """Save; the files appear when they are whole.

        Raises:
            StoppedError: They cannot be written.
        """
        if not self.writes:
            with tempfile.TemporaryDirectory(prefix="checkpoint-") as other:
                self.state.write(f"{other}/step")
            return
        with writing(self.folder):
            path = self.folder / f"step-{step}"
            self.state.write(str(path))
            # TensorFlow leaves it to the system when they reach the disk.
            for file in self.folder.glob(f"{path.name}.*"):
                files.sync(file)
            files.sync(self.folder)
            self._clean(path)

    def _clean(self, newest: pathlib.Path) -> None:
        """Remove all but the newest whole ones, and what a kill left."""
        whole = [p for p in found(self.folder) if p not in self._damaged]
        kept = {path.name for path in [*whole[-self.keep :], newest]}
        for path in self.folder.iterdir():
            is_part = path.suffix == ".index" or ".data-" in path.suffix
            if not (path.stem in kept and is_part):
                files.delete(path)
        self._damaged = []


def found(folder: pathlib.Path) -> list[pathlib.Path]:
    """Checkpoints by their files, without suffix, the oldest first."""
    # The index is what is written last.
    paths = (path.with_suffix("") for path in folder.glob("step-*.index"))
    return sorted(paths, key=lambda path: int(path.name.removeprefix("step-")))


def _restored(state: tf.train.Checkpoint, path: pathlib.Path) -> bool:
    """Restore a checkpoint; False, and a warning, where it is damaged."""
    try:
        status = state.read(str(path))
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


@contextlib.contextmanager
def writing(folder: pathlib.Path) -> Iterator[None]:
    """Turns a failed write into a clear end.

    Raises:
        StoppedError: The block could not write.
    """
    try:
        yield
    except (OSError, tf.errors.OpError) as error:
        raise StoppedError(
            f"Cannot write to {folder}: {str(error).splitlines()[0]} What was "
            "saved before is kept. Make room on the disk and run the same "
            "command again."
        ) from error
