"""OSIE, Crowd and Scene: maps by the recipe, and every refusal."""

import pathlib
import re

import cv2
import numpy as np
import pytest
import scipy.io
import tensorflow as tf

import gaze_dataset
from lsts_tf import windows
from lsts_tf.features import dataset
from scene import scene_dataset_builder
from tests import clip_folders, still_folders
from ucf_sports import ucf_sports_dataset_builder

ROOT = pathlib.Path(__file__).parents[2]
DATASET = "osie"
OSIE = (600, 800)


def write_osie(root, paths, number=1002):
    return still_folders.write_structs(root, {number: paths}, OSIE)


def write_scene(root, paths, size):
    return still_folders.write_scene(root, {1: paths}, {1: size})


@pytest.fixture
def osie(manual):
    """One photograph and where two people looked, ready to be spoilt."""
    return write_osie(manual, still_folders.look(OSIE, 1002, 2))


@pytest.fixture
def scene(manual):
    size = (30, 40)
    return write_scene(manual, still_folders.look(size, 1), size)


def picture(example, feature):
    (data,) = example[feature].numpy()
    return tf.io.decode_image(data).numpy().squeeze()


def reference(points, size, sigma):
    """The recipe, one Gaussian after the other, in float64."""
    rows, columns = np.mgrid[: size[0], : size[1]].astype(np.float64)
    total = np.zeros(size)
    for x, y in points:
        distance = (columns - x) ** 2 + (rows - y) ** 2
        total += np.exp(-distance / (2 * sigma**2))
    return np.floor(255 * total / total.max() + 0.5).astype(np.uint8)


def test_an_example_is_a_video_of_one_frame(osie, build):
    ((split, found),) = build().items()
    (example,) = found.values()
    assert split == "train"
    assert int(example["video"]) == 1002
    assert example["name"].numpy() == b"1002.jpg"
    assert float(example["fps"]) == 1
    assert int(example["num_frames"]) == 1
    (frame,) = example["frames"].numpy()
    assert frame == (osie / "data" / "stimuli" / "1002.jpg").read_bytes()
    for feature in ("maps", "fixations"):
        (data,) = example[feature].numpy()
        header = gaze_dataset.png_header(data)
        assert header.grey
        assert (header.width, header.height) == (800, 600)


def test_sizes_of_scene_vary_and_multiples_of_7_are_for_testing(manual, build):
    sizes = {n: (20 + n, 40 - n) for n in range(1, 16)}
    gaze = {n: still_folders.look(size, n) for n, size in sizes.items()}
    still_folders.write_scene(manual / "clone", gaze, sizes)
    found = build("scene")
    assert list(found["test"]) == [7, 14]
    assert list(found["train"]) == [n for n in sizes if n not in (7, 14)]
    for number, example in found["train"].items():
        assert picture(example, "frames").shape == (*sizes[number], 3)
        assert picture(example, "maps").shape == sizes[number]


# === Fixations and maps ===


ZERO = np.zeros((0, 2))
# {case: (dataset, size, where each observer looked, pixels, sigma)}
LOOKS = {
    # Each one's first is left out. MATLAB rounds halves up and counts from 1.
    # The corner, where two looked, counts twice.
    "osie": (
        *("osie", OSIE),
        [
            [(400, 300), (1, 1), (420.4, 30.4), (420.5, 430.5), (799.9, 600)],
            [(100, 100), (1.2, 0.6), (250, 40)],
            [(77, 77)],
            ZERO,
        ],
        [(0, 0), (419, 29), (420, 430), (799, 599), (0, 0), (249, 39)],
        24,
    ),
    "outside": (
        *("osie", OSIE),
        [
            [(-5, 300), (10, 20), (801, 20), (30, 0.4)],
            [(10, 300), (800.5, 1), (800.4, 600.4), (5, 600.5), (1e300, 5)],
        ],
        [(9, 19), (799, 599)],
        24,
    ),
    "crowd": (
        *("crowd", (768, 1024)),
        [[(500, 400), (900.2, 100.7), (30, 700)]],
        [(899, 100), (29, 699)],
        26,
    ),
    # Rows first, and the next whole number. Enlarged 20 times to the screen,
    # whose degree is 33.75 pixels.
    "scene": (
        *("scene", (54, 96)),
        [
            [(48, 27), (0.2, 0.3), (10, 20), (10.1, 20.9), (96, 54)],
            [(1, 1), (96.1, 5), (50, 0), (-0.1, 5), (70.5, 12.5)],
        ],
        [(0, 0), (9, 19), (10, 20), (95, 53), (70, 12)],
        33.75 / 20,
    ),
}


