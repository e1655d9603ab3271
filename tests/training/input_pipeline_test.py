import collections
import itertools

import cv2
import numpy as np
import pytest

from lsts_tf import windows
from lsts_tf.features import dataset
from lsts_tf.features import preprocess
from lsts_tf.features import stores
from lsts_tf.features import views
from lsts_tf.training import input_pipeline

SHAPE = (1, 2, 2, 4)
GEOMETRY = windows.Geometry(length=5, first=1)


def png(value):
    image = np.full((360, 640), value, np.uint8)
    return cv2.imencode(".png", image)[1].tobytes()


def feature(video, target):
    """A feature that says which window it belongs to."""
    return np.full(SHAPE, video + target / 64, np.float16)


@pytest.fixture
def stored(tmp_path):
    """Videos 3 (9 frames) and 4 (12): each number says where it is from."""
    counts = {3: 9, 4: 12}
    truth = stores.TruthStore.create(
        tmp_path / "truth",
        stores.Manifest(kind="truth", dataset="d", shape=(), dtype="uint8"),
    )
    features = stores.Store.create(
        tmp_path / "rgb",
        stores.Manifest(
            kind="features", dataset="d", shape=SHAPE, dtype="float16"
        ),
    )
    for video, frames in counts.items():
        truth.write(
            video,
            maps=[png(video * 20 + frame) for frame in range(frames)],
            fixations=[png(frame) for frame in range(frames)],
        )
        # One window earlier than the geometry asks for, as RGB's store has.
        targets = range(4, frames)
        with features.writer(video, count=len(targets), first=4) as writer:
            for target in targets:
                writer.append(feature(video, target)[None])
    return features, truth


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


def test_windows_of_the_stores(stored):
    data = make(stored)
    assert len(data) == 11
    named = [input_pipeline.label(data.videos, w) for w in data.windows]
    assert named == [f"{video}:{target}" for video, target in ALL]


def test_an_epoch_has_every_window_once_in_another_order(stored):
    data = make(stored)
    epochs = []
    for epoch in range(2):
        batches = data.training(
            batch_size=11, seed=1, first_step=epoch, last_step=epoch + 1
        )
        (batch,) = list(batches)
        epochs.append(seen(batch))
        assert sorted(epochs[-1]) == ALL
    assert epochs[0] != epochs[1]


def test_training_goes_on_at_any_step(stored):
    data = make(stored)
    whole = data.training(batch_size=2, seed=5, first_step=0, last_step=12)
    whole = [seen(batch) for batch in whole]
    assert len(whole) == 12
    rest = data.training(batch_size=2, seed=5, first_step=7, last_step=12)
    assert [seen(batch) for batch in rest] == whole[7:]
    other = data.training(batch_size=2, seed=6, first_step=0, last_step=12)
    assert [seen(batch) for batch in other] != whole


def test_batches_know_their_shapes(stored):
    inputs, truth = (
        make(stored)
        .training(batch_size=2, seed=0, first_step=0, last_step=1)
        .element_spec
    )
    assert inputs["rgb"].shape == (2, *SHAPE)
    assert inputs["rgb"].dtype.name == "float16"
    assert truth.shape == (2, 360, 640, 2)


def test_truth_of_several_frames_ends_with_the_target(stored):
    data = make(stored, maps=3)
    batches = data.training(batch_size=2, seed=5, first_step=0, last_step=1)
    assert batches.element_spec[1].shape == (2, 3, 360, 640, 2)
    ((inputs, truth),) = batches
    for window in range(2):
        alone = {"rgb": inputs["rgb"][window : window + 1]}
        ((video, target),) = seen((alone, truth[window : window + 1, -1]))
        for back in (1, 2):
            found = np.asarray(truth[window, -1 - back])
            assert found[0, 0, 0] == video * 20 + target - back
            assert found[9, 9, 1] == target - back


