"""Stores return what was written, or say which file is not sound."""

import concurrent.futures
import errno
import os
import pathlib

import cv2
import hypothesis
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
import numpy as np
import pytest

from lsts_tf.features import stores
from tests import folders

SHAPE = (2, 3)
MANIFEST = stores.Manifest(
    kind="features",
    dataset="dhf1k:1.0.0",
    shape=SHAPE,
    dtype="float16",
    details={"weights": {"sha256": "abc", "random": False}, "first": (1, 2)},
)
TRUTH = stores.Manifest(kind="truth", dataset="d:1", shape=(), dtype="uint8")


def _records(count, seed=0):
    rng = np.random.default_rng(seed)
    return rng.standard_normal((count, *SHAPE)).astype("float16")


@pytest.fixture
def store(tmp_path):
    return stores.Store.create(tmp_path / "store", MANIFEST)


def again(store):
    """As another process opens it."""
    return type(store).create(store.root, store.manifest, command="make it")


FILLED = {3: range(81, 86), 12: range(90, 91), 1000: range(79, 135, 8)}


@pytest.fixture
def filled(store):
    for video, targets in FILLED.items():
        store.write(video, targets, _records(len(targets), video))
    return store


# What comes back.


def test_returns_what_was_written(filled):
    assert 12 in filled
    assert 4 not in filled
    for store in (filled, again(filled)):
        for video, targets in FILLED.items():
            assert store.targets(video) == targets
            np.testing.assert_array_equal(
                store.read(video, range(len(targets))),
                _records(len(targets), video),
            )
    # NumPy reads a file, too.
    array = np.load(filled.root / "0003.npy", mmap_mode="r")
    assert array["values"].dtype == np.float16
    np.testing.assert_array_equal(array["values"], _records(5, 3))
    np.testing.assert_array_equal(array["target"], range(81, 86))


@hypothesis.given(
    data=hnp.arrays(
        "float16",
        st.tuples(st.integers(1, 9), *map(st.just, SHAPE)),
        elements=st.floats(-60000, 60000, width=16),
    ),
    order=st.lists(st.integers(0, 8)),
)
@hypothesis.settings(deadline=None, max_examples=30)
def test_any_records_in_any_order(tmp_path_factory, data, order):
    store = stores.Store.create(tmp_path_factory.mktemp("any"), MANIFEST)
    store.write(5, range(len(data)), data)
    order = [i % len(data) for i in order]
    np.testing.assert_array_equal(store.read(5, order), data[order])


def test_reading_from_threads_leaves_no_file_open(store):
    def open_files():
        return sum(1 for _ in pathlib.Path("/proc/self/fd").iterdir())

    for video in range(8):
        store.write(video, range(20), np.full((20, *SHAPE), video))
    before = open_files()
    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        got = list(pool.map(store.read, range(8), [[3, 19, 0] * 9] * 8))
    assert open_files() <= before
    for video, records in enumerate(got):
        np.testing.assert_array_equal(records, video)


# What is refused.


def broken(records):
    yield from records
    raise ValueError("video broke")


@pytest.mark.parametrize(
    ("records", "message"),
    [
        (np.zeros((3, 2, 4)), r"\[2, 3\].*\[2, 4\] at frame 7"),
        (np.zeros((4, *SHAPE)), "have 3 records.*Received: 4"),
        (np.zeros((2, *SHAPE)), "have 3 records.*Received: 2"),
        (np.full((3, *SHAPE), 65520.0), "65504.*65520 at frame 7"),
        (np.full((3, *SHAPE), np.nan), "finite.*nan"),
        (broken(_records(3)), "video broke"),
    ],
)
def test_bad_records_leave_nothing_behind(store, records, message):
    before = folders.files(store.root)
    with pytest.raises(ValueError, match=message):
        store.write(9, range(7, 10), records)
    assert 9 not in store
    assert folders.files(store.root) == before


@pytest.mark.parametrize("index", [5, -1])
def test_records_outside_a_video(filled, index):
    with pytest.raises(ValueError, match=r"Video 3 .* has records 0 to 4"):
        filled.read(3, [0, index])


def test_a_missing_video(filled):
    with pytest.raises(stores.StoreError, match=r"Video 4 .*lsts_tf\.extract"):
        filled.read(4, [0])


def test_a_video_has_a_record(store):
    with pytest.raises(ValueError, match=r"one at least\. Received: 0"):
        store.write(1, range(0), [])


# Manifests.


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"shape": (2, 4)}, r"shape: \[2, 3\] there, \[2, 4\] wanted"),
        ({"dataset": "dhf1k:1.0.1"}, "dataset"),
        ({"dtype": "float32"}, "dtype"),
        ({"format": 99}, "format"),
        (
            {"details": {"weights": {"sha256": "abc", "random": True}}},
            r"details\.first: \[1, 2\] there, 'absent' wanted; "
            r"details\.weights\.random: False there, True wanted",
        ),
    ],
)
def test_another_manifest_is_refused(filled, change, message):
    fields = {**MANIFEST.__dict__, **change}
    with pytest.raises(stores.StoreError, match=message) as error:
        stores.Store.create(filled.root, stores.Manifest(**fields))
    assert "python -m lsts_tf.extract" in str(error.value)
    assert str(filled.root) in str(error.value)
    assert "sha256" not in str(error.value)  # the fields that agree
    assert 1000 in again(filled)


