"""Films that people upload: predicted one at a time, and removed in time.

A *page* is what one person has open, by a name of its own. It has one film, or
the result of one; both are removed when it takes another, and when it is
closed.
"""

import base64
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent import futures
import contextlib
import contextvars
import copy
import functools
import json
import math
import os
import pathlib
import re
import shutil
import tempfile
import threading
import time
from typing import TYPE_CHECKING, Any
import urllib.parse

import cv2
import jinja2
import numpy as np

from lsts_tf.media import files, sources
from lsts_tf.outputs import run

if TYPE_CHECKING:
    import pandas as pd

_PREFIX = "lsts_tf_app_"
# A film with a higher rate may have as many frames as one with this.
_MOST_FPS = 60
# Seconds that files last: of an open page, and others, such as uploads.
_KEPT, _ORPHANED = 24 * 3600, 60
_OUTPUTS = ("overlay", "encoded", "npy", "json", "report")
# With strength 0 `encoded` is the clip itself, in what every browser plays.
_OPTIONS = {"map_size": "model", "strength": 0.0}
_JPEG = [cv2.IMWRITE_JPEG_QUALITY, 80]
_FILMS = {"encoded.mp4": "Clip", "overlay.mp4": "Where people look"}
_DOWNLOADS = {
    "overlay.mp4": "Overlay, MP4",
    "maps.npy": "Maps, NPY",
    "attention.jsonl": "Every frame, JSON lines",
    "summary.json": "Summary, JSON",
    "report.html": "Report, HTML",
}


@contextlib.contextmanager
def folder() -> Iterator[pathlib.Path]:
    """A new folder for the block; what killed programs left is removed."""
    place = pathlib.Path(tempfile.gettempdir())
    for left in place.glob(f"{_PREFIX}*"):
        with contextlib.suppress(OSError, RuntimeError):
            # Of this user alone; a link may lead anywhere.
            if left.lstat().st_uid == os.getuid() and not left.is_symlink():
                with files.alone(left):
                    _delete(left)
    made = pathlib.Path(tempfile.mkdtemp(prefix=_PREFIX))
    with contextlib.ExitStack() as stack:
        stack.callback(_delete, made)
        stack.enter_context(files.alone(made))
        yield made


class Stopped(Exception):  # noqa: N818, not an error
    """Nobody waits for the result any more."""


class Uploads:
    """Predicts films, one at a time, and keeps the files of open pages.

    Args:
        predictor: The model.
        folder: Holds their files, and nothing else that is not hidden.
        seconds: Longest film.
        about: What the model is, for records.
    """

    def __init__(
        self,
        predictor: Any,
        folder: pathlib.Path,
        *,
        seconds: int,
        about: Mapping[str, Any] | None = None,
    ) -> None:
        self.predictor = predictor
        self._about = about
        self._folder = folder
        self._seconds = seconds
        # {page: what tells its prediction to stop, and its folders}.
        self._pages: dict[str, tuple[threading.Event, set[pathlib.Path]]] = {}
        # One thread for all, because each new one keeps memory of its own.
        self._thread = futures.ThreadPoolExecutor(1)

    def take(self, page: str, film: pathlib.Path) -> None:
        """A page has another film now; its earlier files are removed.

        Args:
            page: Its name.
            film: Stands in a folder of its own, which is removed with it.

        Raises:
            ValueError: It stands elsewhere.
        """
        if film.resolve().parents[1] != self._folder.resolve():
            raise ValueError("Not an upload.")
        self.leave(page, (threading.Event(), {film.parent}))

    def predict(
        self, page: str, film: pathlib.Path, tell: Callable[[int, int], None]
    ) -> tuple[pathlib.Path, str]:
        """The folder of a film's result, and what is wrong with the film.

        Args:
            page: It has taken the film.
            film: A file, which is removed.
            tell: Called with the number of maps, and of frames (0: unknown).

        Raises:
            Stopped: The page is closed, or was told to stop.
            ValueError: No film, or it is too long.
        """
        stop, folders = self._pages.get(page, (None, set()))
        if stop is None or film.parent not in folders:
            raise Stopped
        result = pathlib.Path(tempfile.mkdtemp(dir=self._folder))
        folders.add(result)

        def checked(items: Iterable, counts: bool) -> Iterator:
            for number, item in enumerate(items, 1):
                if stop.is_set():
                    raise Stopped
                self._refuse_longer(source, number)
                tell(number * counts, source.num_frames or 0)
                yield item

        watched = copy.copy(self.predictor)
        watched.maps = lambda frames, **how: checked(
            self.predictor.maps(checked(frames, False), **how), True
        )
        try:
            source = sources.File(film)
            source.name = film.name
            self._refuse_longer(source, source.num_frames or 0)
            work = functools.partial(
                run.predict,
                watched,
                source,
                result,
                outputs=_OUTPUTS,
                options=_OPTIONS,
                about=self._about or {},
            )
            # What `tell` knows of its user goes along.
            here = contextvars.copy_context()
            damage = self._thread.submit(here.run, work).result()
        except Exception as error:
            folders.discard(result)
            self._remove(result)
            # Without its files a prediction for a closed page may fail.
            raise (Stopped() if stop.is_set() else error) from error
        finally:
            folders.discard(film.parent)
            self._remove(film.parent)
        return result, damage

    def _refuse_longer(self, source: sources.File, frames: int) -> None:
        if frames > math.ceil(self._seconds * min(source.fps, _MOST_FPS)):
            raise ValueError(
                f"{source.name}: a film has at most {self._seconds} seconds "
                f"and {_MOST_FPS} frames a second. Cut it, or start the page "
                "with another --max_seconds."
            )

    def says(self, error: Exception) -> str:
        """An error without the places of files, which are nobody's business."""
        place = rf"{re.escape(str(self._folder))}\S*/"
        return re.sub(place, "", str(error))

    def stop(self, page: str) -> None:
        """What runs for a page stops."""
        if page in self._pages:
            self._pages[page][0].set()

    def leave(self, page: str, instead: Any = None) -> None:
        """A page is closed, or has something else."""
        stop, folders = self._pages.pop(page, (threading.Event(), set()))
        if instead:
            self._pages[page] = instead
        stop.set()
        self._remove(*folders)

    def close(self) -> None:
        """All pages are closed; waits until the last prediction has stopped."""
        for page in list(self._pages):
            self.leave(page)
        self._thread.shutdown()

    def sweep(self) -> None:
        """Removes old results, and uploads that no page took."""
        for path in self._folder.glob("[!.]*"):
            with contextlib.suppress(OSError):
                age = time.time() - path.stat().st_mtime
                if age > (_KEPT if path in self._held() else _ORPHANED):
                    _delete(path)

    def _held(self) -> set[pathlib.Path]:
        pages = list(self._pages.values())
        return {path for _, folders in pages for path in tuple(folders)}

    def _remove(self, *paths: pathlib.Path) -> None:
        """Removes what no page holds: equal films have one folder."""
        for path in set(paths) - self._held():
            _delete(path)


