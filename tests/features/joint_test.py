"""Several datasets, other sizes and short clips, from stores to scores.

I3D is replaced by means of pixels; everything else is real.
"""

import dataclasses
import pathlib

import numpy as np
import pytest

from lsts_tf import evaluate, experiment, extract, windows
from lsts_tf import predictor as predictor_lib
from lsts_tf.features import dataset, fill, preprocess, views
from lsts_tf.features import extractor as extractor_lib
from lsts_tf.training import dry_run, input_pipeline, loop, monitor
from tests import clip_folders, fake_front_end, run_folder
from ucf_sports import ucf_sports_dataset_builder

WINDOW = 16
# {name: (split, frames, size)}; numbers 1, 2, 11, 601, 602.
CLIPS = {
    "Diving-Side-005": ("training", 18, (36, 64)),
    "Diving-Side-006": ("training", 3, (400, 700)),
    "Golf-Swing-Front-002": ("training", 1, (48, 40)),
    "Diving-Side-001": ("testing", 17, (300, 500)),
    "Diving-Side-002": ("testing", 4, (40, 64)),
}
COUNTS = {1: 18, 2: 3, 11: 1, 601: 17, 602: 4}
DHF1K, UCF = "dhf1k:1.0.0", "ucf_sports:1.0.0"


def close(got, want):
    """As close as half precision, in which features are stored."""
    np.testing.assert_allclose(got, want, rtol=2e-3, atol=2e-3)


@pytest.fixture(autouse=True)
def cheap(monkeypatch):
    monkeypatch.setattr(extractor_lib, "Extractor", fake_front_end.Extractor)


@pytest.fixture(scope="module")
def root(sample_data, tmp_path_factory):
    """Holds tfds/ with DHF1K's sample and a few clips of UCF Sports."""
    folder = tmp_path_factory.mktemp("joint")
    for scene, (name, (split, frames, size)) in enumerate(CLIPS.items()):
        clip_folders.write_clip(
            folder / "raw" / split / name,
            [f"{index + 1:03d}" for index in range(frames)],
            size=size,
            scene=scene,
        )
    clip_folders.build(
        ucf_sports_dataset_builder.Builder, folder / "raw", folder / "tfds"
    )
    (folder / "tfds" / "dhf1k").symlink_to(sample_data / "tfds" / "dhf1k")
    return folder


@pytest.fixture(scope="module")
def ucf(root):
    return dataset.Dataset("ucf_sports", str(root / "tfds"))


@pytest.fixture(scope="module")
def both(root):
    names = ("dhf1k", "ucf_sports")
    return dataset.open_datasets(names, str(root / "tfds"))


def settings_of(root, folder):
    return experiment.Experiment(
        run_dir=str(folder / "run"),
        data_dir=str(root / "tfds"),
        store_dir=str(folder / "stores"),
        datasets=("dhf1k", "ucf_sports"),
        # All of UCF Sports that is for training.
        train_videos="1-2",
        val_videos="501,ucf_sports:602",
        test_videos="ucf_sports:601-647",
        window=WINDOW,
        short_clips="mirror",
        rgb_weights=("random",),
        flow="dis",
        val_stride=3,
        batch_size=6,
        epochs=1,
        image_windows=2,
    )


@pytest.fixture
def settings(root, tmp_path):
    return settings_of(root, tmp_path)


# === Numbers and videos ===


def test_videos_of_several_datasets_have_keys(both, ucf):
    assert dict(sorted(ucf.frame_counts.items())) == COUNTS
    counts = both.frame_counts
    assert counts[DHF1K, 601] == 20
    assert {n: c for (name, n), c in counts.items() if name == UCF} == COUNTS
    assert both.name == "dhf1k:1.0.0+ucf_sports:1.0.0"
    # They are mixed evenly in the order of reading.
    places = [k for k, (name, _) in enumerate(counts) if name == UCF]
    gaps = np.diff(places)
    assert len(places) == 5 and np.abs(gaps - len(counts) / 5).max() < 2
    assert dataset.label((UCF, 7)) == "ucf_sports:7"
    assert dataset.label(7) == "7"


def test_videos_are_those_of_the_parts_in_a_fixed_order(both, ucf):
    there = {(DHF1K, 2), (DHF1K, 601), (UCF, 2), (UCF, 601), (UCF, 11)}
    wanted = [*there, (DHF1K, 999)]
    found = {video.number: video for video in both.videos(wanted)}
    assert set(found) == there
    assert list(found) == [n for n in both.frame_counts if n in wanted]
    for video in ucf.videos([2, 11, 601]):
        got = found[UCF, video.number]
        assert dataclasses.replace(got, number=video.number) == video


