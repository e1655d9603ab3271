import numpy as np
import pytest
import scipy.io
import scipy.sparse

from lsts_tf.media import images
from lsts_tf.scoring import truth


def test_rows_follow_videos_and_frames():
    maps = {
        (9, 0): np.eye(20, 30),
        (2, 4): np.eye(20, 30),
        (2, 1): np.zeros((20, 30)),
        (2, 2): np.zeros((40, 60)),
    }
    maps[2, 2][[0, 39], [0, 59]] = 255
    found = truth.FixationSet.of_maps((*at, map_) for at, map_ in maps.items())
    assert [len(found[row]) for row in range(len(found))] == [0, 2, 20, 20]
    assert found[0].shape == (0, 2)
    assert found.size(1) == (40, 60)
    assert [found.row(2, frame) for frame in (1, 2, 4)] == [0, 1, 2]
    for absent in ((2, 3), (2, 5), (3, 1)):
        with pytest.raises(KeyError):
            found.row(*absent)
    # Neighbours stay in their video.
    assert [found.neighbour(row) for row in range(4)] == [1, 2, 1, 3]
    # Fixations of another size are scaled.
    assert found.gathered([0, 1], (20, 30)).tolist() == [[0, 0], [19, 29]]
    assert found.gathered([1], (40, 60)).tolist() == [[0, 0], [39, 59]]


@pytest.fixture
def matlab(tmp_path):
    """The file of a frame's fixations, and the clip that it is of."""
    folder = tmp_path / "0601"
    (folder / "fixation" / "maps").mkdir(parents=True)
    (folder / "maps").mkdir()
    images.write_png(folder / "maps" / "0001.png", np.ones((4, 6), np.uint8))
    path = folder / "fixation" / "maps" / "0001.mat"
    path.touch()
    return path, truth.of_folder(tmp_path, fixations="mat").clips[601]


def test_official_sample_from_pictures_from_mat_and_from_points(
    shared, tmp_path
):
    """Ten frames of DHF1K; its density maps are rebuilt bit for bit."""
    root = shared / "real_clips" / "official_0601_sample" / "annotation"
    read = [truth.of_folder(root, fixations=kind) for kind in ("png", "mat")]
    assert [of.about["fixations"] for of in read] == ["png", "mat"]
    png, mat = (of.clips[601] for of in read)
    assert len(png.frames) == 10
    points = {frame: png.fixations(frame)[0] for frame in png.frames}
    rows = [f"601,{n + 1},{x},{y}\n" for n in points for y, x in points[n]]
    path = tmp_path / "points.csv"
    path.write_text("".join(["video,frame,x,y\n", *rows]))
    listed = truth.of_table(path).clips[601]
    for frame, want in points.items():
        for clip in (mat, listed):
            found, size = clip.fixations(frame)
            assert size == (360, 640)
            np.testing.assert_array_equal(
                np.unique(found, axis=0), np.unique(want, axis=0)
            )
        official = png.density(frame)
        np.testing.assert_array_equal(listed.density(frame), official)


FULL = np.zeros((4, 6))
FULL[1, 5] = FULL[3, 0] = 1


@pytest.mark.parametrize("kind", ["csc_matrix", "coo_array", "csr_matrix"])
def test_a_sparse_matrix_is_read_like_a_full_one(matlab, kind):
    path, clip = matlab
    scipy.io.savemat(path, {"I": getattr(scipy.sparse, kind)(FULL)})
    points, size = clip.fixations(0)
    assert (points.tolist(), size) == ([[1, 5], [3, 0]], (4, 6))


def test_a_sparse_matrix_that_is_none(matlab):
    """One larger than any film, and one with a place outside of it."""
    path, clip = matlab
    outside = scipy.sparse.csc_matrix(FULL)
    outside.indices[0] = 10**6
    for matrix in (scipy.sparse.csc_matrix((2**20, 2**20)), outside):
        scipy.io.savemat(path, {"I": matrix})
        with pytest.raises(images.MapError, match=r"0001\.mat: .*I "):
            clip.fixations(0)


@pytest.mark.parametrize(
    "tries", [50, pytest.param(2000, marks=pytest.mark.slow)]
)
@pytest.mark.parametrize("kind", [scipy.sparse.csc_matrix, np.uint8])
def test_damaged_matlab_files_are_refused_or_read(matlab, kind, tries):
    path, clip = matlab
    scipy.io.savemat(path, {"I": kind(FULL)})
    whole = np.frombuffer(path.read_bytes(), np.uint8)
    rng = np.random.default_rng(0)
    refused = 0
    for _ in range(tries):
        # What comes before is a text that nothing depends on.
        data = whole.copy()
        places = rng.integers(124, len(data), rng.integers(1, 5))
        data[places] = rng.integers(256, size=len(places))
        path.write_bytes(data[: rng.choice([len(data), places[0]])].tobytes())
        try:
            points, size = clip.fixations(0)
        except images.MapError:
            refused += 1
        else:
            assert (points < size).all()
    assert refused > tries / 10


# === Tables of points ===


@pytest.mark.parametrize("rows", ["", "1,1,,,\n"])
def test_a_list_without_a_point_of_a_video(tmp_path, rows):
    path = tmp_path / "points.csv"
    path.write_text(f"video,frame,x,y,observer\n{rows}")
    with pytest.raises(images.MapError, match="no point"):
        truth.of_table(path)


def test_a_frame_that_nobody_looked_at_needs_no_observer(tmp_path):
    path = tmp_path / "points.csv"
    path.write_text("video,frame,x,y,observer\n1,1,2,3,a\n1,2,,,\n")
    (clip,) = truth.of_table(path).clips.values()
    assert clip.observers
    assert [len(clip.by_observer(frame)) for frame in clip.frames] == [1, 0]
