import json
import math
import subprocess

import av
import cv2
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
import numpy as np
import pytest

from lsts_tf.outputs import encoding
from tests.outputs import clips
from tests.outputs.clips import blob as spot

SIZE = (320, 192)
# libx264 without its own ideas of which blocks deserve bits.
PLAIN = {"aq-strength": "0.001", "x264-params": "mbtree=0"}


@pytest.fixture(autouse=True)
def codecs(monkeypatch):
    """The encoders with their faster settings, which a test may change."""
    fast = {"preset": "veryfast"}
    found = {n: (e, o | fast) for n, (e, o) in encoding.CODECS.items()}
    monkeypatch.setattr(encoding, "CODECS", found)
    return found


def blocks(size=SIZE, **options):
    return encoding.Offsets(path="roi.npy", fps=25, size=size, **options)


def textured(count, size=SIZE, seed=0):
    """Two textures that slide over each other: no block can be skipped."""
    width, height = size
    noise = np.random.default_rng(seed).normal(
        0, 1, (height + count, width + 3 * count)
    )
    noise = cv2.GaussianBlur(noise, None, 1.5)
    noise = 30 * noise / noise.std()
    for i in range(count):
        here = noise[i : i + height, 3 * i : 3 * i + width]
        there = noise[:height, 3 * (count - i) :][:, :width]
        grey = np.clip(128 + here + there, 0, 255).astype(np.uint8)
        yield np.repeat(grey[..., None], 3, axis=-1)


def test_constant_maps_change_nothing(tmp_path):
    maps = [np.full((360, 640), v, np.float32) for v in (0.0, 0.3, 1.0)]
    path = offsets_of(maps, tmp_path)
    grids = np.load(path)
    assert grids.shape == (3, 12, 20) and grids.dtype == np.int8
    assert not grids.any()
    assert path.with_suffix(".addroi").read_text() == "null\n"


@pytest.mark.parametrize("strength", [0, 3, 8, 24])
def test_offsets_keep_the_number_of_bits(strength):
    large = blocks(size=(1920, 1080), strength=strength, floor=51)
    grid = large.grid(spot(300, 100, 80))
    # Rounding moves single blocks by up to half a step.
    assert np.exp2(-grid / 6).mean() == pytest.approx(1, abs=0.05)


def test_no_block_is_raised_above_the_floor():
    map_ = spot(300, 100, 150)
    free = blocks(strength=20, floor=51).grid(map_)
    assert free.max() > 2
    bound = blocks(strength=20, floor=2).grid(map_)
    assert bound.max() == 2
    assert np.ptp(free - bound) <= 1


@pytest.mark.parametrize("size", [(320, 192), (333, 187), (100, 500), (1, 1)])
@pytest.mark.parametrize("block", [16, 64])
def test_blocks_hold_the_mean_of_the_map(size, block):
    map_ = np.random.default_rng(0).random((9, 16), np.float32) ** 4
    width, height = size
    got = blocks(size=size, block=block, strength=24, floor=51).grid(map_)
    # Each pixel of the source cut into parts that lie in one cell each.
    fine = map_.repeat(height, axis=0).repeat(width, axis=1)
    rows = np.arange(fine.shape[0]) // (9 * block)
    columns = np.arange(fine.shape[1]) // (16 * block)
    means = np.array(
        [
            [fine[np.ix_(rows == r, columns == c)].mean() for c in set(columns)]
            for r in set(rows)
        ],
        np.float64,
    )
    saliency = means / means.max()
    level = 6 * math.log2(np.exp2(4 * saliency).mean())
    want = level - 24 * saliency
    assert got.shape == want.shape
    assert np.abs(got - want).max() <= 0.5 + 1e-3


@settings(deadline=None, max_examples=80)
@given(
    arrays.arrays(
        np.int8,
        st.tuples(st.integers(1, 6), st.integers(1, 6)),
        elements=st.sampled_from([-3, 0, 2]),
    ),
    st.integers(0, 15),
)
def test_rectangles_are_the_grid(grid, missing):
    rows, columns = grid.shape
    size = (columns * 16 - missing, rows * 16 - missing)
    want = grid.repeat(16, axis=0).repeat(16, axis=1)[: size[1], : size[0]]
    got = np.zeros_like(want)
    for r in blocks(size).rectangles(grid):
        assert r.width > 0 and r.height > 0 and r.offset
        part = got[r.y : r.y + r.height, r.x : r.x + r.width]
        assert part.shape == (r.height, r.width) and not part.any()
        part[:] = r.offset
    np.testing.assert_array_equal(got, want)
    # Equal rows are one.
    equal = np.full_like(grid, -2)
    assert blocks(size).rectangles(equal) == [(0, 0, *size, -2)]


def offsets_of(maps, folder, **options):
    clip = ((np.zeros((192, 320, 3), np.uint8), map_) for map_ in maps)
    return clips.written(
        encoding.Offsets, folder / "roi.npy", clip, size=SIZE, **options
    )


