"""A page that shows where people look in a clip: one file, no network.

The overlay video lies in the page, as do pictures and numbers, so the page can
be mailed. A video of more than `LIMIT` bytes is left out; stills of evenly
spread moments then stand in its place, and the page says so. Everything that a
user named is escaped. The page itself is `templates/report.html`.
"""

import base64
from collections.abc import Iterator, Sequence
import contextlib
import functools
import io
import math
import pathlib
from typing import TYPE_CHECKING, Any

import cv2
import jinja2
import numpy as np
import PIL.Image

from lsts_tf.media import draw, writer
from lsts_tf.outputs import attention, pictures, sink

if TYPE_CHECKING:
    import pandas as pd

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


@sink.output("report", "report.html")
class Report(attention.Measuring):
    """The page."""

    alpha: float = pictures.alpha_option()

    def _open(self) -> None:
        self._page = self.text(self.path)
        self._shown = _even(self.size, WIDTH)
        self._stills: list[dict[str, Any]] = []
        self._step = 1
        # Its own block, which ends before the page is written.
        self._filming = self.enter(contextlib.ExitStack())
        path = self.hidden(pathlib.Path("overlay.mp4"))
        film = writer.Writer(path, fps=self.fps, size=self._shown)
        self._film = self._filming.enter_context(film)

    def _write(self, frame: np.ndarray, map_: np.ndarray, time: float) -> None:
        measures = self.measure(map_, time)
        small = cv2.resize(frame, self._shown, interpolation=cv2.INTER_AREA)
        drawn = draw.over(small, map_, alpha=self.alpha)
        drawn = draw.annotate(drawn, self.note)
        self._film.write(drawn, time)
        if self.count % self._step == 0:
            still = {
                "number": self.count,
                "time": time,
                "regions": measures.regions,
                "focus": measures.focus,
                "picture": _data_url("image/jpeg", _jpeg(drawn)),
            }
            self._stills.append(still)
        # Of a clip of any length a few are kept, evenly spread.
        if len(self._stills) > 2 * _STILLS:
            self._stills, self._step = self._stills[::2], 2 * self._step

    def _finish(self) -> None:
        self._filming.close()
        self._page.write(_template().render(self._contents()))

    def _contents(self) -> dict[str, Any]:
        """What the template is filled with."""
        table, shares, _ = self.measure.tables()
        times = table["time"]
        start, end = float(times.min()), float(times.max()) + 1 / self.fps
        # Means of equally many frames, so that few points are left.
        bins = np.arange(len(times)) // -(-len(times) // _POINTS)
        at = times.groupby(bins).first()
        focus = table["focus"].groupby(bins).mean()
        curves = [c.groupby(bins).mean() for _, c in shares.items()]
        across = 1000 * (at - start) / (end - start)
        lines = [("focus", "Focus", "var(--focus)", focus)]
        panels = [_panel("Focus", lines, across)]
        if curves:
            lines = [
                (f"area{i}", str(name), _COLOURS[i % len(_COLOURS)], curves[i])
                for i, name in enumerate(shares)
            ]
            panels.append(_panel("Share of attention", lines, across))
        film = self._film.path
        fits = film.stat().st_size <= LIMIT
        last = len(self._stills) - 1
        places = np.linspace(0, last, min(last + 1, _STILLS))
        stills = [self._stills[round(place)] for place in places]
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
            "film": fits and _data_url("video/mp4", film.read_bytes()),
            "limit": LIMIT,
            "stills": stills,
            "summary": self.measure.summary(),
            "panels": panels,
            "ticks": [
                {"time": time, "left": 100 * (time - start) / (end - start)}
                for time in _ticks(start, end, 8)
            ],
            "colours": _COLOURS,
            "about": list(self._made_with()),
            "data": {
                "start": start,
                "end": end,
                "times": at.round(4).tolist(),
                "focus": attention.plain(focus.tolist()),
                "areas": [attention.plain(c.tolist()) for c in curves],
                "moments": [still["time"] for still in stills],
            },
        }

    def _made_with(self) -> Iterator[tuple[str, str]]:
        """(name, value); names of nested mappings are joined by points."""
        import pandas as pd

        about = pd.json_normalize(dict(self.about))
        for name, (value,) in about.items():
            is_list = isinstance(value, list | tuple)
            text = ", ".join(map(str, value)) if is_list else str(value)
            yield str(name), text


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


