"""Tables of gaze against frames and pixels that were computed by hand."""

import json
import logging

import numpy as np
import pandas as pd
import pytest

from lsts_tf.media import images
from lsts_tf.scoring import gaze, truth
from tests import pages

# 100 x 50 pixels.
SIZE = (50, 100)
PUPIL = (
    "id,start_timestamp,duration,start_frame_index,end_frame_index,"
    "norm_pos_x,norm_pos_y,dispersion,confidence\n"
)
POSITIONS = (
    "gaze_timestamp,world_index,confidence,norm_pos_x,norm_pos_y,base_data\n"
)
TOBII = (
    "Recording timestamp{}\tParticipant name\tPresented Media name\t"
    "Eye movement type\tGaze event duration\tEye movement type index\t"
    "Fixation point X{}\tFixation point Y{}\n"
)
EYELINK = (
    "RECORDING_SESSION_LABEL\tTRIAL_INDEX\tCURRENT_FIX_START\t"
    "CURRENT_FIX_DURATION\tCURRENT_FIX_X\tCURRENT_FIX_Y{}\n"
)
# The film begins in the middle of the 7th second. 80 ms are two frames of 25 a
# second, and a saccade and what nobody sees is passed over.
TOBII_ROWS = (
    "1000{0}\tP1\t\tFixation\t99\t1\t{1}\t{2}\n"
    "6500{0}\tP1\t601.mp4\tSaccade\t20\t1\t\t\n"
    "6520{0}\tP1\t601.mp4\tFixation\t80\t2\t{1}\t{2}\n"
    "6560{0}\tP1\t601.mp4\tFixation\t80\t2\t{1}\t{2}\n"
    "6620{0}\tP1\t601.mp4\tEyesNotFound\t80\t2\t\t\n"
)

# Of each its suffix, text and settings, and its points as (video, frame, x, y,
# observer).
TABLES = {
    # The upper left corner is (0, 1); the last frame of a fixation counts.
    "pupil fixations": (
        "csv",
        PUPIL + "0,157.1,90.1,4,6,0.255,0.99,0.5,0.97\n"
        "1,157.2,90.1,9,9,1.0,0.0,0.5,0.60\n2,157.2,90.1,9,9,.5,.5,0.5,0.5\n",
        {},
        [("", n, 25, 0, "") for n in (4, 5, 6)] + [("", 9, 99, 49, "")],
    ),
    "pupil positions": (
        "csv",
        POSITIONS + "157.1,0,1.0,0.505,0.5,2d\n157.2,1,0.9,0.0,1.0,2d\n",
        {},
        [("", 0, 50, 25, ""), ("", 1, 0, 0, "")],
    ),
    # Frames last 40 ms: 20 to 100 ms are in the first, second and third.
    "tobii, microseconds, pixels of the screen": (
        "tsv",
        TOBII.format(" [μs]", *2 * [" [DACS px]"])
        + TOBII_ROWS.format("000", 1000, 240),
        {"screen": "2000x1000", "rate": 25},
        [("601.mp4", n, 50, 12, "P1") for n in (0, 1, 2)],
    ),
    "tobii, no unit of time, no unit of pixels": (
        "tsv",
        TOBII.format("", "", "") + TOBII_ROWS.format("", 1000, 240),
        {"screen": "2000x1000+100+0", "rate": 25, "time_unit": "ms"},
        [("601.mp4", n, 45, 12, "P1") for n in (0, 1, 2)],
    ),
    "tobii, fractions of the medium": (
        "tsv",
        TOBII.format(" [ms]", *2 * [" (MCSnorm)"])
        + TOBII_ROWS.format("", 0.25, 0.1),
        {"rate": 50},
        [("601.mp4", n, 25, 5, "P1") for n in (1, 2, 3, 4)],
    ),
    # 39 to 81 ms are in three frames; "." is none.
    "eyelink": (
        "txt",
        EYELINK.format("\tVIDEO_NAME") + "s1\t1\t39\t42\t199.5\t0.4\t7.avi\n"
        "s2\t1\t40\t40\t0\t99\t7.avi\ns2\t1\t90\t10\t.\t.\t7.avi\n",
        {"screen": "200x100", "rate": 25},
        [
            *(("7.avi", n, 100, 0, "s1") for n in (0, 1, 2)),
            ("7.avi", 1, 0, 49, "s2"),
            ("7.avi", 2, np.nan, np.nan, "s2"),
        ],
    ),
    "frames": (
        "csv",
        "frame,x,y,observer,video,else\n1,2.5,3.4,a,9,z\n\n3,,,,9,z\n",
        {},
        [("9", 0, 2, 3, "a"), ("9", 2, np.nan, np.nan, "")],
    ),
    "frames, lines end in a semicolon, UTF-16": (
        "csv",
        "frame;x;y\n1;0.5;0.25\n".encode("utf-16"),
        {"gaze_units": "fractions"},
        [("", 0, 50, 12, "")],
    ),
    # Two degrees right of and one above the middle of a screen twice as wide.
    "times, degrees": (
        "tsv",
        "time_us\tx\ty\tduration_ms\n60000\t2\t1\t40\n",
        {
            "gaze_units": "degrees",
            "pixels_per_degree": 20,
            "screen": "200x100",
            "rate": 25,
        },
        [("", 1, 70, 15, ""), ("", 2, 70, 15, "")],
    ),
    "times, seconds": (
        "csv",
        "Time [s],X,Y\n0.3,10,20\n",
        {"rate": 10},
        [("", 3, 10, 20, "")],
    ),
}


