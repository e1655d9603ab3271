"""A page that shows where people look in a clip: one file, no network.

The overlay video lies in the page, as do pictures and numbers, so the page can
be mailed. A video of more than `limit` bytes is left out; stills of evenly
spread moments then stand in its place, and the page says so. Everything that a
user named is escaped.

Curves have at most `_BINS` points, and stills are thinned as the clip goes on,
so memory does not grow with the length (only the gaze path, and the video on
disk, do).
"""

import base64
from collections.abc import Callable
from collections.abc import Iterable
from collections.abc import Mapping
from collections.abc import Sequence
import contextlib
import html
import math
import os
import pathlib
import tempfile
from typing import Any
from typing import NamedTuple

import cv2
import numpy as np

from lsts_tf.media import draw as overlay
from lsts_tf.media import sink
from lsts_tf.media import writer
from lsts_tf.outputs import attention

LIMIT = 48 * 2**20
WIDTH = 640
_BINS = 600
_STILLS = 12
_STILL_WIDTH = 480
_REGIONS = 3
# Okabe and Ito's colours, which colour-blind people tell apart.
_COLOURS = (
    *("#0072b2", "#d55e00", "#009e73", "#cc79a7"),
    *("#e69f00", "#56b4e9", "#8c6d31", "#7f7f7f"),
)


class _Still(NamedTuple):
    """A moment that the page shows."""

    number: int
    measures: attention.Measures
    jpeg: bytes


