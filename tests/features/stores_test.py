"""Stores return what was written, or say which file is not sound."""

import concurrent.futures
import errno
import hashlib
import json
import os
import pathlib
import pickle
import re
import signal
import subprocess
import sys
import textwrap

import cv2
import hypothesis
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
import numpy as np
import pytest

from lsts_tf.features import stores

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


def _put(store, video, records, **kwargs):
    with store.writer(video, count=len(records), **kwargs) as writer:
        writer.append(records)


@pytest.fixture
def store(tmp_path):
    return stores.Store.create(tmp_path / "store", MANIFEST)


@pytest.fixture
def filled(store):
    for video, count in ((3, 5), (12, 1), (1000, 7)):
        _put(store, video, _records(count, video), first=78 + video)
    return store


def _names(store):
    return sorted(p.name for p in store.root.iterdir())


def _open_files():
    return sum(1 for _ in pathlib.Path("/proc/self/fd").iterdir())


# What comes back.


def test_returns_what_was_written(filled):
    assert filled.videos() == (3, 12, 1000)
    assert 12 in filled
    assert 4 not in filled
    for store in (filled, stores.Store.open(filled.root, verify=True)):
        for video, count in ((3, 5), (12, 1), (1000, 7)):
            assert store.length(video) == count
            assert store.targets(video) == range(78 + video, 78 + video + count)
            np.testing.assert_array_equal(
                store.read(video, range(count)), _records(count, video)
            )
        assert store.verify() == []


def test_numpy_reads_a_data_file(filled):
    array = np.load(filled.root / "0003.npy")
    assert array.dtype == np.float16
    np.testing.assert_array_equal(array, _records(5, 3))


def test_stride_of_targets(store):
    _put(store, 1, _records(4), first=79, step=8)
    assert list(store.targets(1)) == [79, 87, 95, 103]


@hypothesis.given(
    data=hnp.arrays(
        "float16",
        st.tuples(st.integers(1, 9), *map(st.just, SHAPE)),
        elements=st.floats(-60000, 60000, width=16),
    ),
    cuts=st.lists(st.integers(0, 9)),
    order=st.lists(st.integers(0, 8)),
)
@hypothesis.settings(
    deadline=None,
    max_examples=30,
    suppress_health_check=[hypothesis.HealthCheck.function_scoped_fixture],
)
def test_any_pieces_in_any_order(store, data, cuts, order):
    store.discard(5)
    with store.writer(5, count=len(data)) as writer:
        for part in np.split(data, sorted(min(c, len(data)) for c in cuts)):
            writer.append(part)
    order = [i % len(data) for i in order]
    np.testing.assert_array_equal(store.read(5, order), data[order])
    np.testing.assert_array_equal(
        store.read_batch([(5, i) for i in order]), data[order]
    )


def test_batch_of_many_videos_in_the_order_asked(filled):
    pairs = [(1000, 6), (3, 0), (12, 0), (3, 4), (1000, 0), (3, 0)]
    expected = [_records({3: 5, 12: 1, 1000: 7}[v], v)[i] for v, i in pairs]
    np.testing.assert_array_equal(filled.read_batch(pairs), expected)
    assert filled.read_batch(pairs).shape == (6, *SHAPE)


def test_reading_from_threads_with_few_files_open(store, monkeypatch):
    monkeypatch.setattr(stores, "OPEN_FILES", 2)
    for video in range(8):
        _put(store, video, np.full((20, *SHAPE), video))
    rng = np.random.default_rng(0)
    batches = [rng.integers([8, 20], size=(16, 2)) for _ in range(40)]
    batches = [np.minimum(b, [7, 19]) for b in batches]
    before = _open_files()
    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        got = list(pool.map(store.read_batch, batches))
    assert _open_files() <= before + 2
    for pairs, batch in zip(batches, got, strict=True):
        np.testing.assert_array_equal(batch[:, 0, 0], pairs[:, 0])


def test_float16_rounding_bound(store):
    rng = np.random.default_rng(0)
    values = rng.standard_normal((50, *SHAPE)) * 10 ** rng.uniform(
        -9, 4, (50, *SHAPE)
    )
    _put(store, 1, values)
    error = np.abs(store.read(1, range(50)).astype("float64") - values)
    assert np.all(error <= np.maximum(2.0**-11 * np.abs(values), 2.0**-25))