@pytest.fixture
def written(tmp_path):
    def write(suffix, text):
        path = tmp_path / f"gaze.{suffix}"
        if suffix == "parquet":
            pd.DataFrame(text).to_parquet(path)
        else:
            path.write_bytes(text if isinstance(text, bytes) else text.encode())
        return path

    return write


@pytest.mark.parametrize("name", TABLES)
def test_frames_and_pixels(name, written):
    suffix, text, settings, expected = TABLES[name]
    table = gaze.Table(written(suffix, text))
    found = table.points(SIZE, gaze.Settings(**settings))
    wanted = pd.DataFrame(
        expected, columns=["video", "frame", "x", "y", "observer"]
    )
    for column in wanted:
        got = found[column].tolist()
        np.testing.assert_array_equal(got, wanted[column].tolist(), column)


def test_parquet_and_json_are_read_like_csv(written):
    rows = {"video": [7, 7], "frame": [1, 3], "x": [2.0, None], "y": [4, None]}
    for suffix, text in (
        ("parquet", rows),
        ("json", pd.DataFrame(rows).to_json(orient="records")),
    ):
        table = gaze.Table(written(suffix, text))
        found = table.points(SIZE, gaze.Settings())
        assert found["frame"].tolist() == [0, 2]
        np.testing.assert_array_equal(found["x"], [2, np.nan])
        numbers = table.numbered(found, frozenset())
        assert numbers.tolist() == [7, 7]


def test_frames_that_are_not_equally_spaced(written):
    """A fixation from 0.05 to 0.5 s; the film ends after 1 s."""
    table = gaze.Table(
        written("csv", "time_s,duration_s,x,y\n0.05,0.45,9,9\n1.2,0,9,9\n")
    )
    found = table.points(SIZE, gaze.Settings(), [0, 0.1, 0.4, 0.5, 1.0])
    assert found["frame"].tolist() == [0, 1, 2, 4]


def test_examples_of_the_documentation_are_read(written):
    (page,) = (page for page in pages.PAGES if page.name == "annotations.md")
    found = [
        gaze.Table(written(suffix, text)).format
        for suffix in ("csv", "tsv")
        for text in pages.blocks(page, suffix)
    ]
    # Tobii's names are too long for an example.
    assert len({format_.name for format_ in found}) == len(gaze.FORMATS) - 2


