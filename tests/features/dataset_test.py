import shutil

import cv2
import numpy as np
import pytest

from lsts_tf.features import dataset


@pytest.fixture(scope="module")
def data(sample_data):
    return dataset.Dataset("dhf1k", str(sample_data / "tfds"))


@pytest.fixture(scope="module")
def training(sample_data):
    """Numbers of the generated clips for training."""
    paths = (sample_data / "raw" / "video").glob("0*.AVI")
    numbers = sorted(int(path.stem) for path in paths)
    assert numbers == [*range(1, len(numbers) + 1)]
    assert len(numbers) > 8
    return numbers


def test_name_has_the_version(data):
    assert data.name == "dhf1k:1.0.0"


def test_frame_counts_of_all_splits(data, training):
    numbers = {*training, *range(501, 505), *range(601, 605), 701}
    assert data.frame_counts == dict.fromkeys(numbers, 20)


def test_videos_by_number_across_splits(data, sample_data):
    videos = {v.number: v for v in data.videos([2, 601, 701, 999])}
    assert set(videos) == {2, 601, 701}
    video = videos[601]
    assert video.fps == 30
    assert video.num_frames == 20
    assert video.annotated
    assert not videos[701].annotated
    folder = sample_data / "raw" / "annotation" / "0601"
    # Frame 19 carries annotation file 20, byte for byte.
    assert video.maps[19] == (folder / "maps" / "0020.png").read_bytes()
    png = (folder / "fixation" / "0020.png").read_bytes()
    assert video.fixations[19] == png


def test_frames_are_the_videos_frames_in_rgb(data, sample_data):
    (video,) = data.videos([3])
    frames = list(video.frames())
    assert len(frames) == 20
    path = sample_data / "raw" / "video" / "003.AVI"
    capture = cv2.VideoCapture(str(path))
    for frame in frames:
        _, bgr = capture.read()
        difference = frame.astype(int) - bgr[..., ::-1]
        # JPEG of quality 95: a few grey levels, with the colours in order.
        assert np.abs(difference).mean() < 3
        assert frame.shape == (360, 640, 3)


def test_order_is_the_same_each_time(data, training):
    first = [v.number for v in data.videos(training)]
    assert first == [v.number for v in data.videos(training)]
    assert first == data.choose(training, "training")


def test_splits_are_the_official_ones(data, training):
    assert {split: sorted(n) for split, n in data.splits.items()} == {
        "train": [*training, *range(501, 505)],
        "validation": [601, 602, 603, 604],
        "test": [701],
    }


def test_only_splits_that_can_hold_a_number_are_read(sample_data, monkeypatch):
    data = dataset.Dataset("dhf1k", str(sample_data / "tfds"))
    read = []
    original = data._builder.as_dataset

    def as_dataset(*, split, **kwargs):
        read.append(split)
        return original(split=split, **kwargs)

    monkeypatch.setattr(data._builder, "as_dataset", as_dataset)
    assert [v.number for v in data.videos([602])] == [602]
    # Before anything else was read, too.
    assert read == ["validation"]


def test_frames_played_before_a_video(data):
    (video,) = data.videos([3])
    assert video.after(()) is video
    played = video.after((2, 1))
    assert played.jpegs == (video.jpegs[2], video.jpegs[1], *video.jpegs)
    assert played.num_frames == 22
    assert not played.annotated


def test_choosing_what_is_not_there_names_the_range(data):
    with pytest.raises(dataset.DatasetError, match="from 1 to 701"):
        data.choose([99], "training")


def test_a_dataset_that_is_not_built_says_how(tmp_path):
    with pytest.raises(dataset.DatasetError, match="tfds build dhf1k"):
        dataset.Dataset("dhf1k", str(tmp_path))


def test_a_version_that_is_not_built(sample_data):
    with pytest.raises(dataset.DatasetError, match="has not been built"):
        dataset.Dataset("dhf1k:2.0.0", str(sample_data / "tfds"))


def test_another_contract_is_refused(sample_data, tmp_path):
    folder = tmp_path / "dhf1k"
    shutil.copytree(sample_data / "tfds" / "dhf1k", folder)
    path = folder / "1.0.0" / "features.json"
    path.write_text(path.read_text().replace('"num_frames"', '"frame_num"'))
    with pytest.raises(dataset.DatasetError, match="without num_frames"):
        dataset.Dataset("dhf1k", str(tmp_path))


def test_a_damaged_file_is_named(sample_data, tmp_path):
    shutil.copytree(sample_data / "tfds" / "dhf1k", tmp_path / "dhf1k")
    (path,) = tmp_path.rglob("*-train.tfrecord-*")
    path.write_bytes(path.read_bytes()[:-100])
    words = r"split train of dataset dhf1k:1\.0\.0 in .* is damaged \(.*again"
    with pytest.raises(dataset.DatasetError, match=words):
        dataset.Dataset("dhf1k", str(tmp_path)).choose([2], "training")


def test_a_damaged_frame_is_named():
    video = dataset.Video(
        number=7, fps=30, jpegs=(b"nothing",), maps=(), fixations=()
    )
    with pytest.raises(dataset.DatasetError, match="Frame 0 of video 7"):
        list(video.frames())
