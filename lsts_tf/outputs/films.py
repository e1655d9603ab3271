"""A folder of films, one after the other, with a model that is loaded once.

Each film has a folder of its own in the output's, or only its file or folder
there if that bears its name (`msu`, `dhf1k`). What an earlier call has finished
is not predicted again.
"""

from collections.abc import Mapping, Sequence
import json
import os
import pathlib
from typing import TYPE_CHECKING, Any

from absl import logging

from lsts_tf.media import sources
from lsts_tf.media import video as video_lib
from lsts_tf.outputs import run, sink

if TYPE_CHECKING:
    from lsts_tf import predictor as predictor_lib

SUFFIXES = (".mp4", ".avi", ".mkv", ".mov", ".webm")


def found(names: Sequence[str]) -> list[pathlib.Path]:
    """Films of the one folder that is named, if it holds no pictures."""
    folder = pathlib.Path(names[0]) if len(names) == 1 else None
    if folder is None or not folder.is_dir():
        return []
    paths = [p for p in folder.iterdir() if not p.name.startswith(".")]
    kinds = {path.suffix.lower() for path in paths}
    if kinds & set(sources.IMAGE_SUFFIXES):
        return []
    films = [path for path in paths if path.suffix.lower() in SUFFIXES]
    return sorted(films)


def predict(
    predictor: "predictor_lib.Predictor",
    films: Sequence[pathlib.Path],
    output: str | os.PathLike | None,
    *,
    outputs: Sequence[str],
    report: str = "",
    **settings: Any,
) -> str:
    """Write what is wanted of each film; see `run.predict`.

    Returns:
        What is wrong with the films, or "".

    Raises:
        ValueError: Something that cannot be done for any film.
    """
    if output is None or report or run.STDOUT in outputs:
        raise ValueError(
            "A folder of films needs --output; --report and standard output "
            "are for one film."
        )
    stems = [path.stem for path in films]
    if twice := {stem for stem in stems if stems.count(stem) > 1}:
        raise ValueError(
            f"Films must have different names. Received: two of {min(twice)}"
        )
    names = sorted({run.ALIASES.get(name, name) for name in outputs})
    is_named = len(names) == 1 and "{" in getattr(
        sink.KINDS.get(names[0]), "file", ""
    )
    damage = []
    for number, path in enumerate(films, 1):
        folder = pathlib.Path(output, "" if is_named else path.stem)
        if _is_done(predictor, path, folder, names, settings):
            logging.info("%s is done already.", path)
            continue
        logging.info("%s, film %d of %d.", path, number, len(films))
        try:
            source = sources.File(path)
            damage.append(
                run.predict(
                    predictor, source, folder, outputs=outputs, **settings
                )
            )
        except video_lib.VideoError as error:
            # The others may be whole.
            damage.append(str(error))
    return " ".join(filter(None, damage))


def _is_done(
    predictor: "predictor_lib.Predictor",
    path: pathlib.Path,
    folder: pathlib.Path,
    names: Sequence[str],
    settings: Mapping[str, Any],
) -> bool:
    """Whether an earlier call made the same; a record is written last."""
    if settings["start"] or settings["end"]:
        return False
    hidden = folder / f".{run.numbered(path.stem)}.json"
    for record in (hidden, folder / run.RECORD):
        if record.is_file():
            break
    else:
        return False
    about = json.loads(record.read_text(encoding="utf-8"))
    options = settings["options"]
    wanted = {
        "video": str(path),
        "model": settings["about"],
        "every": settings["every"],
        "first_frames": settings["first_frames"],
        "front_end": predictor.extractor.describe(),
        "options": {
            name: options.get(name, value)
            for name, value in about["options"].items()
        },
        "damage": "",
    }
    return (
        record.stat().st_mtime > path.stat().st_mtime
        and sorted(about["outputs"]) == list(names)
        and all((folder / file).exists() for file in about["outputs"].values())
        and {key: about[key] for key in wanted}
        == json.loads(json.dumps(wanted, default=str))
    )
