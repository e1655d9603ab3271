"""The page in a browser, with a cheap model."""

import contextlib
import functools
import io
import json
import os
import pathlib
import signal
import socket
import subprocess
import sys
import time
import urllib.request

from absl import flags
import numpy as np
import pytest

from lsts_tf import app, experiment, program
from lsts_tf.outputs import uploads
from tests import browsers, cheap_app, flag_scope, pages, predict_test

SECONDS = 10
# A minute of a busy machine.
PATIENCE = 60


def test_without_gradio_the_error_says_what_to_install(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda _: None)
    with (
        flag_scope.defined(experiment.define_flags, app.define_flags),
        pytest.raises(RuntimeError, match=r'pip install "lsts_tf\[app\]"'),
    ):
        flags.FLAGS(["app"])
        app._serve()


def test_a_port_that_is_in_use_is_named():
    pytest.importorskip("gradio", reason="Gradio is not installed.")
    with (
        socket.create_server(("127.0.0.1", 0)) as used,
        flag_scope.defined(experiment.define_flags, app.define_flags),
        pytest.raises(OSError, match=f"127.0.0.1:{used.getsockname()[1]}"),
    ):
        flags.FLAGS(["app", f"--port={used.getsockname()[1]}"])
        app._serve()


class Server:
    """The page as a program, and the folder of its files."""

    def __init__(self, folder):
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        self.url = f"http://127.0.0.1:{port}/"
        self.folder = folder / "temporary"
        self.log_path = folder / "log"
        self.folder.mkdir()
        (self.folder / f"{uploads._PREFIX}left" / "film").mkdir(parents=True)
        with self.log_path.open("w") as log:
            self.process = subprocess.Popen(
                [
                    *(sys.executable, "-m", "tests.cheap_app"),
                    *(f"--port={port}", "--max_megabytes=1"),
                    f"--max_seconds={SECONDS}",
                ],
                cwd=pages.ROOT,
                stderr=log,
                stdout=log,
                env={**os.environ, "TMPDIR": str(self.folder)},
            )

    def ready(self):
        try:
            wait(lambda: "The page is at" in self.log() or self.ended())
        finally:
            if self.ended():
                raise AssertionError(self.log())

    def ended(self):
        return self.process.poll() is not None

    def log(self):
        return self.log_path.read_text()

    def files(self):
        """Films and results; not what is hidden, nor Gradio's empty file."""
        (folder,) = self.folder.iterdir()
        return [
            path
            for top in folder.glob("[!.]*")
            for path in (top, *top.rglob("*"))
            if path.is_file() and path.name != "vibe_edit_history"
        ]

    def megabytes(self):
        status = pathlib.Path(f"/proc/{self.process.pid}/status").read_text()
        return int(status.split("VmRSS:")[1].split()[0]) / 1024

    def children(self):
        task = pathlib.Path(f"/proc/{self.process.pid}/task")
        return "".join(p.read_text() for p in task.glob("*/children")).split()