def test_evaluation_fills_the_last_batch_with_weight_0(stored):
    batches = list(make(stored).in_order(4))
    weights = np.concatenate([w for _, w, _ in batches])
    assert weights.tolist() == [1] * 11 + [0]
    windows_seen = list(itertools.chain(*[seen(b) for b, _, _ in batches]))
    assert windows_seen[:11] == ALL
    places = np.concatenate([p for _, _, p in batches])
    assert places.tolist() == [*range(11), 10]


def parts(total):
    return [input_pipeline.Part(k, 1, total) for k in range(total)]


def test_parts_of_the_evaluation_are_all_of_it(stored):
    data = make(stored)
    each = [list(data.in_order(4, part=part)) for part in parts(2)]
    found = {}
    for batches in each:
        assert len(batches) == 3  # Nobody is left without.
        for batch, weights, places in batches:
            for window, weight, place in zip(
                seen(batch), weights, places, strict=True
            ):
                if weight:
                    assert int(place) not in found
                    found[int(place)] = window
    assert [found[k] for k in range(11)] == ALL


def test_parts_of_a_step_are_all_of_it_and_read_nothing_else(stored):
    data = make(stored)
    steps = {"batch_size": 4, "seed": 1, "first_step": 0, "last_step": 4}
    whole = [seen(batch) for batch in data.training(**steps)]
    read, original = [], data.read

    def counting(chosen, flips=None):
        read.extend(map(tuple, chosen.tolist()))
        return original(chosen, flips)

    data.read = counting
    halves = [
        [seen(b) for b in data.training(**steps, part=part)]
        for part in parts(2)
    ]
    for step in range(4):
        assert halves[0][step] + halves[1][step] == whole[step]
    assert sorted(read) == sorted(itertools.chain(*whole))
    both = data.training(**steps, part=input_pipeline.Part(0, 2, 2))
    assert [seen(b) for b in both] == [
        h[step] for step in range(4) for h in halves
    ]


@pytest.mark.parametrize("count", [0, 1, 4])
def test_each_view_is_taken_as_often_another_one_each_epoch(count):
    arguments = {"num_views": count, "batch_size": 100, "seed": 3}
    epochs = [
        np.concatenate(
            [
                input_pipeline.step_views(
                    1000, step=10 * epoch + place, **arguments
                )
                for place in range(10)
            ]
        )
        for epoch in (0, 1)
    ]
    for numbers in epochs:
        found = np.bincount(numbers, minlength=count + 1)
        assert len(found) == count + 1
        assert np.abs(found - 1000 / (count + 1)).max() < 70
    assert not count or (epochs[0] != epochs[1]).any()
    again = input_pipeline.step_views(1000, step=4, **arguments)
    np.testing.assert_array_equal(again, epochs[0][400:500])


def test_each_view_has_a_store_and_a_truth_of_its_own(stored, tmp_path):
    features, truth = stored
    seen = views.chosen(flip=True, crops=2)
    others = {}
    for number, view in enumerate(seen, 1):
        store = stores.Store.create(
            tmp_path / view.name,
            stores.Manifest(
                kind="features", dataset="d", shape=SHAPE, dtype="float16"
            ),
        )
        for video, frames in {3: 9, 4: 12}.items():
            with store.writer(video, count=frames - 4, first=4) as writer:
                for target in range(4, frames):
                    writer.append(-number * feature(video, target)[None])
        others[view] = {"rgb": store}
    data = input_pipeline.StoredWindows(
        {"rgb": features},
        truth,
        videos=(3, 4),
        geometry=GEOMETRY,
        others=others,
    )
    batches = data.training(batch_size=11, seed=1, first_step=0, last_step=1)
    ((inputs, found),) = list(batches)
    numbers = data.step_views(batch_size=11, seed=1, step=0)
    assert set(numbers) == {0, 1, 2, 3}
    chosen = data.step_windows(batch_size=11, seed=1, step=0)
    for row, (number, (place, target)) in enumerate(
        zip(numbers, chosen.tolist(), strict=True)
    ):
        video = data.videos[place]
        want = feature(video, target) * (-number or 1)
        np.testing.assert_array_equal(np.asarray(inputs["rgb"])[row], want)
        view = (views.WHOLE, *seen)[number]
        (map_,) = truth.maps(video, [target])
        want = preprocess.density(view.of(video, map_))
        np.testing.assert_array_equal(np.asarray(found)[row, ..., 0], want)
        (fixated,) = truth.fixations(video, [target])
        want = preprocess.fixations(view.of(video, fixated))
        np.testing.assert_array_equal(np.asarray(found)[row, ..., 1], want)