def test_pickles_for_workers(filled):
    again = pickle.loads(pickle.dumps(filled))
    np.testing.assert_array_equal(again.read(12, [0]), _records(1, 12))


def test_a_stores_bytes_depend_on_nothing_else(tmp_path):
    """Same manifest and records, same bytes, whatever the process or time."""
    files = []
    for name in ("a", "b"):
        store = stores.Store.create(tmp_path / name, MANIFEST)
        for video in (2, 1) if name == "a" else (1, 2):
            _put(store, video, _records(3, video))
        files.append({p.name: p.read_bytes() for p in store.root.iterdir()})
    assert files[0] == files[1]


# What is refused.


@pytest.mark.parametrize(
    ("records", "message"),
    [
        (np.zeros((3, 2, 4)), r"\[k, 2, 3\].*\(3, 2, 4\)"),
        (np.zeros(SHAPE), r"\[k, 2, 3\]"),
        (np.zeros((4, *SHAPE)), "have 3 records.*4"),
        (np.zeros((2, *SHAPE)), "have 3 records. Received: 2"),
        (np.full((3, *SHAPE), 65520.0), "Record 0 of video 9.*65504.*65520"),
        (np.full((3, *SHAPE), np.nan), "Record 0 of video 9.*nan"),
    ],
)
def test_bad_records_leave_nothing_behind(store, records, message):
    before = _names(store)
    with pytest.raises(ValueError, match=message):
        _put_exactly_three(store, records)
    assert store.videos() == ()
    assert _names(store) == before


def _put_exactly_three(store, records):
    with store.writer(9, count=3) as writer:
        writer.append(records)


def test_an_error_in_the_block_leaves_nothing_behind(store):
    before = _names(store)
    with pytest.raises(RuntimeError, match="video broke"):  # noqa: SIM117
        with store.writer(9, count=3) as writer:
            writer.append(_records(3))
            raise RuntimeError("video broke")
    assert _names(store) == before


@pytest.mark.parametrize("indices", [[5], [-1], [0, 99]])
def test_records_outside_a_video(filled, indices):
    with pytest.raises(ValueError, match="Video 3 has records 0 to 4"):
        filled.read(3, indices)
    with pytest.raises(ValueError, match="Video 3 has records 0 to 4"):
        filled.read_batch([(3, i) for i in indices])


def test_a_missing_video(filled):
    with pytest.raises(stores.StoreError, match=r"Video 4 .*lsts_tf\.extract"):
        filled.read(4, [0])


@pytest.mark.parametrize(
    "arguments",
    [{"count": 0}, {"count": 1, "step": 0}, {"count": 1, "first": -1}],
)
def test_bad_writer(store, arguments):
    with pytest.raises(ValueError, match="count"):
        store.writer(1, **arguments)


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
    assert len(stores.Store.create(filled.root, MANIFEST).videos()) == 3


def test_where_weights_came_from_is_not_compared():
    def manifest(**details):
        return stores.Manifest(**{**MANIFEST.__dict__, "details": details})

    old = manifest(weights="a", weights_sha256="1")
    for same in (
        manifest(weights_sha256="1"),
        manifest(weights="b", weights_sha256="1"),
    ):
        assert old.differences(same) == same.differences(old) == []
    (text,) = old.differences(manifest(weights_sha256="2"))
    assert text == "details.weights_sha256: '1' there, '2' wanted"


def test_manifest_round_trip():
    again = stores.Manifest.parse(MANIFEST.text())
    assert again == MANIFEST
    assert again.digest() == MANIFEST.digest()
    assert MANIFEST.details["first"] == [1, 2]


def test_what_a_manifest_is_about_decides_nothing(filled):
    before = (filled.root / "manifest.json").read_text()
    fields = {**MANIFEST.__dict__, "about": {"versions": {"keras": "9.9"}}}
    newer = stores.Manifest(**fields)
    assert newer.digest() == MANIFEST.digest()
    assert "9.9" in newer.text()
    assert stores.Manifest.parse(newer.text()).about == newer.about
    # Another version goes on with the store; what made it stays there.
    again = stores.Store.create(filled.root, newer)
    assert len(again.videos()) == 3
    assert again.verify() == []
    assert (filled.root / "manifest.json").read_text() == before
    # Whatever is written there later, the videos belong to it.
    (filled.root / "manifest.json").write_text(newer.text())
    assert stores.Store.open(filled.root).verify() == []


