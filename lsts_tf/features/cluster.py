"""Extraction by Apache Beam: many machines, one store that all of them see.

The work of a video is the same function that one process runs
(`extractor.outcomes`), and stores are written whole or not at all, so Beam may
repeat, move and kill its workers as it likes: what is stored is not computed
again. Needs `apache-beam`, which the lock file has.
"""

from collections.abc import Iterator
from collections.abc import Mapping
from collections.abc import Sequence
import contextlib
import json
import pathlib
import secrets
import threading

from absl import logging
import apache_beam as beam
from apache_beam.options import pipeline_options

from lsts_tf.features import extractor as extractor_lib
from lsts_tf.features import stores
from lsts_tf.features import workers

# Videos that are one element of a pipeline. Each element reads the dataset
# once, from the start to its last video, which takes less time than I3D does
# for one video.
SHARE = 8
# Seconds between two looks at the stores.
LOOK = 5.0


class Extract(beam.DoFn):
    """From lists of video numbers to the outcome of each video, as JSON.

    Args:
        work: What to do.
    """

    def __init__(self, work: workers.Work) -> None:
        self._work = work
        self._worker: workers.Worker | None = None

    def setup(self) -> None:
        """Load the model, once for each of Beam's workers."""
        self._worker = self._work.open()

    def process(self, element: Sequence[int]) -> Iterator[str]:
        """Extract the videos of an element, those that are not stored yet."""
        if self._worker is None:
            raise RuntimeError("Beam calls setup() first.")
        yield from map(json.dumps, self._worker.outcomes(element))


def fill(
    work: workers.Work,
    frames: Mapping[int, int],
    *,
    arguments: Sequence[str],
    kept: extractor_lib.Stores,
    purpose: str,
) -> None:
    """Compute what the stores lack of some videos, by Beam.

    Outcomes come when the pipeline ends; until then the progress bar shows
    what `Watch` sees in the stores. A video that fails counts at the end.

    Args:
        work: What to do; its folders are those that Beam's workers see.
        frames: Frames of each video that is missing.
        arguments: Beam's options, such as "--runner=FlinkRunner".
        kept: The stores that the work fills.
        purpose: What they are for, on the progress bar.

    Raises:
        extractor.ExtractionError: Naming the videos that failed.
        RuntimeError: The pipeline itself failed; run the same command again.
    """
    numbers = list(frames)
    elements = workers.shares(numbers, -(-len(numbers) // SHARE))
    # In a folder that Beam's workers see, too.
    scratch = kept.truth.root.parent
    report = scratch / f".outcomes-{secrets.token_hex(4)}"
    logging.info(
        "Extracting %d videos, %d frames, for %s by Beam.",
        len(numbers),
        sum(frames.values()),
        purpose,
    )
    try:
        with extractor_lib.Progress(frames, purpose=purpose) as progress:
            with _watching(Watch(frames, kept), progress):
                _run(Extract(work), elements, report, arguments)
            for line in report.read_text().splitlines():
                progress.finish(extractor_lib.Outcome(*json.loads(line)))
    finally:
        report.unlink(missing_ok=True)
    progress.check()


class Watch:
    """What others have stored of some videos, by looking at the disk.

    Beam's workers may be on other machines and tell this process nothing,
    but they write to stores that it sees.

    Args:
        frames: Frames of each video that is missing.
        kept: The stores that lack them.
    """

    def __init__(
        self, frames: Mapping[int, int], kept: extractor_lib.Stores
    ) -> None:
        every = (kept.truth, kept.flow, *kept.features.values())
        self._all = [store for store in every if store is not None]
        # By video: its files that are missing, and how large they will be.
        self._wanted: dict[int, list[tuple[stores.Store, int]]] = {
            number: extractor_lib.missing_files(number, count, kept)
            for number, count in frames.items()
        }
        self._parts = dict.fromkeys(frames, 0.0)

    def look(self, progress: extractor_lib.Progress) -> None:
        """Tell what has been done since the last look.

        Raises:
            OSError: A store cannot be listed.
        """
        # In this order: what is committed in between must not seem lost.
        begun = {s.root: s.begun() for s in self._all}
        there = {s.root: set(s.videos()) for s in self._all}
        for number in list(self._parts):
            if all(number in found for found in there.values()):
                del self._parts[number]
                progress.finish(extractor_lib.Outcome(number))
                continue
            files = self._wanted[number]
            done = sum(
                1.0
                if number in there[store.root]
                else min(begun[store.root].get(number, 0) / max(size, 1), 1.0)
                for store, size in files
            )
            part = done / max(len(files), 1)
            # Less than before where a worker died and left its video.
            if part != self._parts[number]:
                progress.advance(number, part - self._parts[number])
                self._parts[number] = part


@contextlib.contextmanager
def _watching(watch: Watch, progress: extractor_lib.Progress) -> Iterator[None]:
    """Look again and again while what stands inside runs."""
    ended = threading.Event()

    def run() -> None:
        while not ended.wait(LOOK):
            # A file system that fails for a moment is no reason to stop.
            with contextlib.suppress(OSError):
                watch.look(progress)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()


def _run(
    extract: Extract,
    elements: Sequence[Sequence[int]],
    report: pathlib.Path,
    arguments: Sequence[str],
) -> None:
    options = pipeline_options.PipelineOptions(list(arguments))
    try:
        with beam.Pipeline(options=options) as pipeline:
            _ = (
                pipeline
                | "Shares" >> beam.Create(elements, reshuffle=False)
                | "Spread" >> beam.Reshuffle()
                | "Extract" >> beam.ParDo(extract)
                | "Report"
                >> beam.io.WriteToText(str(report), shard_name_template="")
            )
    except Exception as error:  # each runner has its own
        raise RuntimeError(
            f"The pipeline failed: {error}. What is stored is kept; run the "
            "same command again."
        ) from error
