"""A folder of films, one after the other or side by side.

Each film has a folder of its own in the output's, or only its file or folder
there if that bears its name (`msu`, `dhf1k`). What an earlier call has finished
is not predicted again, what another process is at is left to it, and what is
wrong with one film does not stop the others.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent import futures
import contextlib
import dataclasses
import functools
import json
import multiprocessing
import os
import pathlib
import queue
import signal
import time
from typing import TYPE_CHECKING, Any, NamedTuple

from absl import logging
import tqdm

from lsts_tf import program
from lsts_tf.media import files, sources, video
from lsts_tf.outputs import run, sink

if TYPE_CHECKING:
    from lsts_tf import predictor as predictor_lib

# How many films a message names.
_SHOWN = 40
# Seconds in which a process that is to end may clean up.
_PATIENCE = 20.0


class Outcome(NamedTuple):
    """What became of a film.

    Attributes:
        written: Whether its files are there.
        problem: What is wrong with it, or "".
    """

    written: bool
    problem: str


def found(names: Sequence[str]) -> list[pathlib.Path]:
    """Films of the one folder that is named, if it holds no pictures."""
    folder = pathlib.Path(names[0]) if len(names) == 1 else None
    if folder is None or not folder.is_dir():
        return []
    paths = [p for p in folder.iterdir() if not p.name.startswith(".")]
    kinds = {path.suffix.lower() for path in paths}
    if kinds & set(sources.IMAGE_SUFFIXES):
        return []
    films = [path for path in paths if path.suffix.lower() in video.SUFFIXES]
    return sorted(films)


def predict(
    load: Callable[[], "predictor_lib.Predictor"],
    films: Sequence[pathlib.Path],
    output: str | os.PathLike | None,
    *,
    outputs: Sequence[str],
    report: str = "",
    workers: int = 1,
    **settings: Any,
) -> str:
    """Write what is wanted of each film; see `run.predict`.

    Args:
        load: Loads the model; of several workers each calls it.
        films: The films.
        output: Folder to write to.
        outputs: See `run.Pass`.
        report: Must be "".
        workers: Number of processes; 1 works in this one.
        **settings: See `run.Pass`.

    Returns:
        What is wrong with the films, or "".

    Raises:
        ValueError: Nothing can be done for any film.
        OSError: The output cannot be written.
        RuntimeError: A process died before it had loaded the model.
    """
    if output is None or report or run.STDOUT in outputs:
        raise ValueError(
            "A folder of films needs --output; --report and standard output "
            "are for one film."
        )
    wanted = _Wanted(pathlib.Path(output), outputs, settings)
    wanted.refuse_clashes(films)
    outcomes: dict[pathlib.Path, Outcome] = {}
    with contextlib.ExitStack() as stack:
        engine: _Engine
        if workers == 1:
            engine = functools.partial(_here, load())
        else:
            count = min(workers, len(films))
            engine = stack.enter_context(_processes(count, load))
        bar = stack.enter_context(
            tqdm.tqdm(
                total=len(films),
                desc="films",
                unit="film",
                disable=workers == 1,
            )
        )
        # What others are at comes last: when they are done, or were killed.
        for waits in (False, True):
            function = functools.partial(wanted.predict, waits=waits)
            left = [path for path in films if path not in outcomes]
            for path, outcome in engine(function, left):
                if outcome is not None:
                    outcomes[path] = outcome
                    bar.update()
    problems = [p for path in films if (p := outcomes[path].problem)]
    text = "\n".join(problems[:_SHOWN])
    if len(problems) > _SHOWN:
        text += f"\nand {len(problems) - _SHOWN} more"
    if not any(outcome.written for outcome in outcomes.values()):
        raise ValueError(text)
    return text


@dataclasses.dataclass(frozen=True)
class _Wanted:
    """What is to be made of each film.

    Attributes:
        root: The folder of all.
        outputs: See `run.Pass`.
        settings: See `run.Pass`.
    """

    root: pathlib.Path
    outputs: Sequence[str]
    settings: Mapping[str, Any]

    @property
    def names(self) -> list[str]:
        """Names of the outputs, sorted."""
        return sorted({run.ALIASES.get(name, name) for name in self.outputs})

    @property
    def is_named(self) -> bool:
        """Whether the one output bears the film's name."""
        kinds = [sink.KINDS.get(name) for name in self.names]
        return len(kinds) == 1 and "{" in getattr(kinds[0], "file", "")

    def refuse_clashes(self, films: Sequence[pathlib.Path]) -> None:
        """Raises ValueError if two films would be written to one place."""
        stems = [path.stem for path in films]
        if self.is_named:
            stems = [run.numbered(stem) for stem in stems]
        if twice := {stem for stem in stems if stems.count(stem) > 1}:
            raise ValueError(
                f"Films need different names. Received: two named {min(twice)}"
            )

    def predict(
        self,
        predictor: "predictor_lib.Predictor",
        path: pathlib.Path,
        *,
        waits: bool,
    ) -> Outcome | None:
        """What became of a film; None if another process is at it."""
        folder = self.root if self.is_named else self.root / path.stem
        with files.claimed(self.root, path.stem, waits=waits) as is_ours:
            if not is_ours:
                logging.info("Another process works on %s.", path)
                return None
            if _is_done(predictor, path, folder, self.names, self.settings):
                logging.info("%s is done already.", path)
                return Outcome(True, "")
            try:
                damage = run.predict(
                    predictor,
                    sources.File(path),
                    folder,
                    outputs=self.outputs,
                    **self.settings,
                )
            except ValueError as error:
                text = str(error)
                is_told = text.startswith(str(path))
                return Outcome(False, text if is_told else f"{path}: {text}")
            return Outcome(True, damage)