def wait(found, seconds=PATIENCE):
    """Waits for something that is true; what it is."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if result := found():
            return result
        time.sleep(0.05)
    raise AssertionError(f"Nothing came within {seconds} s.")


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    pytest.importorskip("gradio", reason="Gradio is not installed.")
    server = Server(tmp_path_factory.mktemp("page"))
    try:
        server.ready()
        yield server
    finally:
        server.process.kill()
        server.process.wait()


@pytest.fixture(scope="module")
def browser(server):
    with browsers.start() as browser:
        yield browser


class Page:
    """An open page; one of a browser's, which it brings to the front."""

    def __init__(self, browser, server, width=None):
        browser.switch_to.new_window("tab")
        if width:
            metrics = {"width": width, "height": 900, "mobile": False}
            browser.execute_cdp_cmd(
                "Emulation.setDeviceMetricsOverride",
                {**metrics, "deviceScaleFactor": 1},
            )
        self.browser = browser
        self.name = browser.current_window_handle
        browser.get(server.url)
        wait(lambda: self.all("input[type=file]"))

    def all(self, selector):
        self.browser.switch_to.window(self.name)
        return self.browser.find_elements("css selector", selector)

    def run(self, script):
        self.browser.switch_to.window(self.name)
        return self.browser.execute_script(f"return {script}")

    def text(self):
        return self.run("document.body.innerText")

    def texts(self, selector):
        """Of what is there, also if it is drawn anew meanwhile."""
        found = f"[...document.querySelectorAll({selector!r})]"
        return self.run(f"{found}.map(e => e.innerText.trim())")

    def drop(self, path):
        while not (places := self.all("input[type=file]")):
            # The last film, which was refused, is there instead.
            self.click("button[aria-label=Clear]")
        places[0].send_keys(str(path))

    def click(self, selector, text=""):
        """Clicks one of what has a text, if it is there by now."""
        # One that is drawn anew meanwhile is looked for by the next call.
        with contextlib.suppress(Exception):
            for element in self.all(selector):
                if text in element.text and element.is_displayed():
                    element.click()
                    return True
        return False

    def press(self, text):
        """Presses a button."""
        wait(lambda: self.click("button", text))

    def message(self, words):
        """A message with these words, which is then closed."""
        found = wait(
            lambda: [t for t in self.texts(".toast-body") if words in t]
        )
        while self.texts(".toast-body"):
            self.click(".toast-close")
        return found[0]

    def result(self):
        """Addresses of its files by their names, when it is there."""
        links = (
            "[...document.querySelectorAll('.downloads a')].map(a => a.href)"
        )
        urls = wait(lambda: self.run(links))
        return {url.rpartition("/")[2]: url for url in urls}

    def close(self):
        self.all("body")
        self.browser.close()
        self.browser.switch_to.window(self.browser.window_handles[0])


@pytest.fixture
def page(browser, server):
    page = Page(browser, server)
    yield page
    if page.name in browser.window_handles:
        page.close()


def fetched(url):
    with urllib.request.urlopen(url, timeout=PATIENCE) as answer:
        return answer.read()


def test_a_film_is_predicted_and_shown(page, server, tmp_path):
    left = server.folder / f"{uploads._PREFIX}left"
    assert not left.exists()
    assert "random I3D weights (rgb)" in page.text()
    page.drop(predict_test.clip_of(tmp_path, 100))
    found = page.result()
    moments = (
        "[...document.querySelectorAll('.films video')].map(v => v.currentTime)"
    )
    state = (
        "[...document.querySelectorAll('.films video')].map("
        "v => [v.readyState, v.paused, v.videoWidth, v.videoHeight])"
    )
    # Both play, at the same moment.
    wait(lambda: page.run(state) == [[4, False, 64, 36]] * 2)
    before = page.run(moments)
    wait(
        lambda: all(
            a > b for a, b in zip(page.run(moments), before, strict=True)
        )
    )
    page.run("document.querySelector('.films video').pause()")
    wait(lambda: [s[1] for s in page.run(state)] == [True] * 2)
    one, other = page.run(moments)
    assert one == pytest.approx(other, abs=0.11)
    # The timeline is drawn, and the regions are those of the file.
    wait(lambda: page.all("svg.marks .mark-line path"))
    lines = fetched(found["attention.jsonl"]).decode().splitlines()
    assert len(lines) == 100
    expected = []
    for line in map(json.loads, lines[::25]):
        (x, y), share = (line["regions"][0][k] for k in ("centre", "share"))
        expected.append(
            f"{line['time']:.2f} s {x:.0f}, {y:.0f} {100 * share:.0f} % "
            f"{line['hot_spots']}"
        )
    assert len(expected) == 4
    wait(lambda: " ".join(expected) in " ".join(page.text().split()))
    maps = np.load(io.BytesIO(fetched(found["maps.npy"])))
    assert maps.shape == (100, 360, 640)
    assert json.loads(fetched(found["summary.json"]))["frames"] == 100
    assert b"<html" in fetched(found["report.html"])
    assert fetched(found["overlay.mp4"])[4:8] == b"ftyp"
    # A closed page has no files.
    page.close()
    wait(lambda: not server.files())