FRAMES, LOOKS = "frame,x,y\n", "frame,x,y,observer\n"
TOBII_PIXELS = TOBII.format("", "", "") + TOBII_ROWS.format("", 9, 9)


@pytest.mark.parametrize(
    ("text", "settings", "says"),
    [
        # A guess that is wrong.
        (
            FRAMES + "1,.2,.7\n2,1,0\n3,1.2,-9\n",
            {},
            "line 2: .*pixels are assumed.*gaze_units=fractions.*'x': '.2'",
        ),
        (FRAMES + "1,9,9\n1800016667,9,9\n", {}, "line 3: .*1800016667"),
        (FRAMES + "1700000000033,9,9\n", {}, "line 2: .*1700000000033"),
        (
            FRAMES + "1,960,540\n",
            {"gaze_units": "fractions"},
            "line 2: .*gaze_units=pixels",
        ),
        ("time_s,x,y\n1700000000,9,9\n", {"rate": 30}, "line 2: .*unit"),
        ("time_s,x,y\n-1,9,9\n", {"rate": 30}, "line 2: .*unit"),
        ("time_s,x,y\n1e308,9,9\n", {"rate": 30}, "line 2: .*unit"),
        (
            "time_s,duration,x,y\n1,900,9,9\n",
            {"rate": 30},
            "line 2: a fixation lasts 1 to 10,000",
        ),
        # What is not said, and what contradicts.
        ("time,x,y\n1,9,9\n", {"rate": 30}, "--time_unit"),
        ("time_ms,x,y\n1,9,9\n", {}, "--rate"),
        ("time_ms,x,y\n1,9,9\n", {"time_unit": "s", "rate": 9}, "nothing"),
        ("frame,x,y,duration\n1,9,9,2\n", {}, "has frames and duration"),
        ("time_s,x,y,duration_h\n1,9,9,2\n", {"rate": 1}, "'duration_h'"),
        (FRAMES + "1,9,9\n", {"rate": 30}, "--rate, which would do"),
        (FRAMES + "1,9,9\n", {"time_unit": "s"}, "--time_unit, which"),
        (FRAMES + "1,9,9\n", {"pixels_per_degree": 30}, "which would do"),
        (FRAMES + "1,9,9\n", {"gaze_units": "degrees"}, "pixels_per_degree"),
        (FRAMES + "1,9,9\n", {"screen": "500x400"}, "proportions"),
        (PUPIL + "0,1,1,4,6,.2,.9,.5,.9\n", {"screen": "9x9"}, "nothing"),
        (PUPIL + "0,1,1,4,6,.2,.9,.5,.9\n", {"gaze_units": "pixels"}, "nothi"),
        (PUPIL + "0,1,1,6,4,.2,.9,.5,.9\n", {}, "line 2: a fixation lasts"),
        (TOBII_PIXELS, {"rate": 9, "time_unit": "ms"}, "--screen"),
        (TOBII_PIXELS, {"screen": "100x50", "rate": 9}, "--time_unit"),
        (EYELINK.format("") + "s\t1\t39\t42\t9\t1\n", {"rate": 9}, "--screen"),
        # What is no table.
        ("frame,x\n1,2\n", {}, "Missing: y"),
        (FRAMES + "1,2,3,4\n", {}, "more cells than its head"),
        (FRAMES + "0,2,2\n", {}, "line 2: .* from 1 on"),
        (FRAMES + "1,2,\n", {}, "line 2: a point has x and y"),
        (FRAMES + "1,2,2\n1,nan,2\n", {}, "line 3: a point has x and y"),
        (FRAMES + "1,inf,2\n", {}, "line 2: a point has x and y"),
        (LOOKS + "1,2,2,a\n1,3,3,\n", {}, "line 3: all points"),
        (LOOKS + "1,2,2,\n1,3,3,a\n", {}, "line 2: all points"),
        *(
            (f'[{{"frame": {frame}, "x": 2, "y": 3}}]', {}, "fixation 1: .* wh")
            for frame in ("1.9", "true", "1e999")
        ),
        (TOBII_PIXELS.replace("Presented", "P"), {}, "Tobii.*Missing: pres"),
        (FRAMES + '1,"2,5","3,5"\n', {}, "line 2: a point has"),
        (b"\xff\xfea", {}, "damaged"),
        ("", {}, "damaged"),
        ("\0\0", {}, "damaged|Missing"),
    ],
)
def test_refused_in_one_line(written, text, settings, says):
    kinds = {"[": "json", "\t": "tsv"}
    path = written(
        next((kinds[k] for k in kinds if k in str(text)), "csv"), text
    )
    with pytest.raises(images.MapError, match=says) as caught:
        gaze.Table(path).points(SIZE, gaze.Settings(**settings))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "settings",
    [
        {"screen": "1920"},
        {"gaze_units": "metres"},
        {"time_unit": "h"},
        {"rate": -1},
        {"pixels_per_degree": float("nan")},
    ],
)
def test_settings_that_make_no_sense(settings):
    with pytest.raises(ValueError, match=f"--{next(iter(settings))} is .*Rec"):
        gaze.Settings(**settings)