@pytest.mark.parametrize("case", LOOKS)
def test_fixations_and_maps_follow_the_recipe(manual, build, case):
    name, size, paths, points, sigma = LOOKS[case]
    paths = [np.array(path, float) for path in paths]
    if name == "scene":
        write_scene(manual, paths, size)
    else:
        number = {"osie": 1002, "crowd": 1}[name]
        still_folders.write_structs(manual, {number: paths}, size)
    (example,) = build(name)["train"].values()
    expected = np.zeros(size, np.uint8)
    for x, y in points:
        expected[y, x] = 255
    np.testing.assert_array_equal(picture(example, "fixations"), expected)
    want = reference(points, size, sigma)
    np.testing.assert_array_equal(picture(example, "maps"), want)


@pytest.mark.parametrize(
    ("size", "sigma"),
    [((256, 256), 8), ((768, 1024), 24), ((1080, 3840), 67.5), ((4, 2), 0.125)],
)
def test_a_degree_follows_from_how_far_a_photograph_was_enlarged(size, sigma):
    assert scene_dataset_builder.Builder.sigma(size) == pytest.approx(sigma)


# === Photographs ===


def spoil(image, path, kind):
    """Writes a photograph as the file of another kind."""
    if kind == "grey":
        still_folders.write_image(path, cv2.cvtColor(image, 6))
    elif kind == "png":
        path.write_bytes(cv2.imencode(".png", image)[1].tobytes())
    else:  # EXIF of one tag: orientation.
        data = cv2.imencode(".jpg", image)[1].tobytes()
        tag = b"\x01\x12\0\x03\0\0\0\x01" + bytes([0, kind, 0, 0])
        exif = b"Exif\0\0MM\0*\0\0\0\x08\0\x01" + tag + bytes(4)
        length = (len(exif) + 2).to_bytes(2, "big")
        path.write_bytes(data[:2] + b"\xff\xe1" + length + exif + data[2:])


@pytest.mark.parametrize("kind", ["grey", "png", 1, 3, 6])
def test_only_what_is_no_plain_jpeg_is_written_anew(manual, build, kind):
    size = (30, 40)
    write_scene(manual, still_folders.look(size, 1), size)
    path = manual / "data" / "stimuli" / "001.jpg"
    image = still_folders.draw(size, 1)
    spoil(image, path, kind)
    if kind in (3, 6):
        # The test's own file is one that OpenCV turns.
        turned = cv2.imread(str(path))
        assert turned.shape[:2] == ((30, 40) if kind == 3 else (40, 30))
        assert np.abs(turned[:5, :5].astype(int) - image[-5:, -5:]).max() < 9
    (example,) = build("scene")["train"].values()
    (data,) = example["frames"].numpy()
    assert (data == path.read_bytes()) == (kind == 1)
    # Not turned, by whichever decoder.
    decoded = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR)
    assert int(tf.image.extract_jpeg_shape(data)[2]) == 3
    if kind == "grey":
        image = cv2.cvtColor(cv2.cvtColor(image, 6), 8)
    assert np.abs(decoded.astype(int) - image).mean() < 4


def test_another_size(scene, refused):
    path = scene / "data" / "stimuli" / "001.jpg"
    still_folders.write_image(path, still_folders.draw((48, 64), 1))
    refused("Image 001.jpg must be 40x30", "Received: 64x48", name="scene")