def test_a_store_of_before_there_was_something_about_it_is_the_same(filled):
    """Its file lacks the key; its marks hold the digest of its text."""
    path = filled.root / "manifest.json"
    fields = json.loads(path.read_text())
    del fields["about"]
    text = json.dumps(fields, indent=2, sort_keys=True) + "\n"
    path.write_text(text)
    old = stores.Store.create(filled.root, MANIFEST)
    assert old.manifest.digest() == hashlib.sha256(text.encode()).hexdigest()
    assert old.verify() == []


@pytest.mark.parametrize("change", [{"kind": "maps"}, {"shape": (0, 2)}])
def test_manifest_rules(change):
    with pytest.raises(ValueError, match=next(iter(change))):
        stores.Manifest(**{**MANIFEST.__dict__, **change})


def test_no_store(tmp_path):
    message = r"No store at .*nowhere.*python -m lsts_tf\.extract"
    with pytest.raises(stores.StoreError, match=message):
        stores.Store.open(tmp_path / "nowhere")


@pytest.mark.parametrize("text", ["", "{}", "[]", '{"kind": "flow"'])
def test_damaged_manifest(filled, text):
    (filled.root / "manifest.json").write_text(text)
    with pytest.raises(stores.StoreError, match=r"manifest\.json is damaged"):
        stores.Store.open(filled.root)


def test_truth_and_records_are_not_mixed_up(tmp_path):
    with pytest.raises(stores.StoreError, match="Store cannot hold truth"):
        stores.Store.create(tmp_path / "a", TRUTH)
    stores.TruthStore.create(tmp_path / "b", TRUTH)
    with pytest.raises(stores.StoreError, match="Store cannot hold truth"):
        stores.Store.open(tmp_path / "b")


# Damage.


def _flip(path, byte, bit=0):
    data = bytearray(path.read_bytes())
    data[byte] ^= 1 << bit
    path.write_bytes(data)


def _cut(path):
    path.write_bytes(path.read_bytes()[:-1])


def _foreign_mark(path):
    other = stores.Store.create(
        path.parent.parent / "other",
        stores.Manifest(**{**MANIFEST.__dict__, "dataset": "another"}),
    )
    _put(other, 3, _records(5, 3), first=81)
    path.write_bytes((other.root / path.name).read_bytes())


@pytest.mark.parametrize(
    ("name", "damage", "reason"),
    [
        ("0003.npy", _cut, "has 187 bytes instead of 188"),
        ("0003.npy", lambda p: p.write_bytes(b""), "has 0 bytes"),
        ("0003.npy", pathlib.Path.unlink, "is missing"),
        ("0003.npy", lambda p: _flip(p, 30), "another header"),
        ("0003.json", _cut, "not what was written"),
        ("0003.json", lambda p: p.write_bytes(b""), "not what was written"),
        ("0003.json", lambda p: p.write_bytes(b"[]"), "not what was written"),
        (
            "0003.json",
            lambda p: p.write_text(p.read_text().replace(": 81", ": 80")),
            "not what was written",
        ),
        ("0003.json", _foreign_mark, "another manifest"),
    ],
)
def test_damage_is_named(filled, name, damage, reason):
    damage(filled.root / name)
    again = stores.Store.open(filled.root)
    with pytest.raises(stores.StoreError, match=reason) as error:
        again.read_batch([(12, 0), (3, 0)])
    for part in ("Video 3 ", "0003.npy", "0003.json", "lsts_tf.extract"):
        assert part in str(error.value)
    ((video, record, text),) = again.verify()
    assert (video, record) == (3, None)
    assert re.search(reason, text)
    # The others, and the mend.
    again.read_batch([(12, 0), (1000, 3)])
    again.discard(3)
    assert again.videos() == (12, 1000)
    _put(again, 3, _records(5, 3))
    np.testing.assert_array_equal(again.read(3, [4]), _records(5, 3)[4:])
    assert again.verify() == []