@pytest.mark.parametrize(
    ("names", "videos", "expected"),
    [
        (["601.mp4", "0602", "7.0"], [], [601, 602, 7]),
        (["film.mp4", "film.mp4"], [9], [9, 9]),
        (["", ""], [9], [9, 9]),
        (["", ""], [], None),
        (["", ""], [9, 10], None),
        (["film.mp4", "601.mp4"], [9], None),
        (["0.5"], [], None),
    ],
)
def test_numbers_of_videos(written, names, videos, expected):
    rows = [f"{n + 1},9,9,{name}\n" for n, name in enumerate(names)]
    table = gaze.Table(written("csv", "frame,x,y,video\n" + "".join(rows)))
    points = table.points(SIZE, gaze.Settings())
    if expected:
        found = table.numbered(points, frozenset(videos))
        assert found.tolist() == expected
        return
    with pytest.raises(images.MapError, match=r"line .: .*--videos"):
        table.numbered(points, frozenset(videos))


@pytest.mark.parametrize(
    "text",
    [
        FRAMES,
        PUPIL + "0,1,1,4,6,.2,.9,.5,.1\n",
        TOBII_PIXELS.replace("\tFixation\t", "\tSaccade\t"),
    ],
)
def test_a_table_without_a_point(written, text):
    table = gaze.Table(written("tsv" if "\t" in text else "csv", text))
    tobii = {"screen": "100x50", "rate": 9, "time_unit": "ms"}
    settings = gaze.Settings(**(tobii if "\t" in text else {}))
    points = table.points(SIZE, settings)
    assert not len(table.numbered(points, frozenset()))


def test_recordings_of_one_observer_are_told_apart(written):
    """Each begins with a time, and a number of fixations, of its own."""
    head, row = TOBII.format(" [ms]", "", ""), "{}\tP\t7.avi\tFixation\t40"
    rows = [
        (row.format(time) + "\t1\t9\t9", f"R{n}")
        for n, time in enumerate((500, 700))
    ]
    text = head.replace("\n", "\tRecording name\n")
    text += "".join(f"{one}\t{name}\n" for one, name in rows)
    points = gaze.Table(written("tsv", text)).points(
        SIZE, gaze.Settings(screen="100x50", rate=25)
    )
    assert points["frame"].tolist() == [0, 0]


def test_several_trials_without_a_name_are_of_no_video(written):
    rows = "".join(f"s\t{n}\t39\t42\t9\t1\n" for n in (1, 2))
    table = gaze.Table(written("tsv", EYELINK.format("") + rows))
    points = table.points(SIZE, gaze.Settings(screen="100x50", rate=25))
    with pytest.raises(images.MapError, match=r"line 2: .*--videos"):
        table.numbered(points, frozenset([9]))