@pytest.mark.parametrize("text", ["", "{}", "[]", '{"kind": "flow"'])
def test_damaged_manifest(filled, text):
    (filled.root / "manifest.json").write_text(text)
    with pytest.raises(stores.StoreError, match=r"manifest\.json is damaged"):
        again(filled)


# Damage.


def _cut(path):
    path.write_bytes(path.read_bytes()[:-1])


def _another_shape(path):
    np.save(path, np.zeros((5, 2, 3), np.float16))


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        (_cut, "length is greater than file size"),
        (lambda p: p.write_bytes(p.read_bytes() + b"x"), "bytes instead of"),
        (lambda p: p.write_bytes(b""), "EOF"),
        (lambda p: p.write_bytes(b"x" * 300), "magic string"),
        (_another_shape, "holds float16"),
    ],
)
def test_damage_is_named_and_mended(filled, damage, reason, caplog):
    damage(filled.root / "0003.npy")
    opened = again(filled)
    with pytest.raises(stores.StoreError, match=reason) as error:
        opened.read(3, [0])
    assert "Video 3 in the features store" in str(error.value)
    assert "0003.npy" in str(error.value)
    assert "with `make it`" in str(error.value)
    # It counts as absent, and is so made again.
    assert 3 not in opened
    assert "Video 3" in caplog.text
    opened.read(12, [0])
    opened.write(3, range(5), _records(5, 3))
    assert 3 in opened
    np.testing.assert_array_equal(opened.read(3, [4]), _records(5, 3)[4:])


def test_a_file_cut_off_while_open(filled):
    filled.read(3, [4])
    os.truncate(filled.root / "0003.npy", 150)
    with pytest.raises(stores.StoreError, match=r"0003\.npy: cut off"):
        filled.read(3, [4])


# Processes that die, compete or find the disk full.


def test_who_stores_a_video_removes_what_others_left_of_it(store):
    (store.root / ".0007.12345.npy").write_bytes(b"of a process that died")
    (store.root / ".0008.12345.npy").write_bytes(b"of another video")
    store.write(7, range(2), _records(2))
    assert {path.name for path in store.root.glob(".*")} == {".0008.12345.npy"}
    # So does who makes a store with what was left of its manifest.
    (store.root / "manifest.json").rename(store.root / ".manifest.12345.json")
    again(store)
    assert {path.name for path in store.root.glob(".*")} == {".0008.12345.npy"}


def test_two_processes_may_store_a_video_at_a_time(store):
    other = again(store)

    def records(video):
        """As another process does that ends first; of video 8 it dies."""
        yield from _records(2)
        next(store.root.glob(f".{video:04d}.*")).unlink()
        if video == 7:
            other.path(7).write_bytes(b"")

    store.write(7, range(2), records(7))
    with pytest.raises(FileNotFoundError):
        store.write(8, range(2), records(8))


@pytest.mark.skipif(
    not os.access("/dev/full", os.W_OK), reason="no /dev/full here"
)
def test_full_disk_while_writing(store):
    before = folders.files(store.root)
    temporary = store.root / f".0004.{os.getpid()}.npy"
    temporary.symlink_to("/dev/full")
    with pytest.raises(OSError, match=r"No space.*0004\.npy") as error:
        store.write(4, range(2), _records(2))
    assert error.value.errno == errno.ENOSPC
    assert folders.files(store.root) == before


# Truth.


def _png(image):
    return cv2.imencode(".png", image)[1].tobytes()


@pytest.fixture
def truth(tmp_path):
    store = stores.TruthStore.create(tmp_path / "truth", TRUTH)
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (2, 4, 36, 64), dtype=np.uint8)
    maps, fixations = ([_png(i) for i in half] for half in images)
    store.write(5, maps=maps, fixations=fixations)
    return store, images


def test_truth_returns_what_was_written(truth):
    store, (maps, fixations) = truth
    assert store.length(5) == 4
    for frames in ([0], [3, 1, 1], range(4), np.array([2, 0])):
        np.testing.assert_array_equal(store.maps(5, frames), maps[frames])
        np.testing.assert_array_equal(
            store.fixations(5, frames), fixations[frames]
        )
    assert again(store).maps(5, [0]).dtype == np.uint8


@pytest.mark.parametrize("frames", [[4], [-1]])
def test_truth_outside_the_video(truth, frames):
    with pytest.raises(ValueError, match=r"Video 5 .* has frames 0 to 3"):
        truth[0].maps(5, frames)


@pytest.mark.parametrize(("maps", "fixations"), [(3, 2), (0, 0)])
def test_truth_must_come_in_pairs(truth, maps, fixations):
    message = f"Video 6 .*{maps} maps, {fixations} fixations"
    with pytest.raises(ValueError, match=message):
        truth[0].write(6, maps=[b"x"] * maps, fixations=[b"x"] * fixations)
    assert 6 not in truth[0]


def test_truth_that_is_no_image(truth):
    store, images = truth
    good = _png(images[0, 0])
    other = _png(images[0, 0, :-1])
    store.write(6, maps=[good, b"no png", other], fixations=[good] * 3)
    with pytest.raises(stores.StoreError, match=r"Video 6.*PNG.* at frame 1"):
        store.maps(6, [0, 1])
    with pytest.raises(stores.StoreError, match="at frame 2, or one of"):
        store.maps(6, [0, 2])


def test_truth_that_was_cut_off(truth):
    store, _ = truth
    _cut(store.root / "0005.bin")
    opened = again(store)
    assert 5 not in opened
    with pytest.raises(stores.StoreError, match=r"0005\.bin: \d+ bytes"):
        opened.maps(5, [0])