def _is_done(
    predictor: "predictor_lib.Predictor",
    path: pathlib.Path,
    folder: pathlib.Path,
    names: Sequence[str],
    settings: Mapping[str, Any],
) -> bool:
    """Whether an earlier call made the same; a record is written last."""
    hidden = folder / f".{run.numbered(path.stem)}.json"
    for record in (hidden, folder / run.RECORD):
        if record.is_file():
            break
    else:
        return False
    about = json.loads(record.read_text(encoding="utf-8"))
    options = settings["options"]
    wanted = {
        "video": str(path),
        "model": settings["about"],
        "every": settings["every"],
        "first_frames": settings["first_frames"],
        "clip": [settings["start"], settings["end"]],
        "front_end": predictor.extractor.describe(),
        "options": {
            name: options.get(name, value)
            for name, value in about["options"].items()
        },
        "damage": "",
    }
    return (
        path.exists()
        and record.stat().st_mtime > path.stat().st_mtime
        and sorted(about["outputs"]) == list(names)
        and all((folder / file).exists() for file in about["outputs"].values())
        and {key: about.get(key) for key in wanted}
        == json.loads(json.dumps(wanted, default=str))
    )


# === Where it is done ===

_Function = Callable[["predictor_lib.Predictor", pathlib.Path], Outcome | None]
_Each = Iterator[tuple[pathlib.Path, Outcome | None]]
_Engine = Callable[[_Function, Sequence[pathlib.Path]], _Each]


def _here(
    predictor: "predictor_lib.Predictor",
    function: _Function,
    paths: Sequence[pathlib.Path],
) -> _Each:
    for number, path in enumerate(paths, 1):
        logging.info("%s, film %d of %d.", path, number, len(paths))
        yield path, function(predictor, path)


@contextlib.contextmanager
def _processes(
    count: int, load: Callable[[], "predictor_lib.Predictor"]
) -> Iterator[_Engine]:
    """The same in several processes, which end with the block.

    Each is a pool of its own, so that one that dies takes its film along and
    no other; a thread here waits for each.
    """
    workers = [_Worker(place, count, load) for place in range(count)]
    idle: queue.SimpleQueue[_Worker] = queue.SimpleQueue()
    for worker in workers:
        idle.put(worker)
    waiting: list[futures.Future] = []

    def call(
        function: _Function, path: pathlib.Path
    ) -> tuple[pathlib.Path, Outcome | None]:
        worker = idle.get()
        try:
            return path, worker.call(function, path)
        finally:
            idle.put(worker)

    def each(function: _Function, paths: Sequence[pathlib.Path]) -> _Each:
        # The largest first, so that all processes end together.
        sizes = {p: p.stat().st_size if p.exists() else 0 for p in paths}
        ordered = sorted(sizes, key=sizes.__getitem__, reverse=True)
        waiting[:] = [threads.submit(call, function, p) for p in ordered]
        return (done.result() for done in futures.as_completed(waiting))

    with futures.ThreadPoolExecutor(count) as threads:
        try:
            yield each
        except BaseException:
            _end(waiting)
            raise
        finally:
            for worker in workers:
                worker.close()


def _end(waiting: Sequence[futures.Future]) -> None:
    """End all processes; what they were writing is removed."""
    for future in waiting:
        future.cancel()
    begin = time.monotonic()
    while not all(future.done() for future in waiting):
        for process in multiprocessing.active_children():
            if time.monotonic() - begin < _PATIENCE:
                process.terminate()
            else:
                process.kill()
        time.sleep(0.1)


class _Worker:
    """A process with the model; another one takes its place if it dies."""

    def __init__(
        self,
        place: int,
        count: int,
        load: Callable[[], "predictor_lib.Predictor"],
    ) -> None:
        self._about = place, count, load
        self._pool: futures.ProcessPoolExecutor | None = None

    def call(self, function: _Function, path: pathlib.Path) -> Outcome | None:
        if self._pool is None:
            # Fresh: TensorFlow does not survive a fork.
            self._pool = futures.ProcessPoolExecutor(
                1, multiprocessing.get_context("spawn")
            )
            try:
                self._pool.submit(_begin, *self._about).result()
            except futures.BrokenExecutor as error:
                raise RuntimeError(
                    "A process died before it had loaded the model, perhaps "
                    "because memory ran out: try fewer --workers."
                ) from error
        try:
            return self._pool.submit(_call, function, path).result()
        except (futures.BrokenExecutor, program.Terminated):
            self.close()
            return Outcome(
                False,
                f"{path}: the process that predicted it died, as they do for "
                "want of memory (try fewer --workers). Run the same command "
                "again.",
            )

    def close(self) -> None:
        """Ends the process, if there is one."""
        if self._pool is not None:
            self._pool.shutdown()
            self._pool = None


# The model of a worker process.
_loaded: list["predictor_lib.Predictor"] = []


def _begin(
    place: int, count: int, load: Callable[[], "predictor_lib.Predictor"]
) -> None:
    # Ctrl-C comes to all processes; the first one ends the others.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    # TensorFlow takes seconds to import.
    with program.importing_keras():
        from lsts_tf.features import workers

    workers.begin(place, count)
    _loaded.append(load())


def _call(function: _Function, path: pathlib.Path) -> Outcome | None:
    with program.terminable():
        return function(_loaded[-1], path)
