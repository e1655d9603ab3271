"""A page that shows where people look in a clip: one file, no network.

The overlay video lies in the page, as do pictures and numbers, so the page can
be mailed. A video of more than `LIMIT` bytes is left out; stills of evenly
spread moments then stand in its place, and the page says so. Everything that a
user named is escaped. The page itself is `templates/report.html`.
"""

import base64
from collections.abc import Callable
from collections.abc import Iterator
from collections.abc import Mapping
from collections.abc import Sequence
import contextlib
import dataclasses
import functools
import math
import pathlib
from typing import Any

import cv2
import jinja2
import numpy as np

from lsts_tf.media import draw as overlay
from lsts_tf.media import writer
from lsts_tf.outputs import attention
from lsts_tf.outputs import pictures

LIMIT = 48 * 2**20
WIDTH = 640
_POINTS = 1200
_STILLS = 12
_STILL_WIDTH = 480
# Okabe and Ito's colours, which colour-blind people tell apart.
_COLOURS = (
    *("#0072b2", "#d55e00", "#009e73", "#cc79a7"),
    *("#e69f00", "#56b4e9", "#8c6d31", "#7f7f7f"),
)
_NOTHING = "\u2013"


@dataclasses.dataclass(kw_only=True)
class Report(attention.Measuring):
    """The page."""

    alpha: float = pictures.alpha_option()

    def open(self) -> None:
        """See `sink.Sink`."""
        self._page = self.text(self.path)
        self._shown = _even(self.size, WIDTH)
        self._stills = _Thinned(_STILLS)
        # Its own block, which ends before the page is written.
        self._filming = self.enter(contextlib.ExitStack())
        self._film = self._filming.enter_context(
            writer.Writer(
                self.hidden(pathlib.Path("overlay.mp4")),
                fps=self.fps,
                size=self._shown,
            )
        )

    def write(self, frame: np.ndarray, map_: np.ndarray, time: float) -> None:
        """See `sink.Sink`."""
        measures = self._measure(map_, time)
        self._summary.add(measures)
        small = cv2.resize(frame, self._shown, interpolation=cv2.INTER_AREA)
        drawn = pictures.drawn(small, map_, alpha=self.alpha)
        if self.note:
            drawn = overlay.annotate(drawn, self.note)
        self._film.write(drawn, time)
        self._stills.add(
            lambda number: {
                "number": number,
                "time": time,
                "regions": measures.regions,
                "focus": measures.focus,
                "picture": _data_url("image/jpeg", _jpeg(drawn)),
            },
        )
        self.count += 1

    def finish(self) -> None:
        """See `sink.Sink`."""
        self._filming.close()
        self._page.write(_template().render(self._contents()))

    def _contents(self) -> dict[str, Any]:
        """What the template is filled with."""
        times = self._summary.column("time")
        start, end = float(times[0]), float(times[-1]) + 1 / self.fps
        focus = self._summary.column("focus")
        curves = _binned(
            np.column_stack([times, focus, self._summary.shares()])
        )
        at, focus, *shares = curves.T
        panels = [
            _Panel("Focus", ["focus"], ["Focus"], ["var(--focus)"], [focus])
        ]
        names = [area.name for area in self._areas]
        if names:
            ids = [f"area{i}" for i in range(len(names))]
            colours = [_COLOURS[i % len(_COLOURS)] for i in range(len(names))]
            panels.append(
                _Panel("Share of attention", ids, names, colours, shares)
            )
        stills = self._stills.items()
        return {
            "title": self.title or self.path.stem,
            "note": self.note,
            "damage": self.damage,
            "start": start,
            "end": end,
            "frames": self.count,
            "fps": self.fps,
            "size": self.size,
            "shown": self._shown,
            "film": _film_url(self._film.path),
            "limit": LIMIT,
            "stills": stills,
            "summary": self._summary.result(),
            "panels": [panel.contents(at, (start, end)) for panel in panels],
            "ticks": [
                {"time": time, "left": 100 * (time - start) / (end - start)}
                for time in _ticks(start, end, 8)
            ],
            "colours": _COLOURS,
            "about": list(_flat(self.about)),
            "data": {
                "start": start,
                "end": end,
                "times": np.round(at, 4).tolist(),
                "focus": _rounded(focus),
                "areas": [_rounded(values) for values in shares],
                "moments": [still["time"] for still in stills],
            },
        }


@functools.cache
def _template() -> jinja2.Template:
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("lsts_tf.outputs"),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {
        "number": _number,
        "percent": lambda value: _number(value and 100 * value, "%.1f %%"),
        "clock": _clock,
    }
    return environment.get_template("report.html")


