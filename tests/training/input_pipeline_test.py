import collections
import itertools
import types

import cv2
import numpy as np
import pytest

from lsts_tf import windows
from lsts_tf.features import dataset, preprocess, stores, views
from lsts_tf.training import input_pipeline

SHAPE = (1, 2, 2, 4)
GEOMETRY = windows.Geometry(length=5, first=1)
# Frames of the videos.
COUNTS = {3: 9, 4: 12}


def png(value):
    image = np.full((360, 640), value, np.uint8)
    return cv2.imencode(".png", image)[1].tobytes()


def feature(video, target):
    """A feature that says which window it belongs to."""
    return np.full(SHAPE, video + target / 64, np.float16)


def feature_store(root, factor=1):
    store = stores.Store.create(
        root,
        stores.Manifest(
            kind="features", dataset="d", shape=SHAPE, dtype="float16"
        ),
    )
    for video, frames in COUNTS.items():
        # One window earlier than the geometry asks for, as RGB's store has.
        targets = range(4, frames)
        values = (factor * feature(video, t) for t in targets)
        store.write(video, targets, values)
    return store


@pytest.fixture
def stored(tmp_path):
    """Each number says where it is from."""
    truth = stores.TruthStore.create(
        tmp_path / "truth",
        stores.Manifest(kind="truth", dataset="d", shape=(), dtype="uint8"),
    )
    for video, frames in COUNTS.items():
        truth.write(
            video,
            maps=[png(video * 20 + frame) for frame in range(frames)],
            fixations=[png(frame) for frame in range(frames)],
        )
    return feature_store(tmp_path / "rgb"), truth


WHOLE = [slice(None)]


def steps_of(data, size, seed, first, last):
    """Batches of some steps, read by one replica."""
    batches = data.training(
        WHOLE, batch_size=size, seed=seed, first_step=first, last_step=last
    )
    return [batch for (batch,) in batches]


def make(stored, videos=(3, 4), geometry=GEOMETRY, **arguments):
    features, truth = stored
    return input_pipeline.StoredWindows(
        {"rgb": features}, truth, videos=videos, geometry=geometry, **arguments
    )


def seen(batch):
    """(video, target) of each window, from the features' own values."""
    inputs, truth = batch
    first = np.asarray(inputs["rgb"])[:, 0, 0, 0, 0].astype(np.float64)
    video = np.floor(first).astype(int)
    target = np.rint((first - video) * 64).astype(int)
    # The truth is that of the same window's last frame.
    truth = np.asarray(truth)
    np.testing.assert_array_equal(truth[:, 0, 0, 0], video * 20 + target)
    np.testing.assert_array_equal(truth[:, 9, 9, 1], target)
    return list(zip(video.tolist(), target.tolist(), strict=True))


ALL = [(3, t) for t in range(5, 9)] + [(4, t) for t in range(5, 12)]


def test_an_epoch_has_every_window_once_in_another_order(stored):
    data = make(stored)
    epochs = []
    for epoch in range(2):
        (batch,) = steps_of(data, 11, 1, epoch, epoch + 1)
        epochs.append(seen(batch))
        assert sorted(epochs[-1]) == ALL
    assert epochs[0] != epochs[1]


def test_truth_of_several_frames_ends_with_the_target(stored):
    data = make(stored, maps=3)
    ((inputs, truth),) = steps_of(data, 2, 5, 0, 1)
    assert truth.shape == (2, 3, 360, 640, 2)
    for window in range(2):
        alone = {"rgb": inputs["rgb"][window : window + 1]}
        ((video, target),) = seen((alone, truth[window : window + 1, -1]))
        for back in (1, 2):
            found = np.asarray(truth[window, -1 - back])
            assert found[0, 0, 0] == video * 20 + target - back
            assert found[9, 9, 1] == target - back


@pytest.mark.parametrize("accumulate", [1, 2])
def test_blocks_are_all_of_a_step_and_nothing_else_is_read(stored, accumulate):
    data = make(stored)
    (*whole,) = (seen(batch) for batch in steps_of(data, 4, 1, 0, 4))
    read, original = [], data.read

    def counting(chosen, seen=None):
        read.extend((data.videos[p], target) for p, target in chosen.tolist())
        return original(chosen, seen)

    data.read = counting
    size = 2 // accumulate
    for replica in range(2):
        starts = [(2 * m + replica) * size for m in range(accumulate)]
        rows = [slice(start, start + size) for start in starts]
        batches = data.training(
            rows, batch_size=4, seed=1, first_step=0, last_step=4
        )
        for step, blocks in enumerate(batches):
            assert len(blocks) == accumulate
            for block, row in zip(blocks, rows, strict=True):
                assert seen(block) == whole[step][row]
    assert sorted(read) == sorted(itertools.chain(*whole))


@pytest.mark.parametrize("count", [0, 1, 4])
def test_each_view_is_taken_as_often_another_one_each_epoch(count):
    epochs = [
        input_pipeline.view_indices(1000, count, seed=3, epoch=epoch)
        for epoch in (0, 1)
    ]
    for numbers in epochs:
        found = np.bincount(numbers, minlength=count + 1)
        assert len(found) == count + 1
        assert np.abs(found - 1000 / (count + 1)).max() < 70
    assert not count or (epochs[0] != epochs[1]).any()


def test_the_order_is_what_it_always_was():
    """So a run that is interrupted by an update continues as it began."""
    order = input_pipeline.permutation(1000, seed=3, epoch=2)
    assert order[:5].tolist() == [718, 627, 289, 516, 707]
    found = input_pipeline.view_indices(1000, 4, seed=3, epoch=2)
    assert found[:8].tolist() == [4, 3, 2, 2, 0, 1, 2, 1]