def test_files_of_offsets(tmp_path):
    maps = [spot(60 * i, 100) for i in range(11)]
    path = offsets_of(maps, tmp_path, note="random weights", strength=20)
    array = np.load(path, mmap_mode="r")
    want = [blocks(size=SIZE, strength=20).grid(m) for m in maps]
    np.testing.assert_array_equal(array, want)
    about = json.loads((tmp_path / "roi.json").read_text())
    assert about["note"] == "random weights" and about["frames"] == 11
    assert (about["rows"], about["columns"]) == array.shape[1:]
    lines = (tmp_path / "roi.txt").read_text().splitlines()
    assert len(lines) == 11 * 13
    assert [lines[i * 13] for i in range(11)] == [f"{i} P 0" for i in range(11)]
    grid = [list(map(int, line.split())) for line in lines[27:39]]
    np.testing.assert_array_equal(grid, np.clip(want[2], -12, 12))


def encoded(path, frames, map_, **options):
    clip, size = ((frame, map_) for frame in frames), frames[0].shape[1::-1]
    return clips.written(encoding.Encoder, path, clip, size=size, **options)


def decoded(path):
    """Frames, and their QP for each block of 16 x 16."""
    with av.open(path) as container:
        stream = container.streams.video[0]
        stream.codec_context.options = {"export_side_data": "venc_params"}
        frames = [
            (frame.to_ndarray(format="rgb24"), frame.side_data)
            for frame in container.decode(stream)
        ]
        # Of H.264 only.
        quantisers = [
            data["VIDEO_ENC_PARAMS"].qp_map()
            for _, data in frames
            if stream.codec.name == "h264"
        ]
    return [frame for frame, _ in frames], quantisers


def follows(quantisers, grid):
    """Whether QP is the frame's plus the offsets, give or take a step.

    libx264 does not change QP by a single step from block to block.
    """
    return np.ptp(quantisers - grid) <= 2


def test_the_encoder_follows_the_offsets(tmp_path, codecs):
    encoder, needed = codecs["h264"]
    codecs["h264"] = encoder, needed | PLAIN
    frames = list(textured(6))
    map_ = spot(160, 100, 50)
    grid = blocks(size=SIZE).grid(map_)
    _, quantisers = decoded(encoded(tmp_path / "a.mp4", frames, map_))
    path = encoded(tmp_path / "b.mp4", frames, map_, strength=0)
    _, plain = decoded(path)
    assert len(quantisers) == 6
    for one, other in zip(quantisers, plain, strict=True):
        assert other.min() == other.max()
        assert follows(one, grid)


def psnr(frames, decoded_frames, mask):
    squares = [
        ((a.astype(float) - b) ** 2)[mask].mean()
        for a, b in zip(frames, decoded_frames, strict=True)
    ]
    return 10 * math.log10(255**2 / np.mean(squares))


@pytest.mark.parametrize("codec", list(encoding.CODECS))
def test_bits_move_to_where_people_look(tmp_path, codec):
    frames = list(textured(8))
    map_ = spot(200, 150, 60)
    inside = cv2.resize(map_, SIZE) > 0.5
    outside = cv2.resize(map_, SIZE) < 0.05
    path = encoded(tmp_path / "roi.mp4", frames, map_, crf=28, codec=codec)
    size = path.stat().st_size
    # The smallest plain file that is at least as large.
    how = {"strength": 0, "codec": codec}
    plain = min(
        (
            encoded(tmp_path / f"{crf}.mp4", frames, map_, crf=crf, **how)
            for crf in (26, 27, 28)
        ),
        key=lambda p: (p.stat().st_size < size, p.stat().st_size),
    )
    assert size <= plain.stat().st_size < 1.15 * size
    (marked, _), (usual, _) = decoded(path), decoded(plain)
    assert psnr(frames, marked, inside) > psnr(frames, usual, inside) + 2
    assert psnr(frames, marked, outside) < psnr(frames, usual, outside)


def test_odd_sizes_and_the_note(tmp_path):
    frames = list(textured(3, size=(65, 47)))
    path = encoded(
        tmp_path / "odd.mp4", frames, spot(300, 100), note="random weights"
    )
    with av.open(path) as container:
        assert container.metadata["comment"] == "random weights"
        (stream,) = container.streams
        assert (stream.width, stream.height) == (66, 48)
        assert stream.average_rate == 25
        assert sum(1 for _ in container.decode(stream)) == 3


def test_ffmpeg_takes_the_filter(tmp_path, ffmpeg):
    frames = list(textured(6))
    source = encoded(tmp_path / "in.mp4", frames, spot(0, 0), strength=0, crf=1)
    map_ = spot(160, 100, 50)
    offsets_of([map_] * 2, tmp_path)
    target = tmp_path / "out.mp4"
    subprocess.run(
        [
            *(ffmpeg, "-v", "warning", "-i", source),
            *("-filter_script:v", tmp_path / "roi.addroi"),
            *("-c:v", "libx264", "-crf", "28", "-preset", "veryfast"),
            *("-aq-mode", "1", "-aq-strength", "0.001"),
            *("-x264-params", "mbtree=0", target),
        ],
        check=True,
        cwd=tmp_path,
    )
    grid = blocks(size=SIZE).grid(map_)
    _, quantisers = decoded(target)
    assert len(quantisers) == 6
    for one in quantisers:
        assert follows(one, grid)