def test_numbers_by_name(both, ucf):
    named = {"dhf1k": {1, 2}, "ucf_sports": {601}}
    assert both.numbers(named) == {(DHF1K, 1), (DHF1K, 2), (UCF, 601)}
    assert both.numbers({"dhf1k": {1}}) == {(DHF1K, 1)}
    # A dataset that is not named gives its training split.
    assert both.numbers({"dhf1k": {1}}, "train") == {
        *((DHF1K, 1), (UCF, 1), (UCF, 2), (UCF, 11))
    }
    assert ucf.numbers({"ucf_sports": {7}}, "train") == {7}


# === Clips shorter than a window ===


def test_short_clips_are_left_out_or_mirrored(ucf, caplog):
    skip = windows.Geometry(length=WINDOW)
    mirror = dataclasses.replace(skip, short="mirror")
    assert sorted(ucf.choose(COUNTS, "training", skip)) == [1, 601]
    assert "3 of 5 videos for training are shorter" in caplog.text
    assert sorted(ucf.choose(COUNTS, "training", mirror)) == sorted(COUNTS)
    with pytest.raises(dataset.DatasetError, match="--short_clips=mirror"):
        ucf.choose([2, 11], "training", skip)
    # A clip of just a window of frames has one flow too few.
    both = windows.Geometry.of(("rgb", "flow"), length=18, short="mirror")
    assert 1 not in ucf.choose(COUNTS, "training", both)


@pytest.mark.parametrize("streams", [("rgb",), ("flow",), ("rgb", "flow")])
@pytest.mark.parametrize("stride", [1, 2])
def test_mirrored_features_are_those_of_a_prediction(
    ucf, tmp_path, streams, stride
):
    extractor = fake_front_end.Extractor(streams, window=WINDOW)
    kept = fill.ready_stores(
        tmp_path,
        ucf,
        [1, 2, 11],
        extractor,
        stride=stride,
        purpose="test",
        short="mirror",
    )
    for video in ucf.videos([1, 2, 11]):
        prepared = [extractor.prepare(frame) for frame in video.frames()]
        if video.num_frames < WINDOW:
            missing = WINDOW - 1 + ("flow" in streams)
            # As `Predictor.maps` plays a clip.
            before = windows.prefix(missing, len(prepared), "mirror")
            prepared = [prepared[index] for index in before] + prepared
        else:
            missing = 0
        want = dict(extractor.of_clip(prepared, stride=stride))
        for stream, store in kept.features.items():
            targets = store.targets(video.number)
            for target, features in want.items():
                row = targets.index(target - missing)
                (got,) = store.read(video.number, [row])
                close(got, features[stream])
    # What is there is not made again, nor by another kind of model.
    again = fill.open_stores(
        tmp_path,
        dataset_name=ucf.name,
        front_end=extractor,
        stride=stride,
        short="skip",
    )
    assert all(number in again for number in (1, 2, 11))


# === Stores, streams and their truth ===


@pytest.fixture
def stored(both, tmp_path):
    geometry = windows.Geometry.of(
        ("rgb", "flow"), length=WINDOW, short="mirror"
    )
    extractor = fake_front_end.Extractor(("rgb", "flow"), window=WINDOW)
    videos = both.choose(
        [(DHF1K, 1), (UCF, 1), (UCF, 2), (UCF, 11)], "training", geometry
    )
    kept = fill.ready_stores(
        tmp_path / "stores",
        both,
        videos,
        extractor,
        stride=1,
        purpose="test",
        short="mirror",
    )
    data = input_pipeline.StoredWindows(
        kept.features, kept.truth, videos=videos, geometry=geometry
    )
    live = input_pipeline.LiveWindows(
        both, extractor, videos=videos, geometry=geometry
    )
    return kept, data, live, extractor


WANTED = [
    *(f"dhf1k:1:{t}" for t in range(16, 20)),
    "ucf_sports:11:0",
    *(f"ucf_sports:1:{t}" for t in range(16, 18)),
    *(f"ucf_sports:2:{t}" for t in range(3)),
]


def test_the_stores_of_each_dataset_are_its_own(stored, tmp_path):
    kept, data, _, _ = stored
    named = [input_pipeline.label(data.videos, w) for w in data.windows]
    assert sorted(named) == sorted(WANTED)
    folders = tmp_path / "stores"
    assert {p.name for p in folders.iterdir()} == {
        "dhf1k-1.0.0",
        "ucf_sports-1.0.0",
    }
    names = {p.name for p in (folders / "ucf_sports-1.0.0" / "truth").glob("*")}
    assert names == {"manifest.json", "0001.bin", "0002.bin", "0011.bin"}
    assert kept.features["rgb"].targets((UCF, 2)) == range(3)