class _Thinned:
    """At most 2 * `most` items, evenly spread over all that came."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._step = 1
        self._count = 0
        self._items: list[Any] = []

    def add(self, make: Callable[[int], Any]) -> None:
        """Takes an item; `make` gets its number, if it is kept."""
        number, self._count = self._count, self._count + 1
        if number % self._step == 0 and len(self._items) == 2 * self._most:
            self._items = self._items[::2]
            self._step *= 2
        if number % self._step == 0:
            self._items.append(make(number))

    def items(self) -> list[Any]:
        """At most `most` of them, with the first and the last one."""
        count = len(self._items)
        places = np.linspace(0, count - 1, min(count, self._most))
        return [self._items[round(place)] for place in places]


@dataclasses.dataclass
class _Panel:
    """Curves over one time axis.

    Attributes:
        title: What they show.
        ids: Of the elements that hold a curve's value of the moment.
        names: In the key.
        colours: As CSS writes them.
        curves: float64 [n] each, NaN where there is no value.
    """

    title: str
    ids: Sequence[str]
    names: Sequence[str]
    colours: Sequence[str]
    curves: Sequence[np.ndarray]

    def contents(
        self, times: np.ndarray, span: tuple[float, float]
    ) -> dict[str, Any]:
        """What the template's macro takes."""
        known = np.concatenate(self.curves)
        known = known[~np.isnan(known)]
        low, high = (known.min(), known.max()) if known.size else (0.0, 1.0)
        room = max((high - low) * 0.08, 0.01)
        low, high = max(0.0, low - room), min(1.0, high + room)

        def height(value: Any) -> Any:
            return 100 * (1 - (value - low) / (high - low))

        x = 1000 * (times - span[0]) / (span[1] - span[0])
        each = zip(self.ids, self.names, self.colours, self.curves, strict=True)
        return {
            "title": self.title,
            "marks": [
                {"height": height(value), "word": self._word(value)}
                for value in _ticks(low, high, 4)
            ],
            "lines": [
                {
                    "id": id_,
                    "name": name,
                    "colour": colour,
                    "path": _path(x, height(curve)),
                    # Colours come again after the last one.
                    "dashed": i >= len(_COLOURS),
                }
                for i, (id_, name, colour, curve) in enumerate(each)
            ],
        }

    def _word(self, value: float) -> str:
        is_share = self.ids[0] != "focus"
        return f"{100 * value:.4g} %" if is_share else f"{value:.4g}"


def _path(x: np.ndarray, y: np.ndarray) -> str:
    """An SVG path through the points, interrupted where y is NaN."""
    steps, pen = [], "M"
    for across, down in zip(x, y, strict=True):
        if math.isnan(down):
            pen = "M"
        else:
            steps.append(f"{pen}{across:.1f} {down:.2f}")
            pen = "L"
    return " ".join(steps)


def _binned(rows: np.ndarray) -> np.ndarray:
    """Means of equally many rows in a row, so that few are left.

    Args:
        rows: float64 [n, columns]; the first column are times.

    Returns:
        float64 [at most `_POINTS`, columns]: when each bin begins, and means
        of what is not NaN.
    """
    step = -(-len(rows) // _POINTS)
    starts = np.arange(0, len(rows), step)
    counts = np.add.reduceat(~np.isnan(rows), starts, dtype=np.float64)
    sums = np.add.reduceat(np.nan_to_num(rows), starts)
    means = np.divide(
        sums, counts, out=np.full_like(sums, np.nan), where=counts > 0
    )
    means[:, 0] = rows[starts, 0]
    return means


def _even(size: tuple[int, int], most: int) -> tuple[int, int]:
    """A size scaled down to a width, even."""
    scale = min(1.0, most / size[0])
    width, height = (max(2, round(v * scale / 2) * 2) for v in size)
    return width, height


def _jpeg(image: np.ndarray) -> bytes:
    height, width = image.shape[:2]
    if width > _STILL_WIDTH:
        size = _STILL_WIDTH, max(1, round(height * _STILL_WIDTH / width))
        image = cv2.resize(image, size, interpolation=cv2.INTER_AREA)
    done, data = cv2.imencode(
        ".jpg",
        cv2.cvtColor(image, cv2.COLOR_RGB2BGR),
        [cv2.IMWRITE_JPEG_QUALITY, 80],
    )
    if not done:
        raise OSError("A still of the report cannot be encoded as JPEG.")
    return data.tobytes()


def _data_url(kind: str, data: bytes) -> str:
    return f"data:{kind};base64,{base64.b64encode(data).decode()}"


def _film_url(path: pathlib.Path) -> str:
    """The film as it lies in the page, or "" if it is too large."""
    if path.stat().st_size > LIMIT:
        return ""
    return _data_url(f"video/{path.suffix[1:].lower()}", path.read_bytes())


def _rounded(values: np.ndarray) -> list[float | None]:
    return [None if math.isnan(v) else round(v, 5) for v in values.tolist()]


def _ticks(low: float, high: float, most: int) -> list[float]:
    """At most about `most` round numbers from `low` to `high`."""
    rough = max(high - low, 1e-9) / most
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(
        s * power for s in (1, 2, 5, 10) if s * power >= rough * (1 - 1e-9)
    )
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    return [round(i * step, 10) for i in range(first, last + 1)]


def _flat(
    about: Mapping[str, Any], before: str = ""
) -> Iterator[tuple[str, str]]:
    """(name, value) of nested mappings; names are joined by points."""
    for key, value in about.items():
        name = f"{before}{key}"
        if isinstance(value, Mapping):
            yield from _flat(value, f"{name}.")
        elif isinstance(value, Sequence) and not isinstance(value, str | bytes):
            yield name, ", ".join(map(str, value))
        else:
            yield name, str(value)


def _number(value: float | None, pattern: str = "%.3f") -> str:
    return _NOTHING if value is None else pattern % value


def _clock(seconds: float, digits: int | None = None) -> str:
    """1:05, 1:02:03, or with tenths where they say something."""
    if digits is None:
        digits = 0 if abs(seconds - round(seconds)) < 1e-6 else 1
    whole = round(seconds * 10**digits)
    minutes, rest = divmod(whole, 60 * 10**digits)
    hours, minutes = divmod(minutes, 60)
    text = f"{rest / 10**digits:0{2 + bool(digits) * (digits + 1)}.{digits}f}"
    return f"{hours}:{minutes:02d}:{text}" if hours else f"{minutes}:{text}"