class _Thinned:
    """At most 2 * `most` items, evenly spread over all that came."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._step = 1
        self._items: list[Any] = []

    def add(self, number: int, make: Callable[[], Any]) -> None:
        """Takes an item; `make` is called only if it is kept."""
        if number % self._step:
            return
        if len(self._items) == 2 * self._most:
            self._items = self._items[::2]
            self._step *= 2
            if number % self._step:
                return
        self._items.append(make())

    def items(self) -> list[Any]:
        """At most `most` of them, with the first and the last one."""
        count = len(self._items)
        if count <= self._most:
            return list(self._items)
        places = np.linspace(0, count - 1, self._most)
        return [self._items[round(place)] for place in places]


class _Curves:
    """Means over bins of equal length; bins are paired as they get many."""

    def __init__(self, names: Iterable[str]) -> None:
        self._names = tuple(names)
        self._step = 1
        self._bins: list[_Bin] = []

    def add(self, time: float, values: Mapping[str, float | None]) -> None:
        """Takes the values of the next frame."""
        if not self._bins or self._bins[-1].frames == self._step:
            if len(self._bins) == 2 * _BINS:
                pairs = zip(self._bins[::2], self._bins[1::2], strict=True)
                self._bins = [one.joined(other) for one, other in pairs]
                self._step *= 2
            self._bins.append(_Bin(self._names, time))
        self._bins[-1].add(values)

    def times(self) -> list[float]:
        """When each bin begins."""
        return [bin_.time for bin_ in self._bins]

    def values(self, name: str) -> list[float | None]:
        """Means of one of the values."""
        return [bin_.mean(name) for bin_ in self._bins]


class _Bin:
    """Sums of a bin, and of how many numbers."""

    def __init__(self, names: Sequence[str], time: float) -> None:
        self.time = time
        self.frames = 0
        self._sums = dict.fromkeys(names, (0.0, 0))

    def add(self, values: Mapping[str, float | None]) -> None:
        self.frames += 1
        for name, value in values.items():
            if value is not None:
                total, count = self._sums[name]
                self._sums[name] = (total + value, count + 1)

    def joined(self, other: "_Bin") -> "_Bin":
        both = _Bin((), self.time)
        both.frames = self.frames + other.frames
        both._sums = {
            name: (total + other._sums[name][0], count + other._sums[name][1])
            for name, (total, count) in self._sums.items()
        }
        return both

    def mean(self, name: str) -> float | None:
        total, count = self._sums[name]
        return total / count if count else None


class Report(sink.Sink):
    """The page.

    Args:
        path: The page, such as report.html.
        fps: Frames a second.
        size: (width, height) of the frames.
        note: What has to be said of the weights, or "".
        title: What the clip is called.
        about: What it was made with, in the order in which it is shown; may
            be nested.
        areas: Areas of interest, or a file of them, or "".
        alpha: Strength of the overlay, 0 to 1.
        limit: Largest video, in bytes, that is put into the page; 0 for none.

    Attributes:
        damage: What is wrong with the clip, or "". Set before the block ends:
            it is known when all frames have come.
    """

    def __init__(
        self,
        *,
        path: str | os.PathLike,
        fps: float,
        size: tuple[int, int],
        note: str = "",
        title: str = "",
        about: Mapping[str, Any] | None = None,
        areas: Sequence[attention.Area] | str | os.PathLike = (),
        alpha: float = 0.75,
        limit: int = LIMIT,
    ) -> None:
        super().__init__(path=path, fps=fps, size=size, note=note)
        self._title = title or self.path.stem
        self._about = about or {}
        self._areas = areas = tuple(attention.as_areas(areas, size))
        self._alpha = overlay.checked_alpha(alpha)
        self._limit = limit
        self.damage = ""
        self._measure = attention.Measurer(size=size, areas=areas)
        self._summary = attention.Summary(fps=fps, size=size, areas=areas)
        self._curves = _Curves(["focus", *(_key(a) for a in areas)])
        self._stills = _Thinned(_STILLS)
        self._shown = _even(size, WIDTH)
        self._start = self._end = 0.0

    def open(self) -> None:
        """See `sink.Sink`."""
        self._page = self.text(self.path)
        self._writer = None
        if self._limit:
            folder = self.enter(
                tempfile.TemporaryDirectory(dir=self.path.parent, prefix=".")
            )
            # Its own stack, to be closed before the page is written.
            self._closing = self.enter(contextlib.ExitStack())
            self._writer = self._closing.enter_context(
                writer.Writer(
                    pathlib.Path(folder) / "overlay.mp4",
                    fps=self.fps,
                    size=self._shown,
                )
            )

    def write(self, frame: np.ndarray, map_: np.ndarray, time: float) -> None:
        """See `sink.Sink`."""
        measures = self._measure(map_, time)
        self._summary.add(measures)
        values = {"focus": measures.focus}
        for area in self._areas:
            values[_key(area)] = measures.areas[area.name][0]
        self._curves.add(time, values)
        if not self.count:
            self._start = time
        self._end = time + 1 / self.fps
        drawn = self._drawn(frame, map_)
        if self._writer:
            self._writer.write(drawn, time)
        self._stills.add(
            self.count, lambda: _Still(self.count, measures, _jpeg(drawn))
        )
        self.count += 1

    def finish(self) -> None:
        """See `sink.Sink`."""
        movie = None
        if self._writer:
            self._closing.close()
            path = self._writer.path
            if path.stat().st_size <= self._limit:
                kind = path.suffix[1:].lower()
                movie = _data_url(f"video/{kind}", path.read_bytes())
        self._page.write(self._html(movie))

    def _drawn(self, frame: np.ndarray, map_: np.ndarray) -> np.ndarray:
        small = cv2.resize(frame, self._shown, interpolation=cv2.INTER_AREA)
        # Of the frame's own range: what stands out here, not how much.
        low, high = float(map_.min()), float(map_.max())
        visible = (map_ - low) / max(high - low, 1e-6)
        drawn = overlay.blend(small, visible, alpha=self._alpha)
        return overlay.annotate(drawn, self.note) if self.note else drawn

    def _html(self, movie: str | None) -> str:
        summary = self._summary.result()
        stills = self._stills.items()
        data = {
            "start": self._start,
            "end": self._end,
            "times": [round(t, 4) for t in self._curves.times()],
            "focus": _rounded(self._curves.values("focus")),
            "areas": [
                _rounded(self._curves.values(_key(a))) for a in self._areas
            ],
            "moments": [still.measures.time for still in stills],
        }
        title = html.escape(self._title)
        parts = [
            '<!doctype html><html lang="en"><head><meta charset="utf-8">',
            '<meta name="viewport" content="width=device-width">',
            f"<title>{title}</title><style>{_STYLE}</style></head><body>",
            f"<header><h1>{title}</h1><p>{self._facts()}</p></header>",
        ]
        damage = self.damage and (
            f"The clip is cut off or damaged: {self.damage} This page shows "
            "what could be decoded."
        )
        parts += [
            f'<p class="note" role="note">{html.escape(text)}</p>'
            for text in (self.note, damage)
            if text
        ]
        parts += [
            f'<main><section class="top">{self._player(movie, stills)}'
            f"{self._numbers(summary)}</section>",
            self._timeline(data),
            _filmstrip(stills),
            _hot_spots(stills),
            self._area_table(summary),
            _made_with(self._about),
            f"<footer><p>{_WORDS}</p></footer></main>",
            # "</" would end the script; JSON may write it so.
            '<script type="application/json" id="data">'
            + sink.to_json(data).replace("<", "\\u003c")
            + f"</script><script>{_SCRIPT}</script></body></html>\n",
        ]
        return "\n".join(parts)

    def _facts(self) -> str:
        width, height = self.size
        seconds = self._end - self._start
        return (
            f"{_clock(seconds)} · {self.count} frames · {self.fps:.4g} frames "
            f"a second · {width} x {height} pixels"
        )

    def _player(self, movie: str | None, stills: Sequence[_Still]) -> str:
        width, height = self._shown
        first = _data_url("image/jpeg", stills[0].jpeg) if stills else ""
        if movie:
            inside = (
                f'<video id="picture" controls muted playsinline loop '
                f'width="{width}" height="{height}" poster="{first}" '
                f'src="{movie}"></video>'
            )
            words = "Overlay. Colours show each frame\u2019s own range."
        else:
            inside = (
                f'<img id="picture" alt="overlay" width="{width}" '
                f'height="{height}" src="{first}">'
            )
            words = (
                "Stills of the overlay. The video is larger than "
                f"{self._limit / 2**20:.3g} MiB and is not in this page."
                if self._limit
                else "Stills of the overlay."
            )
        return f"<figure>{inside}<figcaption>{words}</figcaption></figure>"

    def _numbers(self, summary: Mapping[str, Any]) -> str:
        mean, first, last = (
            summary[part]
            for part in ("mean", "first_2_seconds", "last_2_seconds")
        )
        cards = [
            ("Focus", _number(mean["focus"])),
            ("Focus, first 2 s", _number(first["focus"])),
            ("Focus, last 2 s", _number(last["focus"])),
            ("Focus consistency", _number(summary["focus_consistency"])),
            ("Hot spots", _number(mean["hot_spots"], 1)),
            ("Large jumps", str(summary["large_jumps"])),
            ("Dispersion", _number(mean["dispersion"])),
            ("Stops of the gaze", str(len(summary["gaze_path"]))),
        ]
        inside = "".join(
            f"<div><dt>{name}</dt><dd>{value}</dd></div>"
            for name, value in cards
        )
        return f'<dl class="numbers">{inside}</dl>'

    def _timeline(self, data: Mapping[str, Any]) -> str:
        span = (self._start, self._end)
        panels = [
            _panel(
                "Focus",
                data["times"],
                [("focus", "Focus", "var(--focus)", data["focus"])],
                span,
                lambda value: f"{value:.4g}",
            )
        ]
        if self._areas:
            lines = [
                (f"area{i}", area.name, _COLOURS[i % len(_COLOURS)], values)
                for i, (area, values) in enumerate(
                    zip(self._areas, data["areas"], strict=True)
                )
            ]
            panels.append(
                _panel(
                    "Share of attention",
                    data["times"],
                    lines,
                    span,
                    lambda value: f"{100 * value:.4g} %",
                )
            )
        ticks = "".join(
            f'<span style="left:{100 * (at - span[0]) / _length(span):.3f}%">'
            f"{_clock(at)}</span>"
            for at in _ticks(*span, 8)
            if span[0] <= at <= span[1]
        )
        return (
            '<section><h2>Timeline</h2><p class="hint">Click or drag to go '
            "to a moment. Keys: \u2190 \u2192 one second, with Shift a tenth; "
            "Home, End; space plays.</p>"
            '<div id="timeline" tabindex="0" role="slider" '
            f'aria-label="Time" aria-valuemin="{span[0]:.3f}" '
            f'aria-valuemax="{span[1]:.3f}" aria-valuenow="{span[0]:.3f}">'
            + "".join(panels)
            + f'<div class="ticks">{ticks}</div></div>'
            '<p class="now">At <output id="now">0:00.0</output></p></section>'
        )

    def _area_table(self, summary: Mapping[str, Any]) -> str:
        if not self._areas:
            return ""
        rows = []
        for i, area in enumerate(self._areas):
            found = summary["areas"][area.name]
            colour = _COLOURS[i % len(_COLOURS)]
            rows.append(
                [
                    f'<i style="background:{colour}"></i>'
                    + html.escape(area.name),
                    _percent(found["mean_share"]),
                    _percent(found["share_of_frame"]),
                    _percent(summary["first_2_seconds"]["areas"][area.name]),
                    _percent(summary["last_2_seconds"]["areas"][area.name]),
                    _percent(found["strongest_inside"]),
                ]
            )
        heads = [
            *("Area", "Attention", "Of the frame", "First 2 s", "Last 2 s"),
            "Holds the strongest point",
        ]
        return f"<section><h2>Areas</h2>{_table(heads, rows)}</section>"


def _key(area: attention.Area) -> str:
    """Name of an area's curve, which no other curve has."""
    return f"area {area.name}"


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


