"""OSIE, Crowd and Scene: maps by the recipe, and every refusal."""

import pathlib
import re

import cv2
import numpy as np
import PIL.ExifTags
import PIL.Image
import pytest
import tensorflow as tf

from lsts_tf import windows
from lsts_tf.features import dataset
from scene import scene_dataset_builder
from tests import clip_folders, still_folders
from tests.data import conftest

ROOT = pathlib.Path(__file__).parents[2]
DATASET = "osie"
OSIE = (600, 800)


SCENE = (30, 40)


@pytest.fixture
def osie(manual):
    """One photograph and where two people looked, ready to be spoilt."""
    gaze = {1002: still_folders.look(OSIE, 1002, 2)}
    return still_folders.write_structs(manual, gaze, OSIE)


@pytest.fixture
def scene(manual):
    gaze = {1: still_folders.look(SCENE, 1)}
    return still_folders.write_scene(manual, gaze, {1: SCENE})


def picture(example, feature):
    (found,) = clip_folders.pictures(example, feature)
    return found


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
        assert picture(example, feature).shape == (600, 800)


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
    gaze = {1002 if name == "osie" else 1: paths}
    if name == "scene":
        still_folders.write_scene(manual, gaze, {1: size})
    else:
        still_folders.write_structs(manual, gaze, size)
    (example,) = build(name)["train"].values()
    places = [(y, x) for x, y in points]
    fixated = np.zeros(size, np.uint8)
    fixated[tuple(np.transpose(places))] = 255
    np.testing.assert_array_equal(picture(example, "fixations"), fixated)
    want = np.floor(clip_folders.gaussians(places, size, sigma) + 0.5)
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
        clip_folders.write_picture(path, cv2.cvtColor(image, 6))
    elif kind == "png":
        path.write_bytes(cv2.imencode(".png", image)[1].tobytes())
    else:
        exif = PIL.Image.Exif()
        exif[PIL.ExifTags.Base.Orientation] = kind
        PIL.Image.fromarray(image[..., ::-1]).save(path, exif=exif)


@pytest.mark.parametrize("kind", ["grey", "png", 1, 3, 6])
def test_only_what_is_no_plain_jpeg_is_written_anew(scene, build, kind):
    path = scene / "data" / "stimuli" / "001.jpg"
    image = still_folders.draw(SCENE, 1)
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


def test_another_size(osie, refused):
    path = osie / "data" / "stimuli" / "1002.jpg"
    clip_folders.write_picture(path, still_folders.draw((48, 64), 1))
    refused("Image 1002.jpg must be 800x600", "Received: 64x48")


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


@pytest.mark.parametrize(
    ("file", "case"),
    [
        (file, case)
        for file in ("stimuli/001.jpg", "tidy/fixations.mat")
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
    refused("3 images in .* of 1;", "no fixations of image 1001.jpg, 1700.jpg")


def test_fixations_without_photographs(manual, refused):
    gaze = {n: still_folders.look(OSIE, n) for n in (1001, 1002, 1003)}
    still_folders.write_structs(manual, gaze, OSIE)
    (manual / "data" / "stimuli" / "1003.jpg").unlink()
    refused("2 images in .* of 3;", r"no file of image 1003.jpg\.")


def test_nobody_looked_again(manual, refused):
    gaze = {1002: [np.array([[5.0, 5.0], [900, 5]]), ZERO]}
    still_folders.write_structs(manual, gaze, OSIE)
    refused("Image 1002.jpg must have", "of 2 observers", "800x600")


# === fixations.mat ===


def structs(change):
    """OSIE's variable, in which the struct of its one image is changed."""
    cells = still_folders.structs({1002: still_folders.look(OSIE, 1002, 2)})
    change(cells[0, 0])
    return cells


def of_second(**values):
    return lambda image: image["subjects"][1, 0].update(values)


# What is changed in the struct of an image, and where it is told of.
CHANGES = {
    "fixations{1}": (lambda i: i.pop("img"), lambda i: i.update(img=1002)),
    "{1}, image ../1002.jpg": (lambda i: i.update(img="../1002.jpg"),),
    "image 1002.jpg": (lambda i: i.pop("subjects"),),
    "image 1002.jpg, subjects{1}": (
        lambda i: i.update(subjects=still_folders.column([3.0])),
    ),
    "image 1002.jpg, subjects{2}": (
        lambda i: i["subjects"][1, 0].pop("fix_y"),
        of_second(fix_y=np.ones((1, 4))),
        of_second(fix_x=np.ones((2, 3)), fix_y=np.ones((2, 3))),
        of_second(fix_x="12345", fix_y="12345"),
        of_second(fix_x=np.full((1, 5), np.nan)),
        of_second(fix_x=1j * np.ones(5)),
    ),
}
TWICE = still_folders.structs({1002: []}).repeat(2, 0)
INFINITE = np.full((2, 4), np.inf)
IN_SCENE = "{1, 1}, image 001.jpg"


@pytest.mark.parametrize(
    ("name", "fixations", "words"),
    [
        *(
            ("osie", structs(change), where)
            for where, changes in CHANGES.items()
            for change in changes
        ),
        ("osie", np.zeros((1, 4)), "fixations{1}"),
        ("osie", still_folders.column([np.ones((2, 2))]), "fixations{1}"),
        ("osie", TWICE, "fixations{2}, image 1002.jpg"),
        ("osie", None, "must hold `fixations`"),
        ("scene", np.zeros((1, 4)), "a row of cells"),
        ("scene", still_folders.column([np.ones((2, 4))] * 501), "of cells"),
        *(
            ("scene", still_folders.column([cell]), IN_SCENE)
            for cell in (np.ones((5, 3)), "abcd", INFINITE, {"a": 1})
        ),
    ],
)
def test_another_structure(refused, request, name, fixations, words):
    root = request.getfixturevalue(name)
    (path,) = root.glob("data/*/fixations.mat")
    variable = {"gaze": 0} if fixations is None else {"fixations": fixations}
    still_folders.write_mat(path, **variable)
    at = re.escape(str(path))
    refused("fixations.mat must h", re.escape(words), at, name=name)


# === Who reads them ===


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """A data folder of dummy data: Scene's, and shots, one of a frame."""
    folder = tmp_path_factory.mktemp("built")
    for name in ("scene", "hollywood2"):
        dummy = ROOT / "data" / name / "dummy_data"
        clip_folders.build(conftest.builder_of(name), dummy, folder)
    return folder


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


@pytest.mark.parametrize("streams", [("flow",), ("rgb", "flow")])
def test_a_still_has_no_flow(built, streams):
    data = dataset.Dataset("scene", str(built))
    words = r"photograph has no motion.*scene:1\.0\.0.*training.*--streams=rgb"
    for short in ("skip", "mirror"):
        with pytest.raises(dataset.DatasetError, match=words):
            data.choose([1, 2], "training", geometry(streams, short))
    # A shot of one frame is a video.
    both = dataset.open_datasets(("hollywood2", "scene"), str(built))
    counts = both.frame_counts
    shots = [key for key in counts if key[0] == "hollywood2:1.0.0"]
    short = [key for key in shots if counts[key] == 1]
    assert (len(shots), len(short)) == (3, 1)
    for chosen in (shots, short):
        found = both.choose(chosen, "training", geometry(streams))
        assert sorted(found) == sorted(chosen)
    with pytest.raises(dataset.DatasetError, match="dataset scene:1"):
        both.choose(counts, "training", geometry(streams))