def test_each_view_has_a_store_and_a_truth_of_its_own(stored, tmp_path):
    _, truth = stored
    seen = views.chosen(flip=True, crops=2)
    others = {
        view: {"rgb": feature_store(tmp_path / view.name, -number)}
        for number, view in enumerate(seen, 1)
    }
    data = make(stored, others=others)
    ((inputs, found),) = steps_of(data, 11, 1, 0, 1)
    chosen, numbers = data.step(0, batch_size=11, seed=1)
    assert set(numbers) == {0, 1, 2, 3}
    for row, (number, (place, target)) in enumerate(
        zip(numbers, chosen.tolist(), strict=True)
    ):
        video = data.videos[place]
        want = feature(video, target) * (-number or 1)
        np.testing.assert_array_equal(np.asarray(inputs["rgb"])[row], want)
        view = (views.WHOLE, *seen)[number]
        for place, (read, resize) in enumerate(
            (
                (truth.maps, preprocess.density),
                (truth.fixations, preprocess.fixations),
            )
        ):
            (map_,) = read(video, [target])
            want = resize(view.of(video, map_))
            np.testing.assert_array_equal(found[row, ..., place], want)


def test_a_batch_larger_than_the_data(stored):
    with pytest.raises(ValueError, match="batch of 12 windows is larger"):
        steps_of(make(stored), 12, 0, 0, 1)


def test_missing_features_name_the_window(stored):
    early = windows.Geometry(length=4)
    with pytest.raises(ValueError, match=r"first \(video:frame\) 3:3"):
        make(stored, geometry=early)


def test_live_order_has_every_window_once_and_few_videos_open(monkeypatch):
    monkeypatch.setattr(input_pipeline, "OPEN_VIDEOS", 4)
    counts = tuple((video, 20 + video) for video in range(1, 30))
    geometry = windows.Geometry(length=10)
    order = input_pipeline.live_order(
        counts, geometry, seed=1, epoch=0
    ).tolist()
    want = [[v, t] for v, n in counts for t in geometry.targets(n)]
    assert sorted(order) == want
    first, last = {}, {}
    for place, (video, _) in enumerate(order):
        first.setdefault(video, place)
        last[video] = place
    for place in range(len(order)):
        is_open = [v for v in first if first[v] <= place <= last[v]]
        assert len(is_open) <= 4
    # Windows of several videos are mixed: neighbours are mostly others'.
    same = sum(a[0] == b[0] for a, b in itertools.pairwise(order))
    assert same < 0.45 * len(order)
    assert order != want


def counting_flows(frames):
    for k, _ in enumerate(itertools.islice(frames, 1, None), 1):
        yield np.full((112, 112, 2), k, np.float16)


def live_windows(
    data, streams=("rgb", "flow"), size=(224, 224), geometry=None, **more
):
    return input_pipeline.LiveWindows(
        data,
        types.SimpleNamespace(streams=streams, size=size, flows=counting_flows),
        geometry=geometry or windows.Geometry(length=17, first=1),
        **{"videos": [1, 2, 3]} | more,
    )


def test_live_windows_of_another_size_and_with_several_maps(data):
    geometry = windows.Geometry(length=20)
    live = live_windows(data, ("rgb",), (64, 96), geometry, videos=[1], maps=8)
    ((inputs, truth),) = steps_of(live, 1, 0, 0, 1)
    assert inputs["rgb"].shape == (1, 20, 64, 96, 3)
    (video,) = data.videos([1])
    want = [input_pipeline.decode_map(png) for png in video.maps[12:20]]
    np.testing.assert_array_equal(truth[0, ..., 0], want)


def targets(batch):
    return batch[0]["flow"][:, -1, 0, 0, 0].tolist()


def test_live_blocks_are_all_of_a_step_and_continue_at_any(data):
    live = live_windows(data)
    whole = [targets(batch) for batch in steps_of(live, 2, 4, 0, 6)][1:4]
    blocks = live.training(
        [slice(0, 1), slice(1, 2)],
        batch_size=2,
        seed=4,
        first_step=1,
        last_step=4,
    )
    found = [targets(a) + targets(b) for a, b in blocks]
    assert found == whole
    named = [
        live.step(step, batch_size=2, seed=4)[0][:, 1].tolist()
        for step in range(1, 4)
    ]
    assert whole == named


def test_half_of_the_live_windows_are_mirrored(data):
    """Also what moved to the right then moves to the left."""
    live, flipped = (live_windows(data, flip=flip) for flip in (False, True))
    _, seen = flipped.step(0, batch_size=9, seed=0)
    assert set(seen) == {0, 1}
    (plain,), (found,) = (steps_of(w, 9, 0, 0, 1) for w in (live, flipped))
    for row, is_mirrored in enumerate(seen):
        rgb, flow = (plain[0][s][row] for s in ("rgb", "flow"))
        truth = plain[1][row]
        if is_mirrored:
            rgb, truth = rgb[:, :, ::-1], truth[:, ::-1]
            flow = flow[:, :, ::-1] * np.array((-1, 1), np.float16)
        np.testing.assert_array_equal(found[0]["rgb"][row], rgb)
        np.testing.assert_array_equal(found[0]["flow"][row], flow)
        np.testing.assert_array_equal(found[1][row], truth)


def test_live_windows_decode_each_video_once(data, monkeypatch):
    live = live_windows(data, ("rgb",))
    decoded = collections.Counter()
    frames = dataset.Video.frames

    def counting(self):
        decoded[self.number] += 1
        return frames(self)

    monkeypatch.setattr(dataset.Video, "frames", counting)
    assert len(steps_of(live, 3, 0, 0, 3)) == 3
    assert decoded == {1: 1, 2: 1, 3: 1}