def _rounded(values: Iterable[float | None]) -> list[float | None]:
    return [None if v is None else round(v, 5) for v in values]


def _length(span: tuple[float, float]) -> float:
    return max(span[1] - span[0], 1e-6)


def _ticks(low: float, high: float, most: int) -> list[float]:
    """At most about `most` round numbers from `low` to `high`."""
    rough = max(high - low, 1e-9) / most
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(
        s * power for s in (1, 2, 5, 10) if s * power >= rough * (1 - 1e-9)
    )
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    return [round(i * step, 10) for i in range(first, last + 1)]


def _panel(
    title: str,
    times: Sequence[float],
    lines: Sequence[tuple[str, str, str, Sequence[float | None]]],
    span: tuple[float, float],
    word: Callable[[float], str],
) -> str:
    """Curves over one time axis: (id, name, colour, values) each.

    `word` writes a value at the axis.
    """
    known = [v for *_, values in lines for v in values if v is not None]
    low, high = min(known, default=0.0), max(known, default=1.0)
    room = max((high - low) * 0.08, 0.01)
    low, high = max(0.0, low - room), min(1.0, high + room)

    def height(value: float) -> float:
        return 100 * (1 - (value - low) / (high - low))

    marks = _ticks(low, high, 4)
    labels = "".join(
        f'<span style="top:{height(v):.2f}%">{word(v)}</span>' for v in marks
    )
    grid = "".join(
        f'<line x1="0" x2="1000" y1="{height(v):.2f}" y2="{height(v):.2f}"/>'
        for v in marks
    )
    length = _length(span)
    paths = []
    for i, (_, _, colour, values) in enumerate(lines):
        steps, pen = [], "M"
        for time, value in zip(times, values, strict=True):
            if value is None:
                pen = "M"
                continue
            x = 1000 * (time - span[0]) / length
            steps.append(f"{pen}{x:.1f} {height(value):.2f}")
            pen = "L"
        # Colours come again after the last one; dashes tell those apart.
        dash = ' stroke-dasharray="6 4"' if i >= len(_COLOURS) else ""
        paths.append(f'<path d="{" ".join(steps)}" stroke="{colour}"{dash}/>')
    key = "".join(
        f'<span class="key"><i style="background:{colour}"></i>'
        f'{html.escape(name)} <b id="{id_}">\u2013</b></span>'
        for id_, name, colour, _ in lines
    )
    return (
        f'<div class="panel"><div class="keys">{key}</div>'
        f'<div class="plot"><div class="labels">{labels}</div>'
        f'<svg viewBox="0 0 1000 100" preserveAspectRatio="none" role="img" '
        f'aria-label="{html.escape(title)} over time"><g class="grid">{grid}'
        f"</g>{''.join(paths)}</svg>"
        '<div class="cursor"></div></div></div>'
    )


