"""Every input, every output, and what goes wrong, with a cheap model."""

import base64
import collections
import fractions
import io
import json
import math
import os
import re
import signal
import subprocess
from subprocess import PIPE
import sys
import time
from unittest import mock

import av
import cv2
import numpy as np
import pytest

from lsts_tf import experiment, predict, program
from lsts_tf.media import images, sources, video, writer
from lsts_tf.outputs import attention, encoding, pictures, run
from lsts_tf.scoring import predictions
from tests import cheap_prediction, flag_scope, folders, pages
from tests.media import matrix, sources_test

SIZE = (64, 36)
FILMS = ("overlay", "side_by_side", "saliency", "saliency16")
DERIVED = ("json", "roi", "encoded", "reframed", "report")
ALL = (*FILMS, "npy", "maps", "png16", "dhf1k", "stdout")


@pytest.fixture(autouse=True)
def interruptible():
    """A shell's background jobs ignore Ctrl-C from the start."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


def picture(number):
    """A frame that its map tells: light grows, and something moves."""
    width, height = SIZE
    frame = np.full((height, width, 3), 40 + number % 160, np.uint8)
    left = number * 3 % width
    frame[height // 3 :, left : left + width // 4] = (250, 200, 10)
    return frame


def clip_of(folder, count, *, times=None, name="a film.mp4", **how):
    path = folder / name
    with writer.Writer(path, fps=25, size=SIZE, **how) as film:
        for number in range(count):
            film.write(picture(number), times and times[number])
    return path


def record_of(out):
    return json.loads((out / run.RECORD).read_text(encoding="utf-8"))


def true_maps(model, path, **kwargs):
    return np.stack(list(model.maps(video.frames(path), **kwargs)))


# === Outputs ===


def test_everything_in_one_pass_from_the_same_maps(model, folder):
    count = 85
    path = clip_of(folder, count)
    out, stream = folder / "out put", io.BytesIO()
    options = {"stream": stream}
    assert predict.predict(model, path, out, outputs=ALL, options=options) == ""
    sizes = {
        "overlay.mp4": SIZE,
        "side_by_side.mp4": (2 * SIZE[0] + 4, SIZE[1]),
        "saliency.mp4": SIZE,
        "saliency16.mkv": SIZE,
    }
    others = ["a film", "maps", "maps.npy", "maps16", "prediction.json"]
    assert folders.listed(out) == sorted([*sizes, *others])
    maps = np.load(out / "maps.npy", mmap_mode="r")
    assert maps.shape == (count, 36, 64) and maps.dtype == np.float32
    want = [cv2.resize(m, SIZE) for m in true_maps(model, path)]
    np.testing.assert_array_equal(maps, want)
    eight = images.to_uint8(maps)
    assert stream.getvalue() == eight.tobytes()
    names = [images.file_name(k) for k in range(count)]
    for kind in ("maps", "a film"):
        assert folders.listed(out / kind) == names
        found = [images.read(out / kind / name) for name in names]
        np.testing.assert_array_equal(found, eight)
    found = [images.read(out / "maps16" / name) for name in names]
    np.testing.assert_array_equal(found, pictures.levels(maps, 16))
    with av.open(os.fspath(out / "saliency16.mkv")) as container:
        found = [frame.to_ndarray() for frame in container.decode(video=0)]
    np.testing.assert_array_equal(found, pictures.levels(maps, 16))
    for name, size in sizes.items():
        film = video.Video(out / name)
        assert film.fps == pytest.approx(25) and film.size == size
        assert len(list(film)) == count
    grey = np.stack([f[..., 0] for f in video.frames(out / "saliency.mp4")])
    assert np.abs(grey.astype(int) - eight).mean() < 2


def test_all_that_is_derived_comes_from_the_same_maps(model, folder):
    count = 40
    left = [[0, 0], [0.5, 0], [0.5, 1], [0, 1]]
    areas = folder / "areas.json"
    areas.write_text(json.dumps({"unit": "fractions", "areas": {"left": left}}))
    path, out = clip_of(folder, count), folder / "out"
    options = {"areas": str(areas), "aspect": "1:1", "strength": 12}
    damage = predict.predict(
        *(model, path, out),
        outputs=("npy", *DERIVED),
        options=options | {"map_size": "model"},
        about={"model": "last", "sha256": "0123"},
    )
    assert damage == ""
    assert folders.listed(out) == [
        *("attention.jsonl", "encoded.mp4", "maps.npy", "prediction.json"),
        *("reframed.csv", "reframed.json", "reframed.mp4", "reframed.sendcmd"),
        *("report.html", "roi.addroi", "roi.json", "roi.npy", "roi.txt"),
        "summary.json",
    ]
    maps = np.load(out / "maps.npy")
    lines = (out / "attention.jsonl").read_text().splitlines()
    rows = [json.loads(line) for line in lines]
    assert [row["frame"] for row in rows] == list(range(count))
    grids = np.load(out / "roi.npy")
    assert grids.shape == (count, 3, 4)
    assert (out / "roi.txt").read_text().count(" P 0\n") == count
    crop = json.loads((out / "reframed.json").read_text())["path"]
    assert len(crop) == count
    for name, wanted in (("encoded.mp4", SIZE), ("reframed.mp4", (36, 36))):
        found = video.Video(out / name)
        assert found.size == wanted and len(list(found)) == count
    blocks = encoding.Offsets(path="", fps=25, size=SIZE, strength=12)
    for i in (0, count // 2, count - 1):
        np.testing.assert_array_equal(grids[i], blocks.grid(maps[i]))
        place = attention.Measurer(size=SIZE)(maps[i], 0).strongest
        assert rows[i]["strongest"] == pytest.approx(place, abs=0.006)
        assert 0 <= rows[i]["areas"]["left"] <= 1
    page = (out / "report.html").read_text("utf-8")
    for text in (f"{count} frames", "<title>a film.mp4</title>", "0123"):
        assert text in page
    assert model.note in page
    (data,) = re.findall(r'id="data">(.*?)</script>', page)
    focus = [row["focus"] for row in rows]
    np.testing.assert_allclose(json.loads(data)["focus"], focus, atol=2e-5)


def test_the_record_names_everything(model, folder):
    path = clip_of(folder, 5)
    out = folder / "out"
    about = {"run": "runs/cheap", "model": "best"}
    predict.predict(model, path, out, about=about, every=2)
    record = record_of(out)
    assert record.pop("seconds") > 0
    assert record.pop("started").endswith("+00:00")
    options = {"view": "heat", "alpha": 0.6}
    options |= {"normalize": "none", "map_size": "source"}
    assert record == {
        "video": str(path),
        "fps": 12.5,
        "size": list(SIZE),
        "pixel_aspect": [1, 1],
        "first_map": 0,
        "every": 2,
        "clip": ["", ""],
        "first_frames": "repeat",
        "outputs": {"overlay": "overlay.mp4", "png8": "maps"},
        "options": options,
        "model": about,
        "front_end": model.extractor.describe(),
        "note": cheap_prediction.NOTE,
        "frames": 3,
        "start": {"frame": 0, "seconds": 0.0},
        "last_map_seconds": pytest.approx(0.16),
        "damage": "",
    }


def test_a_submission_can_be_scored(model, folder):
    """Folders of four digits, and nothing else that is not hidden."""
    for name in ("7.mp4", "0011.mp4"):
        path = clip_of(folder, 2, name=name)
        predict.predict(model, path, folder / "out", outputs=["dhf1k"])
    problems = collections.defaultdict(list)
    found = predictions.find(folder / "out", problems)
    assert not any(problems.values())
    of = {number: list(clip.frames) for number, clip in found.items()}
    assert of == {7: [0, 1], 11: [0, 1]}
    written = [".0007.json", ".0011.json", "0007", "0011"]
    assert folders.listed(folder / "out") == written


@pytest.mark.parametrize(
    ("wanted", "message"),
    [
        ({"outputs": ["film", "npy"]}, "Outputs are .*overlay.*: film"),
        ({"outputs": ["npy"], "output": None}, "--output is needed"),
        ({"outputs": []}, "Outputs are one or more.*: none"),
        ({"every": 0}, "--every must be .* at least 1.*Received: 0"),
        ({"options": {"alpha": math.nan}}, "--alpha must .*Received: nan"),
        ({"options": {"alhpa": 0.5}}, "fields of the outputs.*: alhpa"),
    ],
)
def test_what_cannot_be(model, folder, wanted, message):
    wanted = {"output": folder / "out"} | wanted
    refused(model, folder, message, clip_of(folder, 2), **wanted)


def make_run(folder):
    """A run folder whose model nobody looks into."""
    (folder / "model.keras").write_text("not looked into")
    settings = experiment.Experiment(run_dir=str(folder))
    settings.save(folder / experiment.FLAGFILE)


def begun(folder, outputs, *arguments, **pipes):
    """The program with the cheap model, writing into "out"."""
    make_run(folder)
    return subprocess.Popen(
        [
            *(sys.executable, "-m", "tests.cheap_prediction", *arguments),
            *(f"--run_dir={folder}", f"--outputs={outputs}"),
            f"--output={folder / 'out'}",
        ],
        cwd=pages.ROOT,
        stderr=PIPE,
        **pipes,
    )


def refused(model, folder, message, *arguments, **wanted):
    """Nothing is predicted, and nothing in the folder changes."""
    before = folders.contents(folder)
    with (
        mock.patch.object(model, "maps") as maps,
        pytest.raises(ValueError, match=message),
    ):
        predict.predict(model, *arguments, **wanted)
    assert not maps.called
    assert folders.contents(folder) == before


def test_a_folder_with_anything_else_is_not_replaced(model, folder):
    path = clip_of(folder, 2, name="holiday.mp4")
    letters = folder / "holiday" / "letters"
    letters.mkdir(parents=True)
    (letters / "to you.txt").write_text("Dear you,")
    maps = folder / "maps"
    maps.mkdir()
    (maps / "0001.png").write_bytes(b"of an earlier run")
    message = "letters.*another --output"
    refused(model, folder, message, path, folder, outputs=["dhf1k"])
    predict.predict(model, path, folder, outputs=["maps"])
    assert folders.listed(maps) == ["0001.png", "0002.png"]


def test_what_is_read_is_not_replaced(model, folder, monkeypatch):
    message = "would replace the video that is read"
    (folder / "other").mkdir()
    for name, output, kind in (
        ("0601", ".", "dhf1k"),
        ("maps/deep/down", ".", "maps"),
        ("maps16", "other/..", "png16"),
    ):
        source = sources.open_source([str(pictures_in(folder / name, 3))])
        out = folder / output
        refused(model, folder, message, source, out, outputs=[kind])
    path = clip_of(folder, 3, name="overlay.mp4")
    monkeypatch.chdir(folder)
    page = {"outputs": ["report"], "report": "overlay.mp4"}
    refused(model, folder, message, path, folder)
    refused(model, folder, message, "overlay.mp4", None, **page)
    corners = [[0, 0], [1, 0], [0, 1]]
    areas = {"unit": "fractions", "areas": {"a": corners}}
    (folder / "summary.json").write_text(json.dumps(areas))
    how = {"outputs": ["json"], "options": {"areas": "summary.json"}}
    message = "would replace the areas of interest"
    refused(model, folder, message, path, folder, **how)


@pytest.mark.parametrize(
    ("owner", "other", "page", "video"),
    [
        ("png8", "dhf1k", "", "maps.mp4"),
        ("json", "dhf1k", "", "summary.json.mp4"),
        ("the record", "report", "prediction.json", "a.mp4"),
        ("png8", "report", "maps/page.html", "a.mp4"),
        ("json", "report", "../out/summary.json", "a.mp4"),
        ("json", "report", "attention.jsonl/page.html", "a.mp4"),
        ("roi", "report", "roi.addroi", "a.mp4"),
        ("reframed", "report", "reframed.csv", "a.mp4"),
    ],
)
def test_two_outputs_do_not_share_a_place(
    model, folder, owner, other, page, video
):
    path, out = clip_of(folder, 2, name=video), folder / "out"
    refused(
        model,
        folder,
        f"^{owner} and {other} cannot both be written.*report another",
        *(path, out),
        outputs=[*({owner} - {"the record"}), other],
        report=page and out / page,
    )


def test_standard_output_alone_needs_no_folder(model, folder, monkeypatch):
    monkeypatch.chdir(folder)
    path = clip_of(folder, 3)
    stream = io.BytesIO()
    options = {"stream": stream, "normalize": "clip"}
    predict.predict(model, path, None, outputs=["stdout"], options=options)
    assert len(stream.getvalue()) == 3 * 36 * 64
    assert folders.listed(folder) == [path.name]


# === First frames, parts ===


@pytest.mark.parametrize("mode", ["copy", "skip"])
def test_clips_without_a_whole_window(model, folder, mode):
    path = clip_of(folder, 78)
    message = f"{mode}.* more than 78 frames.*first_frames=mirror"
    with pytest.raises(ValueError, match=message):
        predict.predict(model, path, folder / "out", first_frames=mode)
    assert folders.listed(folder / "out") == []


@pytest.mark.parametrize("every", [1, 4])
@pytest.mark.parametrize("mode", ["mirror", "repeat", "copy", "skip"])
def test_which_frames_have_maps(model, folder, mode, every):
    """Maps of each frame alone, chosen by hand."""
    count, missing = 90, 78
    path = clip_of(folder, count)
    out = folder / "out"
    wanted = ["npy", "maps", "overlay", "json"]
    how = {"first_frames": mode, "every": every}
    predict.predict(model, path, out, outputs=wanted, **how)
    first = record_of(out)["first_map"]
    lines = (out / "attention.jsonl").read_text().splitlines()
    numbers = [first + json.loads(line)["frame"] * every for line in lines]
    each = [
        cv2.resize(map_, SIZE)
        for map_ in true_maps(model, path, first_frames="copy")
    ]
    frames = {
        "copy": range(missing % every, count, every),
        "skip": range(missing, count, every),
    }.get(mode, range(0, count, every))
    assert numbers == list(frames)
    found = np.load(out / "maps.npy")
    names = [images.file_name(k) for k in frames]
    assert folders.listed(out / "maps") == names
    assert found.shape == (len(frames), 36, 64)
    for place, frame in enumerate(frames):
        if mode == "copy" or frame >= missing:
            np.testing.assert_array_equal(found[place], each[frame])
    if mode in ("mirror", "repeat"):
        assert np.abs(found[0] - each[0]).max() > 0.05
    film = video.Video(out / "overlay.mp4")
    assert film.fps == pytest.approx(25 / every)
    times = [time for _, time in film.timed()]
    np.testing.assert_allclose(times, np.arange(len(frames)) * every / 25)


def test_films_begin_with_the_frame_of_the_first_map(model, folder):
    """Not with the first frame of the clip, if that has none."""
    path = clip_of(folder, 95)
    out = folder / "out"
    how = {"first_frames": "skip", "every": 3, "start": "5f"}
    options = {"alpha": 0}
    wanted = ["overlay", "reframed"]
    predict.predict(model, path, out, outputs=wanted, options=options, **how)
    model_note = 12  # Rows of the announcement of random weights.
    shown = list(video.Video(out / "overlay.mp4"))
    want = list(video.Video(path))[5 + 78 :: 3]
    assert len(shown) == len(want) == 4
    for one, other in zip(shown, want, strict=True):
        difference = np.abs(one.astype(int) - other)[:-model_note]
        assert difference.mean() < 3
    about = json.loads((out / "reframed.json").read_text())
    assert about["frames"] == len(list(video.frames(out / "reframed.mp4"))) == 4
    assert about["start"] == {"frame": 5, "seconds": pytest.approx(0.2)}
    assert about["first_map"] == 78
    assert about["path"][0]["time"] == pytest.approx(78 / 25)
    commands = (out / "reframed.sendcmd").read_text()
    assert "trim=start_frame=83,setpts=PTS-STARTPTS" in commands


def test_a_part_of_a_video_is_a_clip_of_its_own(model, folder):
    path = clip_of(folder, 60)
    out = folder / "out"
    predict.predict(model, path, out, outputs=["npy"], start="1", end="50f")
    frames = list(video.frames(path))[25:50]
    want = [cv2.resize(m, SIZE) for m in model.maps(iter(frames))]
    np.testing.assert_array_equal(np.load(out / "maps.npy"), want)
    assert record_of(out)["start"] == {"frame": 25, "seconds": 1.0}
    with pytest.raises(video.VideoError, match="no frame from --start=9"):
        predict.predict(model, path, folder / "none", start="9")
    assert folders.listed(folder / "none") == []


# === Inputs ===


def test_uneven_times_are_kept(model, folder):
    times = [0, 0.033, 0.1, 0.133, 0.333, 0.349, 0.366, 0.866]
    path = clip_of(folder, 8, times=times)
    out = folder / "out"
    videos = {
        "overlay": "overlay.mp4",
        "saliency": "saliency.mp4",
        "saliency16": "saliency16.mkv",
        "encoded": "encoded.mp4",
        "reframed": "reframed.mp4",
        "report": "page.mp4",
    }
    assert predict.predict(model, path, out, outputs=list(videos)) == ""
    page = (out / "report.html").read_text("utf-8")
    (movie,) = re.findall('src="data:video/mp4;base64,([^"]*)"', page)
    (out / "page.mp4").write_bytes(base64.b64decode(movie))
    for name in videos.values():
        found = [time for _, time in video.Video(out / name).timed()]
        np.testing.assert_allclose(found, times, atol=2e-3)


def test_names_that_are_not_utf8(model, folder):
    path = clip_of(folder, 3, name="caf\udce9.mp4")
    out = folder / "out\udce9"
    predict.predict(model, path, out, outputs=["overlay", "json", "report"])
    assert record_of(out)["video"] == str(path)
    assert r"caf\udce9.mp4" in (out / "report.html").read_text("utf-8")


def test_a_phones_video_stands_upright(model, folder):
    path = clip_of(folder, 3)
    matrix.turned(matrix.MATRICES["a right turn"])(path)
    out = folder / "out"
    predict.predict(model, path, out, outputs=["overlay", "npy"])
    assert video.Video(out / "overlay.mp4").size == (36, 64)
    assert np.load(out / "maps.npy").shape == (3, 64, 36)


def test_pixels_need_not_be_square(model, folder):
    wide = fractions.Fraction(4, 3)
    path, out = clip_of(folder, 3, pixel_aspect=wide), folder / "out"
    wanted = ("overlay", "side_by_side", "saliency", "encoded", "reframed")
    options = {"aspect": "1:1"}
    predict.predict(model, path, out, outputs=wanted, options=options)
    for name in wanted:
        assert video.Video(out / f"{name}.mp4").pixel_aspect == wide, name
    assert record_of(out)["pixel_aspect"] == [4, 3]
    # Three times as many pixels of 4 by 3 make a square.
    assert video.Video(out / "reframed.mp4").size == (28, 36)
    crop = json.loads((out / "reframed.json").read_text())
    assert crop["pixel_aspect"] == [4, 3] and crop["crop"] == [28, 36]
    # Maps of the network's own size are no frames of the source.
    options = {"map_size": "model"}
    predict.predict(model, path, out, outputs=["saliency"], options=options)
    assert video.Video(out / "saliency.mp4").pixel_aspect == 1


def pictures_in(folder, count):
    folder.mkdir(parents=True)
    for number in range(count):
        images.write_png(folder / f"{number}.png", picture(number))
    return folder


def test_pictures_and_pipes_give_the_same_maps(model, folder):
    frames = np.stack([picture(number) for number in range(12)])
    want = [cv2.resize(m, SIZE) for m in model.maps(iter(frames))]
    given = {
        "pictures": sources.open_source([str(pictures_in(folder / "p", 12))]),
        "raw": sources_test.piped(frames.tobytes(), size="64x36", rate=25),
    }
    for name, source in given.items():
        out = folder / name
        assert predict.predict(model, source, out, outputs=["npy"]) == ""
        np.testing.assert_array_equal(np.load(out / "maps.npy"), want)


# === What goes wrong ===


def noisy(folder, count, part=1.0):
    """A film whose bytes are spread evenly, or the first part of them."""
    path = folder / "noisy.avi"
    fourcc = cv2.VideoWriter.fourcc(*"XVID")
    film = cv2.VideoWriter(os.fspath(path), fourcc, 25, SIZE)
    rng = np.random.default_rng(0)
    for _ in range(count):
        film.write(rng.integers(0, 256, (36, 64, 3), np.uint8))
    film.release()
    os.truncate(path, int(part * path.stat().st_size))
    return path


def test_of_a_damaged_video_what_can_be_had(model, folder):
    path = noisy(folder, 100, part=0.6)
    count = len(list(sources.File(path)))
    assert 40 < count < 80
    out, stream = folder / "out", io.BytesIO()
    damage = predict.predict(
        model, path, out, outputs=ALL, options={"stream": stream}
    )
    assert f"{count} of 100 frames" in damage
    assert f"from frame {count} " in damage
    assert record_of(out)["damage"] == damage
    assert record_of(out)["frames"] == count
    assert len(np.load(out / "maps.npy")) == count
    for name in FILMS:
        (path,) = out.glob(f"{name}.m*")
        assert len(list(video.Video(path))) == count
    for name in ("maps", "maps16", "noisy"):
        assert len(folders.listed(out / name)) == count
    assert len(stream.getvalue()) == count * 36 * 64


def test_a_start_behind_all_that_can_be_read(model, folder):
    """The message names the video once."""
    path = noisy(folder, 60, part=0.5)
    with pytest.raises(video.VideoError, match="of 60 frames") as error:
        predict.predict(model, path, folder / "out", start="55f")
    assert str(error.value).count(os.fspath(path)) == 1


def test_flags_that_nothing_uses(model, folder):
    film = sources.File(clip_of(folder, 2))
    pictures = sources.Images([*pictures_in(folder / "p", 1).iterdir()])
    raw = sources_test.piped(bytes(6912), size="64x36", rate=25)
    of_raw = {"rate", "size", "pixel_format"}
    every = {*predict._OPTIONS, *of_raw, "start", "report"}
    unused = predict.unused_flags

    def names(*arguments):
        found = unused(*arguments)
        return {text.split()[0].removeprefix("--") for text in found}

    assert names((), ["npy"], film) == set()
    assert names(every, list(run.KINDS), raw) == set()
    assert names(every, list(run.KINDS), film) == of_raw
    assert names(["rate", "size"], ["maps"], pictures) == {"size"}
    assert names(["normalize", "map_size"], ["maps"], film) == set()
    for given, output, told in (
        (["view", "alpha"], "report", "--view (overlay, side_by_side)"),
        (["areas"], "maps", "--areas (json, report)"),
    ):
        assert unused(given, [output], film) == [told]
    of_crop = {"aspect", "stiffness", "lookahead", "ease", "cut"}
    assert names(every, ["overlay"], raw) >= of_crop
    assert not names(every, ["reframed"], raw) & of_crop


def test_the_program_between_two_pipes(folder):
    """A cut off frame at the end: all before it are written, and it is said."""
    frames = np.stack([picture(number) for number in range(5)])
    pipe = "--video=-", "--size=64x36", "--rate=25"
    done = begun(folder, "stdout,npy", *pipe, stdin=PIPE, stdout=PIPE)
    maps, message = done.communicate(frames.tobytes()[:-1])
    message = message.decode()
    assert done.returncode == predict.INCOMPLETE, message
    assert "damaged, from frame 4 (counted from 0) on" in message
    array = np.load(folder / "out" / "maps.npy")
    assert array.shape == (4, 36, 64)
    assert maps == images.to_uint8(array).tobytes()
    about = record_of(folder / "out")["model"]
    assert about["model"] == "last" and len(about["sha256"]) == 64


def test_where_the_program_writes_without_output(model, folder, monkeypatch):
    make_run(folder)
    path = clip_of(folder, 3)
    load = "lsts_tf.predictor.Predictor.load"
    monkeypatch.setattr(load, lambda *_, **__: model)

    def call(place, *arguments):
        monkeypatch.chdir(place)
        flag_scope.run(predict, f"--run_dir={folder}", *arguments)

    # A report alone needs no folder.
    page = folder / "pages" / "film.html"
    call(folder, f"--report={page}", f"--video={path}")
    assert "</html>" in page.read_text("utf-8")
    assert folders.listed(page.parent) == ["film.html"]
    call(folder, path.name, "--outputs=npy,report", "--report=page.html")
    written = folders.listed(folder / "a film_saliency")
    assert written == ["maps.npy", run.RECORD]
    # A folder of one film: that of its folder's name.
    (folder / "films").mkdir()
    path.rename(folder / "films" / path.name)
    call(folder / "films", "--outputs=npy", ".")
    written = folders.listed(folder / "films" / "films_saliency")
    assert written == [".lock", "a film"]


def test_a_report_beside_other_outputs(model, folder):
    page = folder / "film.html"
    path, out = clip_of(folder, 3), folder / "out"
    predict.predict(model, path, out, outputs=("npy", "report"), report=page)
    assert "</html>" in page.read_text("utf-8")
    assert folders.listed(out) == ["maps.npy", "prediction.json"]
    assert record_of(out)["outputs"] == {"npy": "maps.npy", "report": str(page)}


def test_a_folder_that_cannot_be_written(model, folder):
    path = clip_of(folder, 3)
    (folder / "file").write_text("not a folder")
    for out in (folder / "file", folder / "file" / "out"):
        with pytest.raises(OSError, match="file"):
            predict.predict(model, path, out)
    assert (folder / "file").read_text() == "not a folder"


@pytest.mark.parametrize("normalize", ["none", "clip"])
def test_a_pipe_whose_reader_has_gone(model, folder, normalize):
    stream = mock.Mock(
        write=mock.Mock(side_effect=BrokenPipeError(32, "Broken pipe"))
    )
    options = {"stream": stream, "normalize": normalize}
    path, wanted = clip_of(folder, 2), {"outputs": ["stdout"]}
    with pytest.raises(BrokenPipeError, match="Broken pipe: 'standard output'"):
        predict.predict(model, path, None, **wanted, options=options)


@pytest.mark.parametrize("first", [True, False])
def test_if_finishing_fails_nothing_appears(model, folder, monkeypatch, first):
    """The disk is full when all frames have come."""
    path, out = clip_of(folder, 3), folder / "out"
    full = mock.Mock(side_effect=OSError(28, "No space left on device"))
    monkeypatch.setattr(pictures.Array, "_finish", full)
    others = [n for n in run.KINDS if n not in ("npy", "stdout")]
    wanted = ["npy", *others] if first else [*others, "npy"]
    with pytest.raises(OSError, match="No space left"):
        predict.predict(model, path, out, outputs=wanted)
    assert folders.listed(out) == []


class Stopped(sources.File):
    """Ctrl-C when a frame is read."""

    def __init__(self, path, frame):
        super().__init__(path)
        self.frame = frame

    def __iter__(self):
        for number, timed in enumerate(super().__iter__()):
            if number == self.frame:
                signal.raise_signal(signal.SIGINT)
            yield timed


def started(folder, outputs):
    """The program on a film of many frames; a window and more have maps."""
    process = begun(folder, outputs, f"--video={folder / 'noisy.avi'}")
    while not any((folder / "out").glob(".maps.*part/maps/0200.png")):
        assert process.poll() is None, process.stderr.read().decode()
        time.sleep(0.01)
    return process


@pytest.mark.parametrize(
    ("number", "code", "outputs", "left"),
    [
        (signal.SIGINT, program.INTERRUPTED, "maps", [".maps.part"]),
        (signal.SIGTERM, program.TERMINATED, "maps,overlay,report", []),
    ],
)
def test_a_signal_in_the_middle(folder, number, code, outputs, left):
    """Nothing is left but what the same command goes on with."""
    noisy(folder, 4000)
    with started(folder, outputs) as process:
        process.send_signal(number)
        message = process.communicate(timeout=60)[1].decode()
    assert process.returncode == code, message
    assert "The same command resumes or starts over." in message
    assert "Traceback" not in message
    assert folders.listed(folder / "out") == left


def test_the_same_command_goes_on_after_a_kill(model, folder):
    path, whole = noisy(folder, 1000), folder / "whole"
    predict.predict(model, path, whole, outputs=["maps", "png16"])
    with started(folder, "maps,png16") as process:
        process.kill()
    assert folders.listed(folder / "out") == [".maps.part", ".maps16.part"]
    with started(folder, "maps,png16") as process:
        message = process.communicate(timeout=300)[1].decode()
    assert process.returncode == 0, message
    assert "Resuming at frame" in message
    for name in ("maps", "maps16"):
        assert folders.contents(folder / "out" / name) == folders.contents(
            whole / name
        )


# === Going on ===

ABOUT = {"model": "last", "sha256": "0123"}
RESUMABLE = ("maps", "png16", "dhf1k")


def stop_at(model, path, out, frame, **kwargs):
    with pytest.raises(KeyboardInterrupt):
        predict.predict(model, Stopped(path, frame), out, **kwargs)
    visible = [name for name in folders.listed(out) if not name.startswith(".")]
    assert visible == []


@pytest.mark.parametrize("every", [1, 3])
@pytest.mark.parametrize("mode", ["mirror", "copy", "skip"])
def test_folders_of_maps_go_on(model, folder, caplog, mode, every):
    path = clip_of(folder, 150)
    out, whole = folder / "out", folder / "whole"
    kwargs = {"outputs": RESUMABLE, "about": ABOUT}
    kwargs |= {"first_frames": mode, "every": every}
    predict.predict(model, path, whole, **kwargs)
    stop_at(model, path, out, 135, **kwargs)
    caplog.set_level("INFO", logger="absl")
    predict.predict(model, path, out, **kwargs)
    assert "Resuming at frame 1" in caplog.text
    for name in ("maps", "maps16", "a film"):
        assert folders.contents(out / name) == folders.contents(whole / name)
    assert record_of(out)["frames"] == record_of(whole)["frames"]


@pytest.mark.parametrize(
    "change",
    [
        {"about": {"model": "best"}},
        {"about": {}},
        {"options": {"map_size": "model"}},
        {"start": "1f"},
        {"outputs": ("maps", "overlay")},
    ],
)
def test_another_job_starts_anew(model, folder, caplog, change):
    path = clip_of(folder, 120)
    kwargs = {"outputs": RESUMABLE, "about": ABOUT}
    out = folder / "out"
    stop_at(model, path, out, 110, **kwargs)
    caplog.set_level("INFO", logger="absl")
    predict.predict(model, path, out, **(kwargs | change))
    assert "Resuming" not in caplog.text
    count = 120 - ("start" in change)
    assert len(folders.listed(out / "maps")) == count


def test_a_front_end_without_windows_starts_anew(folder):
    """Its maps depend on all that came before."""
    model = cheap_prediction.predictor(front_end="continuous")
    path, out = clip_of(folder, 120), folder / "out"
    stop_at(model, path, out, 110, outputs=["maps"], about=ABOUT)
    assert folders.listed(out) == []