def test_messages_name_the_command_that_was_given(filled):
    _cut(filled.root / "0003.npy")
    store = stores.Store.open(filled.root, command="make it")
    for same in (store, pickle.loads(pickle.dumps(store))):
        with pytest.raises(stores.StoreError, match="`make it`"):
            same.read(4, [0])
        with pytest.raises(stores.StoreError, match="`make it --verify --rep"):
            same.read(3, [0])
    other = stores.Manifest(**{**MANIFEST.__dict__, "dtype": "float32"})
    with pytest.raises(stores.StoreError, match="then run `make it`"):
        stores.Store.create(filled.root, other, command="make it")


def test_a_file_cut_off_while_open(filled):
    filled.read(3, [4])
    os.truncate(filled.root / "0003.npy", 150)
    with pytest.raises(stores.StoreError, match=r"0003\.npy was cut off"):
        filled.read(3, [4])
    with pytest.raises(stores.StoreError, match="has 150 bytes"):
        stores.Store.open(filled.root).read(3, [4])


@pytest.mark.parametrize("bit", range(8))
def test_any_flipped_bit_is_found(filled, bit):
    _flip(filled.root / "0003.npy", 128 + 12 * 2 + 5, bit)
    checked = stores.Store.open(filled.root, verify=True)
    for read in (
        lambda: checked.read(3, range(5)),
        lambda: checked.read_batch([(12, 0), (3, 2)]),
    ):
        with pytest.raises(stores.StoreError, match="Video 3, record 2, "):
            read()
    checked.read(3, [0, 1, 3, 4])
    assert filled.verify() == [stores.Damage(3, 2, "its checksum is wrong")]
    assert filled.verify([12]) == []


# Processes that die, compete or find the disk full.

_WORKER = """
    import sys
    import numpy as np
    from lsts_tf.features import stores
    store = stores.Store.create(sys.argv[1], stores.Manifest.parse(sys.argv[2]))
    for video in map(int, sys.argv[3].split(",")):
        if video in store:
            continue
        rng = np.random.default_rng(video)
        with store.writer(video, count=40) as writer:
            for n in range(40):
                writer.append(
                    rng.standard_normal((1, 2, 3)).astype("float16"))
        print(video, flush=True)
"""


def _worker(root, videos, **kwargs):
    return subprocess.Popen(
        [
            sys.executable,
            "-c",
            textwrap.dedent(_WORKER),
            str(root),
            MANIFEST.text(),
            ",".join(map(str, videos)),
        ],
        stdout=subprocess.PIPE,
        cwd=pathlib.Path(__file__).parents[2],
        text=True,
        **kwargs,
    )


def _bytes(root):
    return {p.name: p.read_bytes() for p in root.iterdir()}


def test_killed_at_any_moment_goes_on(tmp_path):
    videos = range(1, 400)
    with _worker(tmp_path / "whole", videos) as whole:
        whole.communicate()
    expected = _bytes(tmp_path / "whole")
    assert len(expected) == 2 * len(videos) + 2
    done, kills = [], 0
    for kill_after in (1, 17, 50, 93, 150, 10**6):
        with _worker(tmp_path / "killed", videos) as process:
            for line in process.stdout:
                done.append(int(line))
                if len(done) >= kill_after:
                    process.kill()
                    break
            done += [int(line) for line in process.stdout if line.strip()]
        kills += process.returncode == -signal.SIGKILL
    assert kills == 5
    assert _bytes(tmp_path / "killed") == expected
    assert len(done) == len(set(done)), "a video was computed twice"