def _filmstrip(stills: Sequence[_Still]) -> str:
    inside = "".join(
        f'<button data-time="{still.measures.time:.6f}">'
        f'<img alt="frame {still.number}" '
        f'src="{_data_url("image/jpeg", still.jpeg)}">'
        f"<span>{_clock(still.measures.time, 1)}</span></button>"
        for still in stills
    )
    return (
        f'<section><h2>Filmstrip</h2><div class="film">{inside}</div></section>'
    )


def _hot_spots(stills: Sequence[_Still]) -> str:
    rows = []
    for still in stills:
        time = still.measures.time
        spots = [
            f"{region.centre[0]:.0f}, {region.centre[1]:.0f} "
            f"<small>{_percent(region.share)}</small>"
            for region in still.measures.regions[:_REGIONS]
        ]
        rows.append(
            [
                f'<button data-time="{time:.6f}">{_clock(time, 1)}</button>',
                *spots,
                *["\u2013"] * (_REGIONS - len(spots)),
                str(still.measures.hot_spots),
                _number(still.measures.focus),
            ]
        )
    heads = ["Time", "Strongest", "Second", "Third", "Hot spots", "Focus"]
    return (
        '<section><h2>Hot spots</h2><p class="hint">Centre in pixels of the '
        "source, and share of the frame\u2019s attention.</p>"
        f"{_table(heads, rows)}</section>"
    )


