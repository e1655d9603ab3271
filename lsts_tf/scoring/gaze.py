"""Tables of gaze, as people write them and as eye trackers export them.

`FORMATS` says how each program writes: names of columns, units, origin. A table
is recognised by its columns. What it does not say is a setting, and without
that it is refused: nothing is guessed. A fixation becomes one point for each
frame that it lasts.

Points are pixels of the film, (0, 0) the upper left one; frames are numbered
from 0 here. pandas reads all tables.
"""

from collections.abc import Mapping
import dataclasses
import io
import json
import math
import os
import pathlib
import re
from typing import Any

from absl import logging
import numpy as np
import pandas as pd

from lsts_tf.media import images

SUFFIXES = (".csv", ".tsv", ".txt", ".json", ".parquet")
UNITS = ("pixels", "fractions", "degrees")
# Ticks a second.
TICKS = {"s": 1, "ms": 1e3, "us": 1e6, "ns": 1e9}
# A number of a frame above this, nine hours of film, is a time.
MOST_FRAMES = 1_000_000
# So many frames, minutes of film, are no fixation.
_LONGEST = 10_000
# Pupil Labs' own programs leave out what is less certain.
_CONFIDENT = 0.6
# Times are sums of rounded numbers: a frame may begin so much earlier.
_ROUNDED = 1e-6
_TICK = re.compile(r"(?:[ _(\[])(s|ms|us|µs|μs|ns)[)\]]?$")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Format:
    """How a program writes a table.

    Attributes:
        name: What the program, or the table, is called.
        columns: {ours: a pattern of theirs, in small letters}. Ours are frame
            and last, or time and duration; x, y, observer, video, and what
            tells fixations from other rows.
        perhaps: Likewise, those that may be absent.
        units: Of x and y: "fractions" of the film, "screen" for pixels of a
            screen; "" if a setting says.
        is_up: Whether y counts from the bottom.
        tick: Unit of time; "" if a column's name or a setting says.
        first: Number of the first frame.
    """

    name: str
    columns: Mapping[str, str]
    perhaps: Mapping[str, str] = dataclasses.field(default_factory=dict)
    units: str = ""
    is_up: bool = False
    tick: str = ""
    first: int = 0


