"""Fills stores with Apache Beam: many machines, one file system.

An element of the pipeline is a list of video numbers; each of Beam's workers
loads the front end, opens the dataset and does them as one process would
(`fill.here`). Beam may repeat, move and kill its workers as it likes: what is
stored is not computed again. Needs `apache-beam`, which the lock file has.
"""

from collections.abc import Callable, Iterator, Sequence
import concurrent.futures
import functools
import json
import pathlib
import secrets

import apache_beam as beam
from apache_beam.options import pipeline_options

from lsts_tf.features import dataset, fill
from lsts_tf.features import front_end as front_end_lib

# Videos that are one element of a pipeline. Each element reads the dataset
# once, from the start to its last video, which takes less time than I3D does
# for one video.
SHARE = 8
# Seconds between two looks at the stores.
LOOK = 5.0


class Fill(beam.DoFn):
    """From lists of video numbers to the outcome of each video, as JSON.

    The dataset that it opens and the stores are in folders that Beam's workers
    see.
    """

    def __init__(
        self,
        open_data: Callable[[], dataset.Dataset],
        load: Callable[[], front_end_lib.FrontEnd],
        kept: fill.Stores,
    ) -> None:
        self._open_data, self._load, self._kept = open_data, load, kept

    def setup(self) -> None:
        """Load the front end, once for each of Beam's workers."""
        self._data = self._open_data()
        self._do = fill.here(self._load())

    def process(self, element: Sequence[int]) -> Iterator[str]:
        """Extract the videos of an element, those that are not stored yet."""
        absent = [number for number in element if number not in self._kept]
        done = self._do(self._data, absent, self._kept)
        yield from map(json.dumps, done)


def run(
    load: Callable[[], front_end_lib.FrontEnd],
    data_dir: str,
    arguments: Sequence[str],
    data: dataset.Dataset,
    numbers: Sequence[int],
    kept: fill.Stores,
) -> Iterator[fill.Outcome]:
    """Hand the videos to Beam; a `fill.Engine` by its last three arguments.

    While the pipeline runs, a video counts as done when all of its files are
    there; what failed is known when it has ended.

    Beam's workers call `load`, and `data_dir` is the TFDS data folder as they
    see it; `arguments` are Beam's options, such as "--runner=FlinkRunner".
    """
    # In a folder that Beam's workers see, too.
    report = kept.truth.root.parent / f".outcomes-{secrets.token_hex(4)}"
    count = -(-len(numbers) // SHARE)
    elements = [list(numbers[k::count]) for k in range(count)]
    left = set(numbers)
    opened = functools.partial(dataset.Dataset, data.name, data_dir)
    do = Fill(opened, load, kept)
    try:
        with concurrent.futures.ThreadPoolExecutor(1) as pool:
            running = pool.submit(_run, do, elements, report, arguments)
            while not concurrent.futures.wait([running], LOOK).done:
                for number in [n for n in left if n in kept]:
                    left.remove(number)
                    yield fill.Outcome(number)
            running.result()
        for line in report.read_text().splitlines():
            outcome = fill.Outcome(*json.loads(line))
            if outcome.video in left:
                yield outcome
    finally:
        report.unlink(missing_ok=True)


def _run(
    extract: Fill,
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
