"""Extraction by Apache Beam: many machines, one store that all of them see.

The work of a video is the same function that one process runs
(`extractor.outcomes`), and stores are written whole or not at all, so Beam may
repeat, move and kill its workers as it likes: what is stored is not computed
again. Needs `apache-beam`, which the lock file has.
"""

from collections.abc import Iterator
from collections.abc import Mapping
from collections.abc import Sequence
import json
import pathlib
import secrets

from absl import logging
import apache_beam as beam
from apache_beam.options import pipeline_options

from lsts_tf import extractor as extractor_lib
from lsts_tf import workers

# Videos that are one element of a pipeline. Each element reads the dataset
# once, from the start to its last video, which takes less time than I3D does
# for one video.
SHARE = 8


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
    scratch: pathlib.Path,
    purpose: str,
) -> None:
    """Compute what the stores lack of some videos, by Beam.

    Args:
        work: What to do; its folders are those that Beam's workers see.
        frames: Frames of each video that is missing.
        arguments: Beam's options, such as "--runner=FlinkRunner".
        scratch: A folder that this process and Beam's workers see.
        purpose: What they are for, in messages.

    Raises:
        extractor.ExtractionError: Naming the videos that failed.
        RuntimeError: The pipeline itself failed; run the same command again.
    """
    numbers = list(frames)
    elements = workers.shares(numbers, -(-len(numbers) // SHARE))
    report = scratch / f".outcomes-{secrets.token_hex(4)}"
    logging.info(
        "Extracting %d videos, %d frames, for %s by Beam.",
        len(numbers),
        sum(frames.values()),
        purpose,
    )
    try:
        _run(Extract(work), elements, report, arguments)
        with extractor_lib.Progress(frames, purpose=purpose) as progress:
            for line in report.read_text().splitlines():
                progress.finish(extractor_lib.Outcome(*json.loads(line)))
    finally:
        report.unlink(missing_ok=True)
    progress.check()


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