def test_live_and_stored_windows_are_the_same(stored):
    _, data, live, extractor = stored
    assert len(live) == len(data) == 10
    batch, truths = data.read(data.windows)
    # A window is known by its truth and its features.
    (((inputs, truth),),) = live.training(
        [slice(None)], batch_size=10, seed=0, first_step=0, last_step=1
    )
    assert truth.shape == (10, 360, 640, 2)
    order = live.order(seed=0, epoch=0).tolist()
    places = {tuple(p): k for k, p in enumerate(data.windows.tolist())}
    for row, pair in enumerate(order):
        place = places[tuple(pair)]
        np.testing.assert_array_equal(truth[row], truths[place])
        for stream, clips in inputs.items():
            found = extractor.encode_parts(stream, clips[row])[stream]
            close(found, batch[stream][place])


def test_the_truth_of_a_crop_is_that_of_the_videos_own_number(stored):
    """By which its features were made, too."""
    kept, _, _, _ = stored
    view = views.View(crop=1)
    (found,) = input_pipeline.read_truth(kept.truth, (UCF, 2), [1], view)
    (map_,) = kept.truth.maps((UCF, 2), [1])
    want, other = (preprocess.density(view.of(n, map_)) for n in (2, 3))
    np.testing.assert_array_equal(found[..., 0], want)
    assert (want != other).any()


def test_pictures_of_any_size(both):
    frames = monitor.frames_of(
        both, [((UCF, 2), 1), ((DHF1K, 1), 4), ((UCF, 602), 0)]
    )
    shapes = [frame.shape for frame in frames]
    assert shapes == [(400, 700, 3), (360, 640, 3), (40, 64, 3)]
    truth = np.random.default_rng(0).random((360, 640))
    for frame in frames:
        assert monitor.picture(frame, truth, truth).dtype == np.uint8


# === The programs ===


@pytest.fixture(scope="module")
def trained(root, tmp_path_factory):
    """A joint run, and its settings."""
    folder = tmp_path_factory.mktemp("joint_run")
    settings = settings_of(root, folder)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(extractor_lib, "Extractor", fake_front_end.Extractor)
        assert loop.run(settings) == 0
    return settings


def test_joint_training(trained):
    (record,) = run_folder.records(trained)
    assert record["step"] == 2
    assert np.isfinite(record["cc"])
    flagfile = pathlib.Path(trained.run_dir) / experiment.FLAGFILE
    assert experiment.load(flagfile) == trained


def test_extraction_does_what_is_missing(trained):
    extract.extract(trained, extract.SPLITS)
    root = pathlib.Path(trained.store_dir)
    for name, videos in (
        ("dhf1k-1.0.0", {1, 2, 501}),
        ("ucf_sports-1.0.0", {1, 2, 11, 601, 602}),
    ):
        found = {int(p.stem) for p in (root / name / "truth").glob("*.bin")}
        assert found == videos


def test_a_dry_run_of_a_joint_training(settings):
    # 2 x 5 windows of DHF1K; 3 + 3 + 1 of UCF Sports; batches of 6.
    training, _, steps, *_ = dry_run.lines(settings)
    assert training == f"training: 17 windows of {WINDOW} frames in 5 videos"
    assert "2 an epoch" in steps


def test_live_joint_training(settings):
    live = dataclasses.replace(
        settings,
        features="live",
        train_videos="1,ucf_sports:2",
        val_videos="ucf_sports:602",
        batch_size=4,
        image_windows=0,
    )
    assert loop.run(live) == 0


def test_scores_of_each_dataset_at_its_own_size(trained, monkeypatch):
    sizes = []
    original = predictor_lib.Predictor.of_stores

    def of_stores(self, kept, video):
        found = original(self, kept, video)
        size = kept.truth.maps(video, [0]).shape[1:]
        sizes.append((video, size, found.shape))
        return found

    monkeypatch.setattr(predictor_lib.Predictor, "of_stores", of_stores)
    result = evaluate.evaluate(trained)[0]
    assert set(result["by_video"]) == {"0601", "0602"}
    assert result["dataset"] == "ucf_sports:1.0.0"
    # A map for every frame, of mirrored clips too.
    assert result["frames"] == 17 + 4
    assert sizes == [
        (601, (300, 500), (17, 360, 640)),
        (602, (40, 64), (4, 360, 640)),
    ]
    assert np.isfinite(result["overall"]["cc"]["mean"])
    assert np.isfinite(result["centre_prior"]["nss"]["mean"])
    skip = dataclasses.replace(trained, short_clips="skip")
    assert set(evaluate.evaluate(skip)[0]["by_video"]) == {"0601"}
    first = dataclasses.replace(trained, test_videos="601")
    assert evaluate.evaluate(first)[0]["dataset"] == "dhf1k:1.0.0"


def test_one_dataset_is_scored_at_a_time(settings):
    several = dataclasses.replace(
        settings, test_videos="601,ucf_sports:601-647"
    )
    with pytest.raises(ValueError, match="One dataset is scored at a time"):
        evaluate.evaluate(several)