_TOBII = {
    "time": r"recording timestamp.*",
    "kind": r"eye movement type",
    "fixation": r"eye movement type index",
    "duration": r"gaze event duration.*",
    "video": r"presented (media|stimulus) name",
    "observer": r"participant name",
}
_NAMED = {
    "video": "video",
    "observer": "observer",
    "duration": r"duration([ _(\[].*)?",
}
FORMATS = (
    Format(
        name="Pupil Labs' fixations.csv",
        columns={
            "frame": "start_frame_index",
            "last": "end_frame_index",
            "x": "norm_pos_x",
            "y": "norm_pos_y",
        },
        perhaps={"confidence": "confidence"},
        units="fractions",
        is_up=True,
    ),
    Format(
        name="Pupil Labs' gaze_positions.csv",
        columns={
            "frame": "world_index",
            "stamp": "gaze_timestamp",
            "x": "norm_pos_x",
            "y": "norm_pos_y",
        },
        perhaps={"confidence": "confidence"},
        units="fractions",
        is_up=True,
    ),
    Format(
        name="Tobii Pro Lab's table of fixations in media",
        columns={
            **_TOBII,
            "x": r"fixation point x.*mcs ?norm.*",
            "y": r"fixation point y.*mcs ?norm.*",
        },
        perhaps={"recording": "recording name"},
        units="fractions",
    ),
    Format(
        name="Tobii Pro Lab's table of fixations",
        columns={
            **_TOBII,
            "x": r"fixation point x( ?[\[(](dacs ?)?px[\])])?",
            "y": r"fixation point y( ?[\[(](dacs ?)?px[\])])?",
        },
        perhaps={"recording": "recording name"},
        units="screen",
    ),
    Format(
        name="SR Research's fixation report",
        columns={
            "time": "current_fix_start",
            "duration": "current_fix_duration",
            "x": "current_fix_x",
            "y": "current_fix_y",
            "observer": "recording_session_label",
        },
        perhaps={
            "video": r"(video|movie|film)(_?name|_?file)?(_start)?",
            "trial": "trial_index",
        },
        units="screen",
        tick="ms",
    ),
    Format(
        name="a table of frames",
        columns={"frame": "frame", "x": "x", "y": "y"},
        perhaps=_NAMED,
        first=1,
    ),
    Format(
        name="a table of times",
        columns={
            "time": r"(time|timestamp)([ _(\[]\W?(s|ms|us|µs|μs|ns)\W?)?",
            "x": "x",
            "y": "y",
        },
        perhaps=_NAMED,
    ),
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Settings:
    """What a table may not say.

    Attributes:
        gaze_units: Of x and y: "pixels", "fractions" or "degrees".
        screen: "WIDTHxHEIGHT" of the film on the screen, in pixels, "+X+Y" if
            it does not begin in the upper left corner.
        pixels_per_degree: Pixels of the screen in a degree of visual angle.
        rate: Frames a second.
        time_unit: Of times: "s", "ms", "us" or "ns".
    """

    gaze_units: str = ""
    screen: str = ""
    pixels_per_degree: float = 0.0
    rate: float = 0.0
    time_unit: str = ""

    def __post_init__(self) -> None:
        for name, allowed in (("gaze_units", UNITS), ("time_unit", TICKS)):
            if (value := getattr(self, name)) not in ("", *allowed):
                raise ValueError(
                    f"--{name} is one of {', '.join(allowed)}. "
                    f"Received: {value!r}"
                )
        for name in ("pixels_per_degree", "rate"):
            value = getattr(self, name)
            if not isinstance(value, int | float) or not 0 <= value < math.inf:
                raise ValueError(
                    f"--{name} is a number above 0. Received: {value!r}"
                )
        self.area((1, 1))

    def area(self, size: tuple[int, int]) -> tuple[int, int, int, int]:
        """Width, height, left and top of the film on the screen, in pixels.

        Args:
            size: (H, W) of the film, which it has without `screen`.
        """
        if not self.screen:
            return size[1], size[0], 0, 0
        found = re.fullmatch(
            r"([1-9]\d{0,5})x([1-9]\d{0,5})(?:([+-]\d{1,6})([+-]\d{1,6}))?",
            str(self.screen),
        )
        if not found:
            raise ValueError(
                "--screen is width x height of the film on the screen, and "
                "where it begins, such as 1920x1080 or 1280x720+320+180. "
                f"Received: {self.screen!r}"
            )
        width, height, left, top = (int(text or 0) for text in found.groups())
        return width, height, left, top


class Table:
    """A table of gaze, recognised and checked.

    Attributes:
        path: The file.
        format: How it is written.
        rows: Its fixations. Columns are ours (see `Format`): x, y, frame,
            last, time, duration as float64, NaN for none; video, observer as
            text, "" for none. The index tells their line.
        skipped: How many rows were too uncertain.
    """

    def __init__(self, path: str | os.PathLike):
        """Reads a table.

        Raises:
            images.MapError: It cannot be read, has no columns that are known,
                or a value that is none; the message names the line.
        """
        self.path = pathlib.Path(path)
        # How a row is called, and the number of the first.
        self._row = {".json": ("fixation", 1), ".parquet": ("row", 1)}.get(
            self.path.suffix.lower(), ("line", 2)
        )
        text = _text(self.path)
        self.format, columns = _recognised(self.path, text)
        self._text, self._columns = text, [*columns.values()]
        rows = pd.DataFrame(
            {ours: text[theirs] for ours, theirs in columns.items()}
        )
        self._ticks = {
            ours: found[1].replace("µ", "u").replace("μ", "u")
            for ours, theirs in columns.items()
            if (found := _TICK.search(theirs.lower()))
        }
        if "kind" in rows:
            # Of each sample there is a row, also when nothing is shown. Times
            # of a film count from when it was shown first.
            rows = rows[rows["video"] != ""]
            rows["time"] = pd.to_numeric(rows["time"], errors="coerce")
            keys = ["observer", "video", *({"recording"} & {*rows})]
            rows["time"] -= rows.groupby(keys)["time"].transform("min")
            rows = rows[rows["kind"].str.lower() == "fixation"]
            rows = rows[~rows.duplicated([*keys, "fixation"])]
            self._ticks.setdefault("duration", "ms")
        lasts = columns.get("duration", "duration")
        if "frame" in rows and "duration" in rows:
            raise images.MapError(
                path,
                f"has frames and {lasts}. Give times instead of frames, or one "
                "row per frame without durations.",
            )
        if not (
            "duration" in self._ticks or lasts.lower().endswith("duration")
        ):
            raise images.MapError(
                path,
                "durations need the unit of the times, or a column name with "
                f"a unit, such as duration_ms. Received: {lasts!r}",
            )
        self.rows = self._numbers(rows)
        self.skipped = 0
        if "confidence" in rows:
            is_sure = self.rows["confidence"] >= _CONFIDENT
            self.skipped = int((~is_sure).sum())
            self.rows = self.rows[is_sure]
        is_named = self.rows["observer"] != ""
        self.refuse(
            ~is_named & self.rows["x"].notna() & bool(is_named.any()),
            "all points must name their observer, or none; name all, or "
            "remove the column.",
        )

    def refuse(self, is_bad: Any, rule: str) -> None:
        """Raises `images.MapError` if a row is bad, which names the first.

        Args:
            is_bad: Of each row of `rows`, or of some of the file.
            rule: What holds for rows, and what to do.
        """
        if is_bad.any():
            at = is_bad.index[int(np.argmax(is_bad))]
            row = self._text.loc[at, self._columns].to_dict()
            name, first = self._row
            raise images.MapError(
                self.path, f"{name} {at + first}: {rule} Received: {row}"
            )

    def _numbers(self, rows: pd.DataFrame) -> pd.DataFrame:
        names = ("frame", "last", "time", "duration", "x", "y", "confidence")
        given = rows[[name for name in names if name in rows]]
        given = given.replace(".", "")  # What EyeLink writes for none.
        table = given.apply(pd.to_numeric, errors="coerce").astype(np.float64)
        table = table.replace([np.inf, -np.inf], np.nan)
        is_bad = (table.isna() & (given != "")).any(axis=1)
        is_bad |= table["x"].isna() != table["y"].isna()
        has_point = table["x"].notna()
        for name in ("frame", "last"):
            if name in table:
                is_bad |= table[name].isna() | (table[name] % 1 != 0)
                is_bad |= table[name] < self.format.first
        for name in ("time", "duration"):
            if name in table:
                is_bad |= table[name].isna() & has_point
        self.refuse(
            is_bad,
            "a point has x and y, and a time or a frame; frames are whole "
            f"numbers from {self.format.first} on.",
        )
        if "frame" in table:
            self.refuse(
                table[["frame", *({"last"} & {*table})]].max(axis=1)
                > MOST_FRAMES,
                f"numbers of frames above {MOST_FRAMES:,} look like times. "
                "Name the column time_s, time_ms or time_us, and give --rate.",
            )
        return table.assign(
            video=rows.get("video", ""),
            observer=rows.get("observer", ""),
            trial=rows.get("trial", ""),
        )

    # What overflows is refused, or lies outside.
    @np.errstate(over="ignore", invalid="ignore")
    def points(
        self, size: tuple[int, int], settings: Settings, times: Any = None
    ) -> pd.DataFrame:
        """Its points, one for each frame that a fixation lasts.

        Args:
            size: (H, W) of the film, or of its maps.
            settings: What the table does not say.
            times: When each frame begins, and when the last one ends, in
                seconds, ascending; by default equally spaced at the rate.

        Returns:
            video and observer as text; frame from 0; x and y, whole numbers
            in float64, also outside of the film, NaN if nobody looked.

        Raises:
            images.MapError: A setting is missing or contradicts the table; or
                the values are no ones of their unit.
        """
        rows = self.rows.assign(**self._pixels(size, settings))
        first, last = self._frames(settings, times)
        if len(rows):
            length = pd.Series(last - first + 1, rows.index)
            self.refuse(
                ~length.between(1, _LONGEST)
                | (first < 0)
                | (last > MOST_FRAMES),
                f"a fixation lasts 1 to {_LONGEST:,} frames between 0 and "
                f"{MOST_FRAMES:,}. Times count from the start of the film, in "
                "the unit that is given.",
            )
            count = length.to_numpy(np.int64)
            rows = rows.loc[rows.index.repeat(count)]
            step = rows.groupby(level=0).cumcount()
            first = np.repeat(first, count) + step.to_numpy()
        return rows.assign(frame=first)[
            ["video", "observer", "frame", "x", "y"]
        ]

    def _frames(
        self, settings: Settings, times: Any
    ) -> tuple[np.ndarray, np.ndarray]:
        rows = self.rows
        has_unit = bool(self.format.tick or "time" in self._ticks)
        if "frame" in rows or has_unit:
            self._idle(settings, "time_unit")
        if "frame" in rows:
            self._idle(settings, "rate")
            first = rows["frame"].to_numpy() - self.format.first
            last = rows.get("last", rows["frame"]).to_numpy()
            return first, last - self.format.first
        tick = self.format.tick or self._ticks.get("time", settings.time_unit)
        if not tick or (times is None and not settings.rate):
            lacks, give = (
                ("frames a second", "--rate")
                if tick
                else (
                    "unit of times",
                    f"--time_unit, one of {', '.join(TICKS)}",
                )
            )
            raise images.MapError(
                self.path,
                f"is {self.format.name} and has times. Received: no {lacks}. "
                f"Give {give}.",
            )
        start = (rows["time"] / TICKS[tick]).to_numpy()
        of = self._ticks.get("duration", tick)
        lasts = rows.get("duration", 0 * rows["time"]) / TICKS[of]
        end = np.maximum(start + lasts.to_numpy(), start)
        # A row without a point may have no time: then it says nothing.
        start, end = np.nan_to_num(start), np.nan_to_num(end)
        if times is None:
            first = np.floor(start * settings.rate + _ROUNDED)
            last = np.ceil(end * settings.rate - _ROUNDED) - 1
        else:
            times = np.asarray(times)
            first = np.searchsorted(times, start + _ROUNDED, "right") - 1
            last = np.searchsorted(times, end - _ROUNDED, "left") - 1
        return first, np.maximum(first, last)

    def _idle(self, settings: Settings, *names: str) -> None:
        """Raises if a setting is given that the table has no use for."""
        given = [f"--{name}" for name in names if getattr(settings, name)]
        if given:
            raise images.MapError(
                self.path,
                f"is {self.format.name}, which has its own units. Received: "
                f"{', '.join(given)}, which would do nothing.",
            )

    def _pixels(
        self, size: tuple[int, int], settings: Settings
    ) -> dict[str, np.ndarray]:
        height, width = size
        x, y = self.rows["x"].to_numpy(), self.rows["y"].to_numpy()
        units = settings.gaze_units or "pixels"
        if self.format.units:
            self._idle(settings, "gaze_units")
            units = self.format.units
        if units != "degrees":
            self._idle(settings, "pixels_per_degree")
        if units == "fractions":
            self._idle(settings, "screen")
        if units == "screen" and not settings.screen:
            raise images.MapError(
                self.path,
                f"is {self.format.name}, in pixels of a screen. Received: no "
                "--screen. Give width x height of the film on it, such as "
                "1920x1080 or 1280x720+320+180.",
            )
        if units == "degrees" and not settings.pixels_per_degree:
            raise images.MapError(
                self.path,
                "has degrees. Received: no --pixels_per_degree. Give it.",
            )
        has_point = self.rows["x"].notna()
        is_fraction = (self.rows[["x", "y"]].abs() <= 1).all(axis=1)
        most = has_point.sum() / 2
        if units == "fractions":
            self.refuse(
                has_point & (int(is_fraction.sum()) < most),
                "fractions lie within 0…1, and most of these do not. Give "
                "--gaze_units=pixels if they are pixels.",
            )
        elif not settings.gaze_units:
            self.refuse(
                is_fraction & (int(is_fraction.sum()) > most),
                "x and y of most points lie within 0…1, as fractions do, and "
                "zeros for lost gaze; pixels are assumed. Give "
                "--gaze_units=fractions, or --gaze_units=pixels if they are "
                "pixels.",
            )
        if units == "fractions":
            y = 1 - y if self.format.is_up else y
            # The right and the lower edge belong to the last pixels.
            x = np.where(x == 1, width - 1, x * width)
            y = np.where(y == 1, height - 1, y * height)
            return {"x": np.floor(x), "y": np.floor(y)}
        wide, high, left, top = settings.area(size)
        if abs(wide * height / (high * width) - 1) > 0.02:
            raise images.MapError(
                self.path,
                "the film on the screen must have the proportions of the "
                f"film, {width}x{height}. Received: "
                f"--screen={settings.screen}. Give width and height of the "
                "film alone, and where it begins, such as 1280x720+320+180.",
            )
        across, down = width / wide, height / high
        if units == "degrees":
            # From the middle, x to the right and y upwards.
            scale = settings.pixels_per_degree
            x, y = wide / 2 + x * scale, high / 2 - y * scale
            return {"x": np.floor(x * across), "y": np.floor(y * down)}
        # To where the middle of a pixel falls.
        return {
            "x": np.rint((x - left + 0.5) * across - 0.5),
            "y": np.rint((y - top + 0.5) * down - 0.5),
        }

    def inside(
        self,
        points: pd.DataFrame,
        size: tuple[int, int],
        settings: Settings,
    ) -> tuple[pd.DataFrame, int]:
        """Points without those outside the film, which are told of.

        Args:
            points: Some of its points; see `points`.
            size: (H, W) of the film.
            settings: What they were made with.

        Returns:
            The points, x and y NaN for those outside; and how many these are.

        Raises:
            images.MapError: All lie outside; or most do, and nobody said in
                what unit they are.
        """
        is_inside = points["x"].between(0, size[1] - 1)
        is_inside &= points["y"].between(0, size[0] - 1)
        is_outside = points["x"].notna() & ~is_inside
        outside, total = int(is_outside.sum()), int(points["x"].notna().sum())
        is_said = self.format.units or settings.gaze_units or settings.screen
        told = (
            f"{outside} of {total} points lie outside the film, "
            f"{size[1]}x{size[0]}"
        )
        if outside == total or (outside > total / 2 and not is_said):
            self.refuse(
                is_outside,
                f"{told}. Say what they are with --gaze_units and --screen.",
            )
        if self.skipped:
            logging.warning(
                "%s: %d rows with a confidence below %s are left out.",
                *(self.path, self.skipped, _CONFIDENT),
            )
        if outside:
            logging.warning("%s: %s; they are left out.", self.path, told)
        return points.assign(**points[["x", "y"]].where(is_inside)), outside

    def numbered(
        self, points: pd.DataFrame, videos: frozenset[int]
    ) -> pd.Series:
        """The number of each point's video.

        Args:
            points: With a column `video`: a number, also as the name of a file,
                such as 601.mp4; or "".
            videos: Those that are scored. If it is one, a table that names no
                other is of that one.

        Raises:
            images.MapError: A video has no number.
        """
        names = points["video"]
        found = names.str.extract(r"^(\d{1,9})(?:\.0+|\.[A-Za-z]\w*)?$")[0]
        if found.isna().any() and len(videos) == 1 and names.nunique() == 1:
            trials = self.rows.groupby("observer")["trial"].nunique()
            if names.iloc[0] or trials.max() == 1:
                return pd.Series([*videos] * len(points), points.index)
        self.refuse(
            found.isna(),
            "a point has a video, and videos are whole numbers, also as the "
            "name of a file, 601.mp4. If all points are of one, give its "
            "number with --videos.",
        )
        return found.astype(np.int64)


def _text(path: pathlib.Path) -> pd.DataFrame:
    """All cells of a file as text, "" for none."""
    suffix, has_more = path.suffix.lower(), False
    try:
        data = path.read_bytes()
        if suffix == ".parquet":
            table = pd.read_parquet(io.BytesIO(data))
        elif suffix == ".json":
            # As objects, or pandas takes `true` for a 1.
            table = pd.DataFrame(json.loads(data), dtype=object)
        else:
            marks = (b"\xff\xfe", b"\xfe\xff")
            is_wide = data.startswith(marks)
            text = data.decode("utf-16" if is_wide else "utf-8-sig")
            head = text.partition("\n")[0]
            table = pd.read_csv(
                io.StringIO(text),
                sep=max(",\t;", key=head.count),
                dtype=str,
                keep_default_na=False,
                skip_blank_lines=False,  # Or lines have other numbers.
            )
            # Of lines with more cells than the head the first is an index.
            has_more = not isinstance(table.index, pd.RangeIndex)
        table = table.reset_index(drop=True).astype(object)
        table.columns = table.columns.astype(str)
        table = table.where(table.notna(), "").astype(str)
    except Exception as error:  # Damaged files raise all kinds of errors.
        reason = " ".join(str(error).split())
        if isinstance(error, OSError) and error.strerror:
            reason = f"cannot be read ({error.strerror})."
            raise images.MapError(path, reason) from error
        raise images.MapError(path, f"is damaged ({reason}).") from error
    if has_more:
        raise images.MapError(path, "has rows with more cells than its header.")
    return table[(table != "").any(axis=1)]


def _recognised(
    path: pathlib.Path, text: pd.DataFrame
) -> tuple[Format, dict[str, str]]:
    """The format of a table, and {our name of a column: theirs}."""
    nearest: tuple[Any, ...] = ()
    for one in FORMATS:
        columns = {
            ours: theirs
            for ours, pattern in {**one.columns, **one.perhaps}.items()
            for theirs in reversed(text.columns)
            if re.fullmatch(pattern, theirs.strip().lower())
        }
        missing = [ours for ours in one.columns if ours not in columns]
        if not missing:
            return one, columns
        found = len(one.columns) - len(missing)
        if not nearest or found > nearest[0]:
            nearest = found, one, [one.columns[ours] for ours in missing]
    _, one, patterns = nearest
    raise images.MapError(
        path,
        "needs the columns frame (or time_s, time_ms, time_us), x, y, and "
        "optionally video and observer; or those of an eye tracker's export "
        f"(see docs/annotations.md). It is most like {one.name}. Missing: "
        f"{', '.join(patterns)}",
    )