SPOILT = {
    "missing": (None, "no file|at least one image"),
    "empty": (lambda _: b"", "whole JPEG .* 0 bytes|MATLAB file"),
    "text": (lambda _: b"no picture " * 40, "whole JPEG|MATLAB file"),
    "truncated": (lambda d: d[: len(d) // 2], "whole JPEG|MATLAB file"),
    "damaged": (lambda d: d[:200] + bytes(60) + d[260:], "MATLAB file"),
    "lfs": (
        lambda _: b"version https://git-lfs.github.com/spec/v1\noid sha256",
        "a pointer of Git LFS .*git lfs pull",
    ),
}


TIDY = ("tidy/fixations.mat", "tidy/imgInfo.mat")


@pytest.mark.parametrize(
    ("file", "case"),
    [
        (file, case)
        for file in (
            "stimuli/001.jpg",
            "tidy/fixations.mat",
            "tidy/imgInfo.mat",
        )
        for case in SPOILT
        # A photograph with a few zeros in it can be decoded.
        if (file, case) != ("stimuli/001.jpg", "damaged")
    ],
)
def test_damaged_files(scene, refused, file, case):
    spoil, words = SPOILT[case]
    path = scene / "data" / file
    data = path.read_bytes()
    path.unlink()
    if spoil:
        path.write_bytes(spoil(data))
    refused(words, re.escape(str(path.parent)), "[Cc]lone", name="scene")


# === Layout ===


def test_strays_are_passed_over(osie, build):
    folder = osie / "data" / "stimuli"
    for name in (".DS_Store", "._1002.jpg", "Thumbs.db", "readme.md"):
        (folder / name).touch()
    assert list(build()["train"]) == [1002]


def test_no_data(manual, refused):
    (manual / "something else").mkdir()
    refused("`data/stimuli/`", re.escape(str(manual)), "none")


@pytest.mark.parametrize(
    ("name", "file"),
    [
        *(("osie", f) for f in ("1000.jpg", "1701.jpg", "01002.jpg", "a.jpg")),
        *(("scene", f) for f in ("1.jpg", "0001.jpg", "000.jpg", "001.JPG")),
    ],
)
def test_other_names(manual, refused, request, name, file):
    root = request.getfixturevalue(name)
    (root / "data" / "stimuli" / file).touch()
    numbers = {"osie": "1001.jpg to 1700.jpg", "scene": "001.jpg to 500.jpg"}
    refused(numbers[name], re.escape(file), name=name)


def test_another_dataset_of_the_same_layout(osie, refused):
    refused("fixations.mat must .* an image, once", "1002.jpg", name="crowd")


def test_photographs_without_fixations(osie, refused):
    still_folders.write_images(osie, {1700: OSIE, 1001: OSIE})
    refused("3 images in .* of 1;", "no fixations of image 1001.jpg and 1 more")


def test_fixations_without_photographs(manual, refused):
    gaze = {n: still_folders.look(OSIE, n) for n in (1001, 1002, 1003)}
    still_folders.write_structs(manual, gaze, OSIE)
    (manual / "data" / "stimuli" / "1003.jpg").unlink()
    refused("2 images in .* of 3;", "no file of image 1003.jpg and 0 more")


def test_nobody_looked_again(manual, refused):
    write_osie(manual, [np.array([[5.0, 5.0], [900, 5]]), np.zeros((0, 2))])
    refused("Image 1002.jpg: somebody", "of 2 observers", "800x600")


# === fixations.mat ===


def structs(change):
    """The cells of a fixations.mat like OSIE's after a change."""
    cells = still_folders.structs({1002: still_folders.look(OSIE, 1002, 2)})
    change(cells[0, 0])
    return cells


def of_second(**values):
    return structs(lambda image: image["subjects"][1, 0].update(values))


HOSTILE = {
    "numbers": (np.zeros((1, 4)), "fixations{1}"),
    "no cells": (still_folders.column([np.zeros((2, 2))]), "fixations{1}"),
    "no name": (structs(lambda i: i.pop("img")), "fixations{1}"),
    "a number": (structs(lambda i: i.update(img=1002)), "fixations{1}"),
    "a path": (structs(lambda i: i.update(img="../1002.jpg")), "1002.jpg"),
    "twice": (np.repeat(structs(dict), 2, 0), "fixations{2}, image 1002.jpg"),
    "no people": (structs(lambda i: i.pop("subjects")), "image 1002.jpg"),
    "no vectors": (
        structs(lambda i: i.update(subjects=still_folders.column([3.0]))),
        "image 1002.jpg, subjects{1}",
    ),
    "no y": (
        structs(lambda i: i["subjects"][1, 0].pop("fix_y")),
        "image 1002.jpg, subjects{2}",
    ),
    "fewer y": (
        of_second(fix_y=np.ones((1, 4))),
        "image 1002.jpg, subjects{2}",
    ),
    "a matrix": (
        of_second(fix_x=np.ones((2, 3)), fix_y=np.ones((2, 3))),
        "image 1002.jpg, subjects{2}",
    ),
    "text": (
        of_second(fix_x="12345", fix_y="12345"),
        "image 1002.jpg, subjects{2}",
    ),
    "not a number": (
        of_second(fix_x=np.full((1, 5), np.nan)),
        "image 1002.jpg, subjects{2}",
    ),
    "complex": (
        of_second(fix_x=1j * np.ones(5)),
        "image 1002.jpg, subjects{2}",
    ),
}


@pytest.mark.parametrize("case", HOSTILE)
def test_another_structure(osie, refused, case):
    fixations, where = HOSTILE[case]
    path = osie / "data" / "eye" / "fixations.mat"
    still_folders.write_mat(path, fixations=fixations)
    refused("fixations.mat must have ", re.escape(where), re.escape(str(path)))


def test_another_variable(osie, refused):
    path = osie / "data" / "eye" / "fixations.mat"
    still_folders.write_mat(path, gaze=np.zeros(3))
    refused("must hold `fixations`", re.escape(str(path)))


@pytest.mark.parametrize(
    ("fixations", "words"),
    [
        (np.zeros((1, 4)), "a row of cells"),
        (still_folders.column([np.ones((5, 3))]), r"\{1, 1\}, image 001.jpg"),
        (still_folders.column(["abcd"]), r"\{1, 1\}, image 001.jpg"),
        (still_folders.column([np.full((2, 4), np.inf)]), r"\{1, 1\}, image"),
        (still_folders.column([{"a": 1}]), r"\{1, 1\}, image 001.jpg"),
        (still_folders.column([np.ones((2, 4))] * 2), "1 sizes .* 2 images"),
        (np.empty((501, 1), object), "a row of cells|cannot"),
    ],
)
def test_another_structure_of_scene(scene, refused, fixations, words):
    if fixations.shape[0] == 501:
        fixations = still_folders.column([np.ones((2, 4))] * 501)
    path = scene / "data" / "tidy" / "fixations.mat"
    still_folders.write_mat(path, fixations=fixations)
    refused(words, re.escape(str(path)), name="scene")


@pytest.mark.parametrize(
    "info", [{"size": np.ones((1, 3))}, {"sizes": 1}, 5.0, {"size": "ab"}]
)
def test_other_sizes_of_scene(scene, refused, info):
    path = scene / "data" / "tidy" / "imgInfo.mat"
    still_folders.write_mat(path, imgInfo=info)
    refused("imgInfo.mat must have", re.escape(str(path)), name="scene")


# === Dummy data ===


@pytest.mark.parametrize("name", ["osie", "crowd", "scene"])
def test_dummy_data_is_drawn_by_us(name, tmp_path):
    still_folders.dummies(tmp_path)
    new, old = tmp_path / name, ROOT / "data" / name
    files = [p for p in (old / "dummy_data").rglob("*") if p.is_file()]
    drawn = [p for p in new.rglob("*") if p.is_file()]
    assert {p.relative_to(old) for p in files} == {
        p.relative_to(new) for p in drawn
    }
    for path in drawn:
        committed = old / path.relative_to(new)
        if path.suffix == ".mat":  # Which holds the time of writing.
            found, want = map(scipy.io.loadmat, (committed, path))
            name = {"imgInfo.mat": "imgInfo"}.get(path.name, "fixations")
            assert repr(found[name]) == repr(want[name])
        else:
            assert cv2.PSNR(cv2.imread(committed), cv2.imread(path)) > 40


# === Who reads them ===


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """A data folder with Scene's dummy data and two clips, one of a frame."""
    folder = tmp_path_factory.mktemp("built")
    dummy = ROOT / "data" / "scene" / "dummy_data"
    clip_folders.build(scene_dataset_builder.Builder, dummy, folder / "tfds")
    for name, frames in (("Lifting-003", 1), ("Lifting-004", 3)):
        clip_folders.write_clip(
            folder / "raw" / "training" / name,
            [f"{index + 1:03d}" for index in range(frames)],
        )
    clip_folders.build(
        ucf_sports_dataset_builder.Builder, folder / "raw", folder / "tfds"
    )
    return folder / "tfds"


FLOW = [("flow",), ("rgb", "flow")]


def geometry(streams, short="mirror"):
    return windows.Geometry.of(streams, length=9, short=short)


def test_stills_have_windows_of_frames(built):
    data = dataset.Dataset("scene", str(built))
    videos = data.choose(range(1, 501), "training", geometry(("rgb",)))
    assert sorted(videos) == [1, 2, 3, 4, 5, 6, 7]
    (still,) = data.videos([3])
    assert still.num_frames == 1
    assert still.maps
    (frame,) = still.frames()
    assert frame.shape == (64, 64, 3)
    assert np.abs(frame[-1, -1].astype(int) - (120, 90, 90)).max() < 5


@pytest.mark.parametrize("streams", FLOW)
@pytest.mark.parametrize("short", ["skip", "mirror"])
def test_a_still_has_no_flow(built, streams, short):
    data = dataset.Dataset("scene", str(built))
    words = r"A still does not move.*scene:1\.0\.0.*training.*--streams=rgb"
    with pytest.raises(dataset.DatasetError, match=words):
        data.choose([1, 2], "training", geometry(streams, short))


@pytest.mark.parametrize("streams", FLOW)
def test_a_shot_of_one_frame_is_still_a_video(built, streams):
    names = ("ucf_sports", "scene")
    both = dataset.open_datasets(names, str(built))
    shots = [key for key in both.frame_counts if key[0] == "ucf_sports"]
    assert sorted(both.frame_counts[n] for n in shots) == [1, 3]
    chosen = both.choose(shots, "training", geometry(streams))
    assert sorted(chosen) == sorted(shots)
    single = [n for n in shots if both.frame_counts[n] == 1]
    assert both.choose(single, "training", geometry(streams)) == single
    with pytest.raises(dataset.DatasetError, match="dataset scene:1"):
        both.choose(both.frame_counts, "training", geometry(streams))