def test_leftovers_of_the_dead_go_and_of_the_living_stay(tmp_path):
    code = textwrap.dedent(_WORKER).replace(
        "for n in range(40):",
        "print('writing', flush=True); input()\n        for n in range(40):",
    )
    root = tmp_path / "store"
    with subprocess.Popen(
        [sys.executable, "-c", code, str(root), MANIFEST.text(), "7"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        cwd=pathlib.Path(__file__).parents[2],
    ) as process:
        assert process.stdout.readline() == b"writing\n"
        (temporary,) = root.glob("*.tmp-*")
        (root / "0001.npy.tmp-1-dead").write_bytes(b"abc")
        store = stores.Store.create(root, MANIFEST)
        assert list(root.glob("*.tmp-*")) == [temporary]
        process.kill()
        process.wait()
        assert temporary.exists()
        stores.Store.create(root, MANIFEST)
        assert not temporary.exists()
        assert store.videos() == ()


def test_two_writers_of_one_video(store):
    with store.writer(1, count=2) as slow:
        slow.append(_records(1, 1))
        _put(store, 1, _records(2, 2))
        slow.append(_records(1, 3))
    np.testing.assert_array_equal(store.read(1, [0, 1]), _records(2, 2))
    assert store.verify() == []
    assert _names(store) == [".lock", "0001.json", "0001.npy", "manifest.json"]


def test_many_processes_of_the_same_videos(tmp_path):
    workers = [_worker(tmp_path / "store", range(60)) for _ in range(3)]
    for worker in workers:
        worker.communicate()
        assert worker.returncode == 0
    store = stores.Store.open(tmp_path / "store")
    assert store.videos() == tuple(range(60))
    assert store.verify() == []
    assert len(_names(store)) == 2 * 60 + 2


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT])
def test_full_disk_at_every_step(filled, monkeypatch, code):
    before = _bytes(filled.root)
    fsync = os.fsync
    state = {"left": 0}

    def full(fd):
        state["left"] -= 1
        if state["left"] == 0:
            raise OSError(code, os.strerror(code))
        fsync(fd)

    monkeypatch.setattr(os, "fsync", full)
    # Data file, folder, mark, then the folder again.
    for step in (1, 2, 3, 4):
        state["left"] = step
        with pytest.raises(OSError, match=r"disk full.*0004\.npy"):
            _put(filled, 4, _records(2))
        assert _bytes(filled.root) == before
    state["left"] = 99
    _put(filled, 4, _records(2))
    assert state["left"] == 95
    assert filled.verify() == []


@pytest.mark.skipif(
    not os.access("/dev/full", os.W_OK), reason="no /dev/full here"
)
def test_full_disk_while_writing(store, monkeypatch):
    before = _names(store)
    temporary = stores._temporary

    def full(target):
        path, file = temporary(target)
        os.dup2(os.open("/dev/full", os.O_WRONLY), file.fileno())
        return path, file

    monkeypatch.setattr(stores, "_temporary", full)
    with pytest.raises(OSError, match=r"disk full.*0004\.npy") as error:
        _put(store, 4, _records(2000))
    assert error.value.errno == errno.ENOSPC
    assert _names(store) == before


def test_require_free(tmp_path):
    stores.require_free(tmp_path / "not" / "yet", 1, "features")
    with pytest.raises(
        OSError,
        match=r"features of 3 videos need 1000000000\.00 GB, and \d+\.\d\d GB",
    ):
        stores.require_free(tmp_path, 10**18, "features of 3 videos")


def test_a_read_only_store_is_read(filled, monkeypatch):
    def refused(*_):
        raise OSError(errno.EROFS, "read-only")

    monkeypatch.setattr(stores, "_locked", refused)
    store = stores.Store.create(filled.root, MANIFEST)
    np.testing.assert_array_equal(store.read(12, [0]), _records(1, 12))


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
    assert store.videos() == (5,)
    assert store.length(5) == 4
    assert store.targets(5) == range(4)
    for frames in ([0], [3, 1, 1], range(4), np.array([2, 0])):
        np.testing.assert_array_equal(store.maps(5, frames), maps[frames])
        np.testing.assert_array_equal(
            store.fixations(5, frames), fixations[frames]
        )
    assert store.verify() == []
    assert stores.TruthStore.open(store.root).maps(5, [0]).dtype == np.uint8


@pytest.mark.parametrize("frames", [[4], [-1]])
def test_truth_outside_the_video(truth, frames):
    with pytest.raises(ValueError, match="Video 5 has frames 0 to 3"):
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
    with pytest.raises(stores.StoreError, match=r"Video 6.*frame 1 is no PNG"):
        store.maps(6, [0, 1])
    with pytest.raises(stores.StoreError, match=r"frame 2 has size \(35, 64\)"):
        store.maps(6, [0, 2])
    with pytest.raises(ValueError, match="frames"):
        store.maps(6, [])


def test_truth_damage(truth):
    store, _ = truth
    sizes = json.loads((store.root / "0005.json").read_text())["sizes"]
    _flip(store.root / "0005.bin", sum(sizes[:3]) + 40)
    checked = stores.TruthStore.open(store.root, verify=True)
    checked.maps(5, range(4))
    with pytest.raises(stores.StoreError, match="Video 5, record 3"):
        checked.fixations(5, [1])
    assert store.verify() == [stores.Damage(5, 3, "its checksum is wrong")]