def _panel(
    title: str,
    lines: Sequence[tuple[str, str, str, "pd.Series"]],
    across: "pd.Series",
) -> dict[str, Any]:
    """What the template's macro takes for curves over one time axis.

    Of each curve the lines have the element that holds its value of the moment,
    its name, its colour, and its values, NaN where there is none. These stand
    at `across`, 0 to 1000.
    """
    import pandas as pd  # half a second

    known = pd.concat([values for *_, values in lines]).dropna()
    low, high = (known.min(), known.max()) if known.size else (0.0, 1.0)
    room = max((high - low) * 0.08, 0.01)
    low, high = max(0.0, low - room), min(1.0, high + room)

    def height(value: Any) -> Any:
        return 100 * (1 - (value - low) / (high - low))

    is_focus = lines[0][0] == "focus"
    return {
        "title": title,
        "marks": [
            {
                "height": height(value),
                "word": f"{value:.4g}" if is_focus else f"{100 * value:.4g} %",
            }
            for value in _ticks(low, high, 4)
        ],
        "lines": [
            {
                "id": id_,
                "name": name,
                "colour": colour,
                "path": _path(across, height(values)),
                # Colours come again after the last one.
                "dashed": i >= len(_COLOURS),
            }
            for i, (id_, name, colour, values) in enumerate(lines)
        ],
    }


def _path(x: "pd.Series", y: "pd.Series") -> str:
    """An SVG path through the points, interrupted where y is NaN."""
    steps, pen = [], "M"
    for across, down in zip(x, y, strict=True):
        if math.isnan(down):
            pen = "M"
        else:
            steps.append(f"{pen}{across:.1f} {down:.2f}")
            pen = "L"
    return " ".join(steps)


def _even(size: tuple[int, int], most: int) -> tuple[int, int]:
    """A size scaled down to a width, even."""
    scale = min(1.0, most / size[0])
    width, height = (max(2, round(v * scale / 2) * 2) for v in size)
    return width, height


def _jpeg(image: np.ndarray) -> bytes:
    picture = PIL.Image.fromarray(image)
    picture.thumbnail((_STILL_WIDTH, image.shape[0]))
    file = io.BytesIO()
    picture.save(file, "JPEG", quality=80)
    return file.getvalue()


def _data_url(kind: str, data: bytes) -> str:
    return f"data:{kind};base64,{base64.b64encode(data).decode()}"


def _ticks(low: float, high: float, most: int) -> list[float]:
    """At most about `most` round numbers from `low` to `high`."""
    from matplotlib import ticker  # a third of a second

    locator = ticker.MaxNLocator(most, steps=[1, 2, 5, 10])
    found = np.round(locator.tick_values(low, high), 10).tolist()
    return [value for value in found if low - 1e-9 <= value <= high + 1e-9]


def _number(value: float | None, pattern: str = "%.3f") -> str:
    return "\u2013" if value is None else pattern % value


def _clock(seconds: float, digits: int = 0) -> str:
    """1:05, 1:02:03, or with tenths where they say something."""
    if abs(seconds - round(seconds)) >= 1e-6:
        digits = 1
    minutes, rest = divmod(round(seconds, digits), 60)
    hours, minutes = divmod(int(minutes), 60)
    text = f"{rest:0{2 + 2 * digits}.{digits}f}"
    return f"{hours}:{minutes:02d}:{text}" if hours else f"{minutes}:{text}"
