import json
import os
import pathlib
import subprocess
import sys
import tempfile
import threading
import time

import pytest

from lsts_tf.media import files, sources
from lsts_tf.media import writer as writer_lib
from lsts_tf.outputs import uploads
from tests import predict_test


@pytest.fixture
def folder(tmp_path):
    path = tmp_path / "pages"
    path.mkdir()
    return path


@pytest.fixture
def films(model, folder):
    return uploads.Uploads(model, folder, seconds=2, about={"run": "cheap"})


def upload(folder, count=5, *, place="hash", name="a film.mp4"):
    """As the page stores one: in a folder by its content."""
    (folder / place).mkdir(exist_ok=True)
    return predict_test.clip_of(folder / place, count, name=name)


def ignore(*_):
    pass


def listed(folder):
    return {path.name for path in folder.iterdir()}


def test_a_result_takes_the_place_of_its_film(films, folder):
    film = upload(folder)
    films.take("page", film)
    told = []
    result, damage = films.predict("page", film, lambda *a: told.append(a))
    assert not damage
    assert listed(folder) == {result.name}
    assert listed(result) >= {*uploads._FILMS, *uploads._DOWNLOADS}
    # Five frames are read, and five maps made.
    assert (0, 5) in told
    assert told[-1] == (5, 5)
    record = json.loads((result / "prediction.json").read_text())
    assert (record["model"], record["video"]) == ({"run": "cheap"}, film.name)
    html = uploads.shown(result, "It is <cut off>.")
    assert "It is &lt;cut off&gt;." in html
    assert 'download="a film-maps.npy"' in html
    focus, regions = uploads.figures(result)
    assert len(focus) == 5
    assert focus["time"].iloc[1] == pytest.approx(1 / 25)
    lines = (result / "attention.jsonl").read_text().splitlines()
    first = json.loads(lines[0])
    assert focus["focus"].iloc[0] == first["focus"]
    assert len(regions) == 1
    share = first["regions"][0]["share"]
    assert regions["Share"][0] == f"{100 * share:.0f} %"
    films.leave("page")
    assert not listed(folder)


def test_black_frames_have_no_region(films, folder):
    (folder / "hash").mkdir()
    film = folder / "hash" / "black.mp4"
    with writer_lib.Writer(film, fps=25, size=(64, 36)) as writer:
        for _ in range(3):
            writer.write(predict_test.picture(0) * 0)
    films.take("page", film)
    focus, regions = uploads.figures(films.predict("page", film, ignore)[0])
    assert focus["focus"].isna().all()
    assert regions.empty


def test_another_film_of_a_page_takes_the_place_of_its_result(films, folder):
    one, other = upload(folder), upload(folder, 6, place="other")
    films.take("page", one)
    films.predict("page", one, ignore)
    films.take("page", other)
    assert listed(folder) == {"other"}


@pytest.mark.parametrize("known", [True, False])
def test_a_film_that_is_too_long_is_refused(films, folder, known, monkeypatch):
    """Before it is read if the file tells its length, else as far as read."""
    if not known:

        class Unknown(sources.File):
            def __init__(self, path):
                super().__init__(path)
                self.num_frames = None

        monkeypatch.setattr(sources, "File", Unknown)
    film = upload(folder, 51)
    films.take("page", film)
    told = []
    with pytest.raises(ValueError, match="at most 2 seconds"):
        films.predict("page", film, lambda *a: told.append(a))
    assert bool(told) != known
    assert not listed(folder)


@pytest.mark.parametrize("ends", ["stop", "leave", "close"])
def test_a_prediction_stops(films, folder, ends):
    """Wherever it is; and a film that waits for it has its turn."""
    film, other = upload(folder, 50), upload(folder, 5, place="other")
    films.take("page", film)
    films.take("next", other)
    waiting = threading.Thread(
        target=lambda: done.append(films.predict("next", other, ignore))
    )
    done = []

    def tell(maps, _):
        if maps == 20:
            if ends == "close":
                threading.Thread(target=films.close).start()
                # Until it has come to this page.
                while "page" in films._pages:
                    time.sleep(0.01)
            else:
                waiting.start()
                getattr(films, ends)("page")

    with pytest.raises(uploads.Stopped):
        films.predict("page", film, tell)
    if ends == "close":
        assert not listed(folder)
    else:
        waiting.join()
        assert listed(folder) == {done[0][0].name}


def test_a_page_that_is_closed_predicts_nothing(films, folder):
    film = upload(folder)
    films.take("page", film)
    films.leave("page")
    with pytest.raises(uploads.Stopped):
        films.predict("page", film, ignore)
    assert not listed(folder)


def test_only_uploads_are_taken(films, folder, tmp_path):
    """A page may claim any path to be its film; its folder is removed."""
    (tmp_path / "mine").mkdir()
    other = upload(folder, place="other")
    for film in (
        folder / "film.mp4",
        tmp_path / "mine" / "film.mp4",
        folder / ".." / "mine" / "film.mp4",
        folder / "hash" / "within" / "film.mp4",
    ):
        with pytest.raises(ValueError, match="Not an upload"):
            films.take("page", film)
    films.take("page", upload(folder))
    with pytest.raises(uploads.Stopped):
        films.predict("page", other, ignore)
    films.leave("page")
    assert listed(folder) == {"other"}


def test_equal_films_of_two_pages_are_removed_with_the_second(films, folder):
    film = upload(folder)
    films.take("one", film)
    films.take("other", film)
    films.predict("one", film, ignore)
    films.leave("one")
    assert listed(folder) == {"hash"}
    films.predict("other", film, ignore)
    assert "hash" not in listed(folder)


def test_old_files_are_swept(films, folder):
    """What no page has soon, the rest a day later."""
    film, left = upload(folder), folder / "tmp1234"
    films.take("page", film)
    left.write_bytes(b"half of a film")
    hidden = folder / files.LOCK
    hidden.touch()
    for age, stay in (
        (30, {"hash", "tmp1234"}),
        (90, {"hash"}),
        (90000, set()),
    ):
        for path in folder.iterdir():
            os.utime(path, (time.time() - age,) * 2)
        films.sweep()
        assert listed(folder) == {hidden.name, *stay}


def test_folders_of_killed_programs_are_removed(tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    code = (
        "import os, sys, tempfile\n"
        "tempfile.tempdir = sys.argv[1]\n"
        "from lsts_tf.outputs import uploads\n"
        "with uploads.folder() as folder:\n"
        "    (folder / 'film').mkdir()\n"
        "    print(folder, flush=True)\n"
        "    os.kill(os.getpid(), 9)\n"
    )
    killed = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path)],
        cwd=pathlib.Path(__file__).parents[2],
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    assert pathlib.Path(killed.stdout.strip()).parent == tmp_path
    (tmp_path / "of another program").mkdir()
    (tmp_path / f"{uploads._PREFIX}link").symlink_to(
        tmp_path / "of another program"
    )
    with uploads.folder() as one, uploads.folder() as other:
        # The first one is in use, and stays.
        assert listed(tmp_path) == {
            one.name,
            other.name,
            "of another program",
            f"{uploads._PREFIX}link",
        }
    assert len(listed(tmp_path)) == 2


def test_what_a_user_reads_while_waiting():
    assert uploads.left(3.0, 0, 100) == "Reading the film"
    assert uploads.left(3.0, 10, 100) == "Predicting, about 27 s left"
    assert uploads.left(3.0, 10, 0) == "Predicting, 10 frames done"
    # A header may promise fewer frames than come.
    assert uploads.left(3.0, 10, 5) == "Predicting, about 0 s left"