def test_nothing_calls_another_machine(page, server):
    names = page.run(
        "performance.getEntriesByType('resource').map(e => e.name)"
    )
    assert len(names) > 10
    assert all(
        name.startswith((server.url, "data:", "blob:")) for name in names
    )
    assert cheap_app.OUTSIDE not in server.log()


def test_what_is_refused_is_said(page, server, tmp_path):
    broken = tmp_path / "broken.mp4"
    broken.write_bytes(b"This is no film." * 100)
    page.drop(broken)
    said = page.message("broken.mp4")
    assert "broken.mp4: not a video" in said
    assert str(server.folder) not in said
    page.drop(predict_test.clip_of(tmp_path, 25 * SECONDS + 1))
    assert f"at most {SECONDS} seconds" in page.message("a film.mp4")
    large = tmp_path / "large.mp4"
    large.write_bytes(bytes(1_000_001))
    page.drop(large)
    page.message("maximum allowed size")
    wait(lambda: not server.files())
    assert "Traceback" not in server.log()


def test_a_film_that_is_cut_off_is_shown_as_far_as_it_goes(
    page, server, tmp_path
):
    path = predict_test.clip_of(tmp_path, 60)
    path.write_bytes(path.read_bytes()[:-300])
    page.drop(path)
    page.result()
    assert "What could be decoded is shown." in page.text()
    assert str(server.folder) not in page.text()


def test_stop_stops_and_the_next_user_has_a_turn(
    browser, page, server, tmp_path
):
    page.drop(predict_test.clip_of(tmp_path, 25 * SECONDS))
    wait(lambda: "s left" in page.text())
    other = Page(browser, server)
    other.drop(predict_test.clip_of(tmp_path, 3, name="short.mp4"))
    wait(lambda: "queue: 1/1" in other.text())
    page.press("Stop")
    page.message("Stopped.")
    other.result()
    assert f"{25 * SECONDS}/{25 * SECONDS} [" not in server.log()
    assert not page.all(".films")
    wait(lambda: "Stop" not in page.texts("button"))
    other.close()
    wait(lambda: not server.files())


def test_what_a_camera_records_is_predicted(page, server):
    page.press("Click to Access Webcam")
    page.press("Record")
    time.sleep(1)
    page.press("Stop")
    maps = np.load(io.BytesIO(fetched(page.result()["maps.npy"])))
    assert len(maps) and maps.shape[1:] == (360, 640)
    page.close()
    wait(lambda: not server.files())


def test_a_camera_has_an_overlay(page):
    page.press("Live")
    page.press("Click to Access Webcam")
    page.press("Record")
    seen = set()

    def shown():
        seen.add(page.run("document.querySelector('.live img')?.src"))
        return len(seen) > 3

    wait(shown)
    assert "behind the camera" in page.text()


def test_after_ten_films_and_a_closed_browser_nothing_is_left(server, tmp_path):
    browser = browsers.start()
    page = Page(browser, server, width=420)
    for number in range(10):
        name = f"{number}.mp4"
        page.drop(predict_test.clip_of(tmp_path, 5 + number, name=name))
        link = f".downloads a[download='{number}-maps.npy']"
        wait(functools.partial(page.all, link))
        if number == 4:
            before = server.megabytes()
    # One result at a time is kept.
    assert len({path.parent for path in server.files()}) == 1
    assert server.megabytes() < before + 100
    # Nothing is wider than a phone.
    assert page.run("document.documentElement.scrollWidth") <= 420
    page.drop(predict_test.clip_of(tmp_path, 25 * SECONDS))
    wait(lambda: "s left" in page.text())
    browser.quit()
    wait(lambda: not server.files())
    assert f"{25 * SECONDS}/{25 * SECONDS} [" not in server.log()
    assert not server.children()
    assert "Traceback" not in server.log()


def test_sigterm_ends_it_and_removes_its_folder(server, browser):
    server.process.send_signal(signal.SIGTERM)
    assert server.process.wait(PATIENCE) == program.TERMINATED
    assert not list(server.folder.iterdir())