def _delete(path: pathlib.Path) -> None:
    shutil.rmtree(path, ignore_errors=True)
    with contextlib.suppress(OSError):
        path.unlink(missing_ok=True)


# === What a page shows ===


def shown(result: pathlib.Path, damage: str) -> str:
    """Films and downloads of a folder that `predict` wrote, as HTML."""
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("lsts_tf.outputs"),
        autoescape=True,
        trim_blocks=True,
    )
    record = json.loads((result / "prediction.json").read_text("utf-8"))
    return environment.get_template("app.html").render(
        place=f"gradio_api/file={urllib.parse.quote(str(result))}",
        stem=pathlib.PurePath(record["video"]).stem,
        damage=damage,
        films=_FILMS.items(),
        downloads=[
            (name, label, _size((result / name).stat().st_size))
            for name, label in _DOWNLOADS.items()
        ],
    )


def figures(
    result: pathlib.Path,
) -> tuple["pd.DataFrame", "pd.DataFrame"]:
    """Focus of each frame, and the strongest region at each full second."""
    import pandas as pd  # half a second

    with (result / "attention.jsonl").open(encoding="utf-8") as file:
        lines = pd.DataFrame(map(json.loads, file))
    seconds = lines[lines["hot_spots"] > 0].groupby(lines["time"] // 1)
    rows = []
    for line in seconds.head(1).to_dict("records"):
        strongest = line["regions"][0]
        x, y = strongest["centre"]
        rows.append(
            {
                "Time": f"{line['time']:.2f} s",
                "Centre": f"{x:.0f}, {y:.0f}",
                "Share": f"{100 * strongest['share']:.0f} %",
                "Regions": line["hot_spots"],
            }
        )
    return lines[["time", "focus"]].astype(float), pd.DataFrame(rows)


def left(seconds: float, done: int, total: int) -> str:
    """What a user reads while waiting.

    Args:
        seconds: Since it began.
        done: Maps that there are.
        total: Maps that there will be; 0 if nobody knows.
    """
    if not done:
        return "Reading the film"
    if not total:
        return f"Predicting, {done} frames done"
    remaining = math.ceil(seconds * max(total - done, 0) / done)
    return f"Predicting, about {remaining} s left"


def overlay(picture: np.ndarray, delay: float) -> str:
    """A picture of a camera as HTML; see `live.Shown`."""
    bgr = cv2.cvtColor(picture, cv2.COLOR_RGB2BGR)
    jpeg = cv2.imencode(".jpg", bgr, _JPEG)[1].tobytes()
    return (
        f'<img src="data:image/jpeg;base64,{base64.b64encode(jpeg).decode()}" '
        'alt="Overlay">'
        f"<p>{delay:.1f} s behind the camera</p>"
    )


def _size(count: int) -> str:
    """Bytes as people read them."""
    return f"{count / 1e6:.1f} MB" if count >= 1e5 else f"{count / 1e3:.1f} kB"