def test_what_moved_right_moves_left_in_a_mirrored_window():
    rng = np.random.default_rng(0)
    rgb = rng.integers(0, 256, (5, 6, 8, 3), np.uint8)
    flow = rng.normal(size=(5, 6, 8, 2)).astype(np.float16)
    truth = rng.integers(0, 256, (6, 8, 2), np.uint8)
    signals, found = input_pipeline.mirror(({"rgb": rgb, "flow": flow}, truth))
    np.testing.assert_array_equal(signals["rgb"][:, :, 0], rgb[:, :, 7])
    np.testing.assert_array_equal(
        signals["flow"][2, 3, 1, 0], -flow[2, 3, 6, 0]
    )
    np.testing.assert_array_equal(signals["flow"][2, 3, 1, 1], flow[2, 3, 6, 1])
    np.testing.assert_array_equal(found[:, 2], truth[:, 5])


def test_a_batch_larger_than_the_data(stored):
    with pytest.raises(ValueError, match="batch of 12 windows is larger"):
        make(stored).training(batch_size=12, seed=0, first_step=0, last_step=1)


def test_missing_features_name_the_window(stored):
    early = windows.Geometry(length=4)
    with pytest.raises(ValueError, match="first video 3, frame 3"):
        make(stored, geometry=early)


def test_permutation_has_everything_once():
    order = input_pipeline.permutation(1000, seed=3, epoch=2)
    assert sorted(order.tolist()) == list(range(1000))
    again = input_pipeline.permutation(1000, seed=3, epoch=2)
    np.testing.assert_array_equal(order, again)


def test_live_order_has_every_window_once_and_few_videos_open():
    counts = [(video, 20 + video) for video in range(1, 30)]
    geometry = windows.Geometry(length=10)
    order = list(
        input_pipeline.live_order(
            counts, geometry, seed=1, epoch=0, open_videos=4
        )
    )
    want = {(v, t) for v, n in counts for t in geometry.targets(n)}
    assert len(order) == len(want)
    assert set(order) == want
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
    assert order != sorted(order)


def test_live_order_follows_from_seed_and_epoch():
    counts = [(1, 30), (2, 40)]
    geometry = windows.Geometry(length=10)

    def order(**kwargs):
        return list(input_pipeline.live_order(counts, geometry, **kwargs))

    assert order(seed=1, epoch=0) == order(seed=1, epoch=0)
    assert order(seed=1, epoch=0) != order(seed=1, epoch=1)
    assert order(seed=1, epoch=0) != order(seed=2, epoch=0)


def flows_that_count(video):
    for k in range(1, video.num_frames):
        yield np.full((112, 112, 2), k, np.float32)


@pytest.fixture
def live(sample_data):
    data = dataset.Dataset("dhf1k", str(sample_data / "tfds"))
    return input_pipeline.LiveWindows(
        data,
        videos=[1, 2, 3],
        streams=("rgb", "flow"),
        geometry=windows.Geometry.of(("rgb", "flow"), length=17),
        flows=flows_that_count,
        open_videos=2,
    )


