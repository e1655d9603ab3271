import shutil

import numpy as np
import pytest

from lsts_tf.features import dataset
from lsts_tf.media import video

TRAINING = range(1, 12)


def test_videos_by_number_across_splits(data, sample_data):
    videos = {v.number: v for v in data.videos([2, 601, 701, 999])}
    assert set(videos) == {2, 601, 701}
    found = videos[601]
    assert found.fps == 30
    assert found.num_frames == 20
    assert not videos[701].maps
    folder = sample_data / "raw" / "annotation" / "0601"
    # Frame 19 carries annotation file 20, byte for byte.
    assert found.maps[19] == (folder / "maps" / "0020.png").read_bytes()
    png = (folder / "fixation" / "0020.png").read_bytes()
    assert found.fixations[19] == png


def test_frames_are_the_videos_frames_in_rgb(data, sample_data):
    (example,) = data.videos([3])
    frames = np.stack(list(example.frames()))
    film = video.frames(sample_data / "raw" / "video" / "003.AVI")
    # JPEG of quality 95: a few grey levels, with the colours in order.
    difference = frames.astype(int) - np.stack(list(film))
    assert frames.shape == (20, 360, 640, 3)
    assert np.abs(difference).mean() < 3


def test_order_is_the_same_each_time(data):
    first = [v.number for v in data.videos(TRAINING)]
    assert first == [v.number for v in data.videos(TRAINING)]
    assert first == data.choose(TRAINING, "training")


def test_splits_are_the_official_ones(data):
    assert data.name == "dhf1k:1.0.0"
    assert set(data.frame_counts.values()) == {20}
    assert {split: sorted(n) for split, n in data.splits.items()} == {
        "train": [*TRAINING, *range(501, 505)],
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


def test_choosing_what_is_not_there_names_the_range(data):
    with pytest.raises(dataset.DatasetError, match="from 1 to 701"):
        data.choose([99], "training")


@pytest.mark.parametrize("name", ["dhf1k:2.0.0", "hollywood2"])
def test_a_dataset_that_is_not_built_says_how(sample_data, name):
    words = f"{name} has not been built.*tfds build {name.partition(':')[0]}"
    with pytest.raises(dataset.DatasetError, match=words):
        dataset.open_datasets(["dhf1k", name], str(sample_data / "tfds"))


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
    found = dataset.Video(
        number=7, fps=30, jpegs=(b"nothing",), maps=(), fixations=()
    )
    with pytest.raises(dataset.DatasetError, match="Frame 0 of video 7"):
        list(found.frames())