def _made_with(about: Mapping[str, Any]) -> str:
    rows = "".join(
        f"<div><dt>{html.escape(name)}</dt><dd>{html.escape(value)}</dd></div>"
        for name, value in _flat(about)
    )
    if not rows:
        return ""
    return f'<section><h2>Made with</h2><dl class="about">{rows}</dl></section>'


def _flat(about: Mapping[str, Any], before: str = "") -> list[tuple[str, str]]:
    """(name, value) of nested mappings; names are joined by points."""
    rows: list[tuple[str, str]] = []
    for key, value in about.items():
        name = f"{before}{key}"
        if isinstance(value, Mapping):
            rows += _flat(value, f"{name}.")
        elif isinstance(value, Sequence) and not isinstance(value, str | bytes):
            rows.append((name, ", ".join(map(str, value))))
        else:
            rows.append((name, str(value)))
    return rows


def _table(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Cells are HTML."""
    head = "".join(f'<th scope="col">{cell}</th>' for cell in heads)
    body = "".join(
        "<tr>" + "".join(f"<td>{cell}</td>" for cell in row) + "</tr>"
        for row in rows
    )
    return (
        f'<div class="wide"><table><thead><tr>{head}</tr></thead>'
        f"<tbody>{body}</tbody></table></div>"
    )


def _number(value: float | None, digits: int = 3) -> str:
    return "\u2013" if value is None else f"{value:.{digits}f}"


def _percent(value: float | None) -> str:
    return "\u2013" if value is None else f"{100 * value:.1f} %"


def _clock(seconds: float, digits: int | None = None) -> str:
    """1:05, 1:02:03, or with tenths where they say something."""
    if digits is None:
        digits = 0 if abs(seconds - round(seconds)) < 1e-6 else 1
    whole = round(seconds * 10**digits)
    minutes, rest = divmod(whole, 60 * 10**digits)
    hours, minutes = divmod(minutes, 60)
    text = f"{rest / 10**digits:0{2 + bool(digits) * (digits + 1)}.{digits}f}"
    return f"{hours}:{minutes:02d}:{text}" if hours else f"{minutes}:{text}"


_WORDS = """
Attention is the map of a frame divided by its sum. A region: connected pixels
above half of the map\u2019s maximum. Focus: 0 where attention is spread evenly,
1 on a single pixel. Focus consistency: 1 less the ratio of its deviation and
its mean. A large jump: the strongest point moves by more than a third of the
diagonal from one frame to the next. The maps are a model\u2019s prediction of
where people look, not a measurement.
"""

_STYLE = """
:root { color-scheme: light dark; --back: #f7f7f5; --card: #fff; --ink: #1d1f23;
  --soft: #5c626b; --line: #d9dadd; --focus: #6a3fb5; --mark: #c22f2f;
  --note: #fff0cc; --note-ink: #5a3d00; --label: 3.6rem; }
@media (prefers-color-scheme: dark) { :root { --back: #15171a; --card: #1e2125;
  --ink: #e8e9eb; --soft: #a3a9b2; --line: #383c43; --focus: #b79bf0;
  --mark: #ff7b72; --note: #4a3a10; --note-ink: #ffe2a0; } }
* { box-sizing: border-box; }
body { margin: 0 auto; padding: 1.5rem clamp(1rem, 3vw, 2.5rem) 3rem;
  max-width: 76rem; background: var(--back); color: var(--ink);
  font: 16px/1.5 system-ui, "DejaVu Sans", sans-serif; }
h1 { margin: 0; font-size: 1.6rem; overflow-wrap: anywhere; }
h2 { margin: 0 0 .5rem; font-size: 1.1rem; }
header p, .hint, figcaption, footer { margin: .2rem 0 .8rem; color: var(--soft);
  font-size: .9rem; }
.note { margin: 0 0 1rem; padding: .7rem 1rem; border-radius: .5rem;
  background: var(--note); color: var(--note-ink); font-weight: 600; }
section { margin: 0 0 1rem; padding: 1rem; border-radius: .6rem;
  border: 1px solid var(--line); background: var(--card); }
.top { display: grid; gap: 1.2rem; grid-template-columns: minmax(0, 2fr)
  minmax(14rem, 1fr); align-items: start; }
figure { margin: 0; }
figcaption { margin: .4rem 0 0; }
#picture { display: block; width: 100%; height: auto; max-height: 70vh;
  object-fit: contain; border-radius: .4rem; background: #000; }
.numbers { display: grid; grid-template-columns: 1fr 1fr; gap: .9rem 1rem;
  margin: 0; }
dt { color: var(--soft); font-size: .85rem; }
dd { margin: 0; }
.numbers dd { font-size: 1.4rem; font-variant-numeric: tabular-nums; }
#timeline { position: relative; cursor: pointer; touch-action: none;
  user-select: none; border-radius: .3rem; }
#timeline:focus-visible { outline: 2px solid var(--focus);
  outline-offset: 4px; }
.panel { margin-bottom: .9rem; }
.keys { display: flex; flex-wrap: wrap; gap: .2rem 1.2rem; font-size: .85rem;
  margin: 0 0 .4rem var(--label); }
.key b { font-variant-numeric: tabular-nums; }
i { display: inline-block; width: .75em; height: .75em; margin-right: .45em;
  border-radius: 2px; }
.plot { position: relative; margin-left: var(--label); }
.labels span { position: absolute; right: 100%; margin-right: .5rem;
  transform: translateY(-50%); white-space: nowrap; font-size: .75rem;
  color: var(--soft); }
svg { display: block; width: 100%; height: 8rem; overflow: visible; }
svg path { fill: none; stroke-width: 2; vector-effect: non-scaling-stroke;
  stroke-linejoin: round; }
.grid line { stroke: var(--line); vector-effect: non-scaling-stroke; }
.ticks { position: relative; height: 1.2rem; margin-left: var(--label);
  font-size: .75rem; color: var(--soft); }
.ticks span { position: absolute; transform: translateX(-50%); }
.cursor { position: absolute; top: 0; bottom: 0; left: 0; width: 2px;
  margin-left: -1px; background: var(--mark); pointer-events: none; }
.now { margin: .3rem 0 0 var(--label); font-variant-numeric: tabular-nums; }
.film { display: grid; gap: .6rem;
  grid-template-columns: repeat(auto-fill, minmax(9rem, 1fr)); }
.film button { padding: 0; border: 2px solid var(--line); overflow: hidden;
  border-radius: .4rem; background: none; color: inherit; font: inherit;
  font-size: .8rem; cursor: pointer; }
.film img { display: block; width: 100%; }
button:focus-visible, button.on { border-color: var(--focus); outline: none; }
td button { padding: 0 .5rem; border: 1px solid var(--line); font: inherit;
  border-radius: .3rem; background: none; color: inherit; cursor: pointer;
  font-variant-numeric: tabular-nums; }
.wide { overflow-x: auto; }
table { border-collapse: collapse; width: 100%; font-size: .9rem; }
th, td { padding: .35rem .8rem; text-align: right; white-space: nowrap;
  border-bottom: 1px solid var(--line); font-variant-numeric: tabular-nums; }
th { color: var(--soft); font-weight: 600; }
th:first-child, td:first-child { text-align: left; padding-left: 0; }
td small { color: var(--soft); margin-left: .4em; }
.about > div { display: grid; grid-template-columns: 14rem 1fr; gap: 1rem;
  padding: .25rem 0; }
.about { margin: 0; font-size: .9rem; }
.about dd { overflow-wrap: anywhere; }
@media (max-width: 48rem) { .top { grid-template-columns: 1fr; }
  .about > div { grid-template-columns: 1fr; gap: 0; } }
"""

_SCRIPT = """
'use strict';
const data = JSON.parse(document.getElementById('data').textContent);
const picture = document.getElementById('picture');
const movie = picture.tagName === 'VIDEO' ? picture : null;
const line = document.getElementById('timeline');
const cursors = document.querySelectorAll('.cursor');
const buttons = [...document.querySelectorAll('button[data-time]')];
const film = [...document.querySelectorAll('.film button')];
const span = Math.max(data.end - data.start, 1e-6);
let now = data.start;

function clock(seconds) {
  const tenths = Math.round(seconds * 10), minutes = Math.floor(tenths / 600);
  const rest = ((tenths - minutes * 600) / 10).toFixed(1).padStart(4, '0');
  return minutes + ':' + rest;
}
function last(times, time) {
  let low = 0, high = times.length;
  while (high - low > 1) {
    const middle = (low + high) >> 1;
    if (times[middle] <= time + 0.01) low = middle; else high = middle;
  }
  return low;
}
function put(id, value, text) {
  document.getElementById(id).textContent =
      value == null ? '\u2013' : text(value);
}
function show(time) {
  now = Math.min(Math.max(time, data.start), data.end);
  for (const cursor of cursors)
    cursor.style.left = 100 * (now - data.start) / span + '%';
  line.setAttribute('aria-valuenow', now.toFixed(3));
  line.setAttribute('aria-valuetext', clock(now));
  document.getElementById('now').textContent = clock(now);
  const i = last(data.times, now);
  put('focus', data.focus[i], value => value.toFixed(3));
  data.areas.forEach((values, k) => put('area' + k, values[i],
      value => (100 * value).toFixed(1) + ' %'));
  const moment = last(data.moments, now);
  film.forEach((button, k) => button.classList.toggle('on', k === moment));
  if (!movie && film[moment])
    picture.src = film[moment].querySelector('img').src;
}
function seek(time) {
  show(time);
  if (movie && movie.duration)
    movie.currentTime = Math.min((now - data.start) / span * movie.duration,
        movie.duration - 1e-3);
}
function follow() {
  if (movie.duration && !movie.seeking)
    show(data.start + movie.currentTime / movie.duration * span);
}
function point(event) {
  const box = line.querySelector('svg').getBoundingClientRect();
  seek(data.start + (event.clientX - box.left) / box.width * span);
}
line.addEventListener('pointerdown', event => {
  line.setPointerCapture(event.pointerId);
  point(event);
});
line.addEventListener('pointermove', event => {
  if (event.buttons & 1) point(event);
});
line.addEventListener('keydown', event => {
  const step = event.shiftKey ? 0.1 : 1;
  const to = {ArrowLeft: now - step, ArrowRight: now + step,
      Home: data.start, End: data.end}[event.key];
  if (to !== undefined) seek(to);
  else if (event.key === ' ' && movie)
    movie.paused ? movie.play() : movie.pause();
  else return;
  event.preventDefault();
});
buttons.forEach(button => button.addEventListener('click',
    () => seek(Number(button.dataset.time))));
if (movie) {
  movie.addEventListener('timeupdate', follow);
  movie.addEventListener('play', function frame() {
    follow();
    if (!movie.paused) requestAnimationFrame(frame);
  });
}
show(data.start);
"""