def test_live_windows_hold_the_frames_before_their_target(live, sample_data):
    data = dataset.Dataset("dhf1k", str(sample_data / "tfds"))
    small = {
        v.number: [cv2.resize(f, (224, 224)) for f in v.frames()]
        for v in data.videos([1, 2, 3])
    }
    annotated = {v.number: v for v in data.videos([1, 2, 3])}
    assert len(live) == 9
    found = []
    batches = live.training(batch_size=1, seed=0, first_step=0, last_step=9)
    for inputs, truth in batches.as_numpy_iterator():
        assert inputs["rgb"].shape == (1, 17, 224, 224, 3)
        flow = inputs["flow"][0, :, 0, 0, 0]
        target = int(flow[-1])
        # Flow k is that from frame k - 1 to frame k; the last is the target.
        np.testing.assert_array_equal(flow, range(target - 16, target + 1))
        (number,) = [
            n
            for n, frames in small.items()
            if (frames[target] == inputs["rgb"][0, -1]).all()
        ]
        first = small[number][target - 16]
        np.testing.assert_array_equal(inputs["rgb"][0, 0], first)
        want = input_pipeline.decode_map(annotated[number].maps[target])
        np.testing.assert_array_equal(truth[0, ..., 0], want)
        found.append((number, target))
    assert sorted(found) == [(v, t) for v in (1, 2, 3) for t in (17, 18, 19)]


def test_live_windows_of_another_size_and_with_several_maps(sample_data):
    data = dataset.Dataset("dhf1k", str(sample_data / "tfds"))
    live = input_pipeline.LiveWindows(
        data,
        videos=[1],
        streams=("rgb",),
        geometry=windows.Geometry(length=20),
        size=(64, 96),
        maps=8,
    )
    batches = live.training(batch_size=1, seed=0, first_step=0, last_step=1)
    ((inputs, truth),) = batches.as_numpy_iterator()
    assert inputs["rgb"].shape == (1, 20, 64, 96, 3)
    (video,) = data.videos([1])
    want = [input_pipeline.decode_map(png) for png in video.maps[12:20]]
    np.testing.assert_array_equal(truth[0, ..., 0], want)


def test_live_windows_go_on_at_any_step(live):
    def run(first):
        batches = live.training(
            batch_size=2, seed=4, first_step=first, last_step=6
        )
        return [
            inputs["flow"][:, -1, 0, 0, 0].tolist()
            for inputs, _ in batches.as_numpy_iterator()
        ]

    whole = run(0)
    assert len(whole) == 6
    assert run(3) == whole[3:]


def test_live_parts_are_all_of_a_step(live):
    steps = {"batch_size": 2, "seed": 4, "first_step": 1, "last_step": 4}

    def run(part):
        return [
            inputs["flow"][:, -1, 0, 0, 0].tolist()
            for inputs, _ in live.training(
                **steps, part=part
            ).as_numpy_iterator()
        ]

    whole = run(input_pipeline.WHOLE)
    first, second = map(run, parts(2))
    assert [a + b for a, b in zip(first, second, strict=True)] == whole
    named = [
        live.step_windows(batch_size=2, seed=4, step=step)[:, 1].tolist()
        for step in range(1, 4)
    ]
    assert whole == named


def test_live_windows_decode_each_video_once(live, monkeypatch):
    decoded = collections.Counter()
    frames = dataset.Video.frames

    def counting(self):
        decoded[self.number] += 1
        return frames(self)

    monkeypatch.setattr(dataset.Video, "frames", counting)
    batches = live.training(batch_size=3, seed=0, first_step=0, last_step=3)
    assert len(list(batches)) == 3
    assert decoded == {1: 1, 2: 1, 3: 1}


def test_live_flow_needs_flows(sample_data):
    data = dataset.Dataset("dhf1k", str(sample_data / "tfds"))
    with pytest.raises(ValueError, match="flows"):
        input_pipeline.LiveWindows(
            data, videos=[1], streams=("flow",), geometry=GEOMETRY
        )