def test_points_outside_are_counted_on_the_terminal(written, caplog):
    def of(xs, **given):
        rows = "".join(f"{n + 1},{x},9\n" for n, x in enumerate(xs))
        table = gaze.Table(written("csv", FRAMES + rows))
        settings = gaze.Settings(**given)
        points = table.points(SIZE, settings)
        return table.inside(points, SIZE, settings)

    with caplog.at_level(logging.WARNING, "absl"):
        points, outside = of([9, 99, 100, -1])
    assert outside == 2
    assert points["x"].notna().tolist() == [True, True, False, False]
    assert "2 of 4 points lie outside" in caplog.text
    # A screen that is larger than the film, or a unit that was not said.
    with pytest.raises(images.MapError, match="line 3: 2 of 3 points"):
        of([9, 100, 900])
    assert of([9, 100, 900], gaze_units="pixels")[1] == 2
    with pytest.raises(images.MapError, match="line 2: 2 of 2 points"):
        of([100, 900], gaze_units="pixels")


@pytest.mark.parametrize(
    "tries", [50, pytest.param(2000, marks=pytest.mark.slow)]
)
@pytest.mark.parametrize("suffix", ["csv", "tsv", "txt", "json", "parquet"])
def test_damaged_bytes_are_refused_or_read(suffix, tries, written):
    """Flips, cuts and swaps raise no error but ours."""
    texts = [text for kind, text, *_ in TABLES.values() if kind == suffix]
    rows = {"frame": [1, 2], "x": [2.5, 9], "y": [3, 4], "observer": ["a", "b"]}
    if suffix == "json":
        texts = [json.dumps(pd.DataFrame(rows).to_dict("records"))]
    elif suffix == "parquet":
        texts = [written(suffix, rows).read_bytes()]
    whole = [t if isinstance(t, bytes) else t.encode() for t in texts]
    settings = gaze.Settings(screen="200x100", rate=25)
    rng = np.random.default_rng(0)
    path = written("csv", b"").with_suffix(f".{suffix}")
    refused = 0
    for _ in range(tries):
        data = np.frombuffer(whole[rng.integers(len(whole))], np.uint8).copy()
        for _ in range(rng.integers(1, 5)):
            one, other = sorted(rng.integers(len(data), size=2))
            kind = rng.integers(4)
            if kind == 0:
                data[one] ^= 1 << rng.integers(8)
            elif kind == 1 and one:
                data = data[:one]
            elif kind == 2:
                data[[one, other]] = data[[other, one]]
            else:
                data[one] = rng.integers(256)
        path.write_bytes(data.tobytes())
        try:
            table = gaze.Table(path)
            points = table.points(SIZE, settings)
            table.numbered(points, frozenset([1]))
            table.inside(points, SIZE, settings)
        except images.MapError as error:
            assert "\n" not in str(error)
            refused += 1
    assert refused > tries / 10


# === Tables to score by ===


def test_an_export_is_scored_by_its_points(written):
    text = TOBII.format(" [μs]", *2 * [" [DACS px]"])
    text += TOBII_ROWS.format("000", 1000, 400)
    settings = gaze.Settings(screen="1920x1080", rate=25)
    export = truth.of_table(written("tsv", text), settings=settings)
    ((video, clip),) = export.clips.items()
    assert (video, [*clip.frames]) == (601, [0, 1, 2])
    for frame in clip.frames:
        assert clip.fixations(frame)[0].tolist() == [[133, 333]]
        assert len(clip.by_observer(frame)) == 1


def test_what_is_left_out_is_said_and_recorded(written, caplog):
    """The table of one video's points, of which one is outside."""
    rows = "0,1,90,0,0,.5,.5,.5,1\n1,2,90,1,1,.5,2,.5,1\n"
    with caplog.at_level(logging.WARNING, "absl"):
        found = truth.of_table(written("csv", PUPIL + rows), videos={7})
    assert [*found.clips] == [7]
    assert found.about["points_outside"] == 1
    assert "1 of 2 points lie outside the film, 640x360" in caplog.text
