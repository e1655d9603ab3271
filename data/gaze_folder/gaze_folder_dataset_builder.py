"""Your own recordings as a TensorFlow dataset: one example per film.

A folder holds films of any name and tables of gaze, one for each film or one
for all (see `lsts_tf.scoring.gaze`). Each frame has the points of whoever
looked at it; a density map is a sum of Gaussians whose standard deviation is a
degree of visual angle.
"""

from collections.abc import Iterator, Mapping
import dataclasses
import functools
import json
import os
import pathlib
import re
from typing import NamedTuple
import zlib

import numpy as np
import tensorflow_datasets as tfds

import gaze_dataset
from lsts_tf.media import video
from lsts_tf.scoring import density, gaze, truth

SETTINGS = "settings.json"


class Recording(NamedTuple):
    """A film and where people looked.

    Attributes:
        film: The file.
        table: That of its gaze.
        is_shared: Whether the table is of all films, and so names them.
    """

    film: pathlib.Path
    table: pathlib.Path
    is_shared: bool


class Builder(tfds.core.GeneratorBasedBuilder):
    """Reads films and tables of gaze."""

    VERSION = tfds.core.Version("1.0.0")
    RELEASE_NOTES = {
        "1.0.0": (
            "Whole films at their own size: frames as JPEG of quality 95, "
            "density maps of one Gaussian at each fixated pixel."
        ),
    }
    MANUAL_DOWNLOAD_INSTRUCTIONS = """
    The manual folder, given by `--manual_dir`, holds films of any name, and
    for each a table of gaze of the same name, or one table for all:

        <manual_dir>/park_01.mp4
        <manual_dir>/park_01.tsv
        <manual_dir>/settings.json      {"pixels_per_degree": 38}

    `data/gaze_folder/README.md` describes the settings.
    """

    def _info(self) -> tfds.core.DatasetInfo:
        return self.dataset_info_from_configs(
            features=gaze_dataset.features(name=tfds.features.Text())
        )

    def _split_generators(
        self, dl_manager: tfds.download.DownloadManager
    ) -> dict[str, Iterator[tuple[int, gaze_dataset.Example]]]:
        root = pathlib.Path(dl_manager.manual_dir)
        settings = read_settings(root / SETTINGS)
        recordings = find_recordings(root)
        tables = {r.table: gaze.Table(r.table) for r in recordings.values()}
        return {
            tfds.Split.TRAIN: self._generate_examples(
                recordings, tables, settings
            )
        }

    def _generate_examples(
        self,
        recordings: Mapping[int, Recording],
        tables: Mapping[pathlib.Path, gaze.Table],
        settings: gaze.Settings,
    ) -> Iterator[tuple[int, gaze_dataset.Example]]:
        for number, recording in recordings.items():
            table = tables[recording.table]
            yield number, _example(number, recording, table, settings)


def read_settings(path: pathlib.Path) -> gaze.Settings:
    """What the tables do not say.

    Raises:
        ValueError: There is no such file, or it says something else.
    """
    known = {field.name for field in dataclasses.fields(gaze.Settings)}
    known.remove("rate")  # Films know when their frames are shown.
    text = path.read_text(encoding="utf-8") if path.is_file() else "no file"
    try:
        found = json.loads(text)
    except ValueError:
        found = None
    if (
        not isinstance(found, dict)
        or not set(found) <= known
        or not found.get("pixels_per_degree")
    ):
        raise ValueError(
            f"{os.fspath(path)} must have pixels_per_degree, such as "
            '{"pixels_per_degree": 38}, and nothing else but '
            f"{', '.join(sorted(known))}. Received: {text!r}"
        )
    return gaze.Settings(**found)


def number_of(stem: str) -> int:
    """The number of a film, whichever others there are.

    >>> number_of("park_012"), number_of("park")
    (12, 3288825139)
    """
    digits = re.search(r"\d{1,9}$", stem)
    return int(digits[0]) if digits else zlib.crc32(stem.encode())


def find_recordings(root: pathlib.Path) -> dict[int, Recording]:
    """Films and their tables, by number.

    Raises:
        ValueError: There is none; a film has no table; or two have one number.
    """
    files = [
        path
        for path in sorted(root.iterdir())
        if path.is_file() and not path.name.startswith(".")
    ]
    films = [path for path in files if path.suffix.lower() in video.SUFFIXES]
    tables = [
        path
        for path in files
        if path.suffix.lower() in gaze.SUFFIXES and path.name != SETTINGS
    ]
    shared = [t for t in tables if t.stem not in {f.stem for f in films}]
    recordings: dict[int, Recording] = {}
    for film in films:
        own = [table for table in tables if table.stem == film.stem]
        number = number_of(film.stem)
        if len(own or shared) != 1:
            raise ValueError(
                f"{film.name} must have one table of gaze, {film.stem}.csv, "
                "or all films share one. Received: "
                f"{[table.name for table in own or shared] or 'none'} in "
                f"{os.fspath(root)}."
            )
        if number in recordings:
            raise ValueError(
                "The names of the films must end with different numbers. "
                f"Received: {recordings[number].film.name} and {film.name}, "
                f"both {number}. Rename one."
            )
        recordings[number] = Recording(film, *(own or shared), not own)
    if not recordings:
        raise ValueError(
            "There must be at least one film and its table of gaze. Received: "
            f"none in {os.fspath(root)}. Choose another with --manual_dir."
        )
    return dict(sorted(recordings.items()))


def _example(
    number: int,
    recording: Recording,
    table: gaze.Table,
    settings: gaze.Settings,
) -> gaze_dataset.Example:
    frames, times = [], []
    try:
        film = video.Video(recording.film)
        for image, time in film.timed():
            frames.append(gaze_dataset.jpeg(image))
            times.append(time)
    except video.VideoError as error:
        raise ValueError(
            f"{recording.film.name} must be a whole film of one size. "
            f"Received: {error}"
        ) from error
    times.append(times[-1] + 1 / film.fps)
    size = film.size[::-1]
    sigma = settings.pixels_per_degree * size[1] / settings.area(size)[0]
    if settings.gaze_units != "degrees":  # There it is the sigma alone.
        settings = dataclasses.replace(settings, pixels_per_degree=0)
    points = table.points(size, settings, times)
    if recording.is_shared:
        names = [recording.film.name, recording.film.stem, str(number)]
        points = points[points["video"].isin(names)]
    # After the last frame it is outside as well.
    is_late = points["x"].notna() & (points["frame"] >= len(frames))
    points = points.assign(x=points["x"].mask(is_late, -1))
    if not points["x"].notna().any():
        raise ValueError(
            f"At least one point must lie in {recording.film.name}. Received: "
            f"none in {os.fspath(recording.table)}."
        )
    points, _ = table.inside(points, size, settings)
    blur = functools.partial(density.density_map, sigma=sigma, shift=0)
    clip = truth.AnnotatedPoints(points, False, size, blur)
    maps, fixations = [], []
    for frame in range(len(frames)):
        fixated = np.zeros(size, np.uint8)
        fixated[tuple(clip.fixations(frame)[0].T)] = 255
        fixations.append(gaze_dataset.png(fixated))
        maps.append(gaze_dataset.png(clip.density(frame)))
    return gaze_dataset.example(
        number, film.fps, frames, maps, fixations, name=recording.film.name
    )
