import base64
import contextlib
import html.parser
import json
import re
import shutil
import socket
import subprocess
import time
import urllib.error
import urllib.request

import cv2
import numpy as np
import pytest

from lsts_tf.media import video
from lsts_tf.outputs import report

SIZE = (320, 180)
WILD = '<script>alert("1")</script> & "Größe" 動画'


def clip(count):
    """A bright disc that moves from left to right, and its map."""
    width, height = SIZE
    for i in range(count):
        x, y = int(40 + 240 * i / max(count - 1, 1)), 90
        frame = np.full((height, width, 3), (40, 60, 90), np.uint8)
        cv2.circle(frame, (x, y), 20, (240, 200, 120), -1)
        rows, columns = np.indices((90, 160)) * 2 + 1
        squares = (columns - x) ** 2 + (rows - y) ** 2
        yield frame, np.exp(-squares / 1250).astype(np.float32)


AREAS = {
    WILD: [(0, 0), (0.5, 0), (0.5, 1), (0, 1)],
    "right": [(0.5, 0), (1, 0), (1, 1), (0.5, 1)],
}


def reported(folder, count=30, fps=10, start=0.0, areas=None, **options):
    path = folder / "report.html"
    if areas:
        place = folder / "areas.json"
        place.write_text(json.dumps({"unit": "fractions", "areas": areas}))
        options["areas"] = str(place)
    with report.Report(path=path, fps=fps, size=SIZE, **options) as output:
        for i, (frame, map_) in enumerate(clip(count)):
            output.write(frame, map_, start + i / fps)
    return path


class Page(html.parser.HTMLParser):
    """Tags, texts, and where something would be loaded from."""

    VOID = frozenset({"meta", "img", "line", "path", "br"})

    def __init__(self, text):
        super().__init__()
        self.open, self.tags, self.texts, self.sources = [], [], [], []
        self.feed(text)
        self.close()
        assert not self.open

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        for name, value in attrs:
            if name in ("src", "href", "srcset", "data", "poster", "action"):
                self.sources.append(value)
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        if tag not in self.VOID:
            assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open and self.open[-1] not in ("style", "script"):
            self.texts.append(data)

    def text(self):
        return " ".join(self.texts)


def data_of(text):
    (found,) = re.findall(r'<script type="application/json".*?>(.*?)</', text)
    return json.loads(found)


def test_a_page_needs_nothing_but_itself(tmp_path):
    path = reported(
        tmp_path,
        title=WILD,
        note=f"random I3D weights {WILD}",
        about={"weights": {"rgb": WILD, "steps": 3}, "streams": ["rgb", "x"]},
        areas=AREAS,
    )
    assert {p.name for p in tmp_path.iterdir()} == {
        *("areas.json", "report.html"),
    }
    text = path.read_text("utf-8")
    page = Page(text)
    assert all(source.startswith("data:") for source in page.sources)
    assert not re.search(r"https?://|url\(|@import|fetch|import\(", text)
    # Ours are the numbers and the program; what the user named is no tag.
    assert page.tags.count("script") == 2 and "alert(" in page.text()
    for name in (WILD, f"random I3D weights {WILD}", "weights.rgb", "rgb, x"):
        assert name in page.text() or name in page.texts
    assert page.tags.count("video") == 1
    assert page.tags.count("svg") == 2 and page.tags.count("path") == 3
    data = data_of(text)
    assert len(data["times"]) == len(data["focus"]) == 30
    left, right = data["areas"]
    assert left[0] > 0.99 and right[-1] > 0.99
    np.testing.assert_allclose(np.add(left, right), 1, atol=1e-4)


def test_the_video_in_the_page_has_all_frames(tmp_path):
    text = reported(tmp_path).read_text("utf-8")
    (data,) = re.findall(r'src="data:video/mp4;base64,([^"]+)"', text)
    path = tmp_path / "found.mp4"
    path.write_bytes(base64.b64decode(data))
    found = video.Video(path)
    assert found.size == SIZE and len(list(found)) == 30


def test_stills_take_the_place_of_a_large_video(tmp_path, monkeypatch):
    monkeypatch.setattr(report, "LIMIT", 100)
    text = reported(tmp_path).read_text("utf-8")
    page = Page(text)
    assert "video" not in page.tags and "larger than" in page.text()
    assert page.tags.count("img") == 1 + 12


def test_a_large_clip_is_shown_small(tmp_path):
    frame = np.zeros((1081, 1921, 3), np.uint8)
    path = tmp_path / "report.html"
    with report.Report(path=path, fps=25, size=(1921, 1081)) as output:
        output.write(frame, np.zeros((4, 4), np.float32), 0.0)
    text = path.read_text("utf-8")
    assert 'width="640" height="360"' in text
    assert data_of(text)["focus"] == [None]
    Page(text)


def test_damage_is_said_at_the_top(tmp_path):
    path = tmp_path / "report.html"
    with report.Report(path=path, fps=10, size=SIZE) as output:
        for frame, map_ in clip(2):
            output.write(frame, map_, output.count / 10)
        output.damage = WILD
    text = path.read_text("utf-8")
    (note,) = re.findall('<p class="note" role="note">(.*?)</p>', text)
    assert html.unescape(note) == (
        f"The clip is cut off or damaged: {WILD} This page shows what could be "
        "decoded."
    )
    assert "<script>alert" not in text
    plain = reported(tmp_path, 1).read_text("utf-8")
    assert 'class="note"' not in plain


@pytest.mark.parametrize("count", [0, 1, 12, 24, 25, 100, 1000])
def test_stills_are_few_and_evenly_spread(count):
    thinned = report._Thinned(12)
    made = []
    for _ in range(count):
        thinned.add(lambda number: made.append(number) or number)
        assert len(thinned._items) <= 24
    items = thinned.items()
    assert len(items) == min(count, 12) and items == sorted(set(items))
    if count > 1:
        steps = np.diff(items)
        assert items[0] == 0 and items[-1] >= 0.9 * (count - 1)
        assert steps.max() <= 2 * steps.min()
    assert len(made) <= max(24, 12 * (np.log2(count + 1) + 1))


def test_long_curves_are_means(tmp_path, monkeypatch):
    monkeypatch.setattr(report, "_POINTS", 10)
    data = data_of(reported(tmp_path, 27, areas=AREAS).read_text("utf-8"))
    assert data["times"] == pytest.approx(np.arange(0, 27, 3) / 10)
    monkeypatch.undo()
    each = data_of(reported(tmp_path, 27, areas=AREAS).read_text("utf-8"))
    for few, all_ in (
        (data["focus"], each["focus"]),
        *zip(data["areas"], each["areas"], strict=True),
    ):
        means = np.reshape(all_, (9, 3)).mean(axis=1)
        np.testing.assert_allclose(few, means, atol=2e-5)


class Browser:
    """Headless Chromium, by the WebDriver protocol."""

    KEY = "element-6066-11e4-a52e-4f735466cecf"

    def __init__(self, port, profile, dark=False):
        self._root = f"http://127.0.0.1:{port}"
        arguments = [
            *("--headless=new", "--no-sandbox", "--disable-gpu"),
            *("--disable-quic", "--no-first-run", "--disable-sync"),
            *("--disable-background-networking", "--disable-dev-shm-usage"),
            "--disable-component-update",
            f"--user-data-dir={profile}",
            "--window-size=1200,1600",
            *(["--force-dark-mode"] if dark else []),
        ]
        wanted = {"alwaysMatch": {"goog:chromeOptions": {"args": arguments}}}
        self._session = ""
        answer = self.call("POST", "/session", {"capabilities": wanted})
        self._session = f"/session/{answer['sessionId']}"

    def call(self, method, path, body=None):
        request = urllib.request.Request(
            self._root + self._session + path,
            None if body is None else json.dumps(body).encode(),
            {"Content-Type": "application/json"},
            method=method,
        )
        with urllib.request.urlopen(request, timeout=60) as answer:
            return json.load(answer)["value"]

    def go(self, url):
        self.call("POST", "/url", {"url": url})

    def run(self, script):
        body = {"script": script, "args": []}
        return self.call("POST", "/execute/sync", body)

    def find(self, selector):
        body = {"using": "css selector", "value": selector}
        return self.call("POST", "/element", body)[self.KEY]

    def click(self, selector):
        self.call("POST", f"/element/{self.find(selector)}/click", {})

    def type(self, selector, text):
        path = f"/element/{self.find(selector)}/value"
        self.call("POST", path, {"text": text})

    def click_at(self, selector, part):
        """Clicks at a part of an element's width."""
        box = self.run(
            f"const b = document.querySelector('{selector}');"
            "b.scrollIntoView({block: 'center'});"
            "const r = b.getBoundingClientRect(); return [r.x, r.y, r.width,"
            "r.height]"
        )
        x = round(box[0] + box[2] * part)
        y = round(box[1] + box[3] / 2)
        steps = [
            {"type": "pointerMove", "x": x, "y": y, "duration": 0},
            {"type": "pointerDown", "button": 0},
            {"type": "pointerUp", "button": 0},
        ]
        mouse = {"type": "pointer", "id": "mouse", "actions": steps}
        self.call("POST", "/actions", {"actions": [mouse]})

    def wait(self, script):
        for _ in range(100):
            found = self.run(script)
            if found:
                return found
            time.sleep(0.05)
        raise AssertionError(f"never true: {script}")

    def picture(self, path):
        data = self.call("GET", "/screenshot")
        path.write_bytes(base64.b64decode(data))


@contextlib.contextmanager
def browsing(folder, **options):
    program = shutil.which("chromedriver")
    if not program or not shutil.which("chromium"):
        pytest.skip("No browser: apt-get install chromium chromium-driver")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    with subprocess.Popen(
        [program, f"--port={port}"],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    ) as driver:
        try:
            for _ in range(200):
                with contextlib.suppress(urllib.error.URLError, OSError):
                    browser = Browser(port, folder / "profile", **options)
                    break
                time.sleep(0.1)
            yield browser
            browser.call("DELETE", "")
        finally:
            driver.terminate()


def test_a_browser_plays_the_page_and_clicks_seek(tmp_path):
    path = reported(
        tmp_path, count=40, areas=AREAS, title=WILD, start=5.0, note="random"
    )
    with browsing(tmp_path) as browser:
        browser.go(path.as_uri())
        assert browser.run("return document.title") == WILD
        assert browser.run("return document.querySelector('h1').innerText") == (
            WILD
        )
        ready = "const v = document.querySelector('video');"
        browser.wait(f"{ready} return v.readyState >= 2 && v.duration")
        assert browser.run(f"{ready} return v.error") is None
        assert browser.run(f"{ready} return v.duration") == pytest.approx(4.0)
        loaded = browser.run(
            "return performance.getEntriesByType('resource')"
            ".map(e => e.name.slice(0, 5)).filter(n => n !== 'data:')"
        )
        assert loaded == []

        def now():
            browser.wait(f"{ready} return !v.seeking")
            at = browser.run(f"{ready} return v.currentTime")
            slider = browser.find("#timeline")
            value = browser.call(
                "GET", f"/element/{slider}/attribute/aria-valuenow"
            )
            assert float(value) == pytest.approx(5 + at, abs=0.02)
            return at

        browser.click_at("#timeline svg", 0.75)
        assert now() == pytest.approx(3.0, abs=0.03)
        shares = browser.run(
            "return ['area0', 'area1'].map("
            "k => document.getElementById(k).innerText)"
        )
        data = data_of(path.read_text("utf-8"))
        assert shares == [f"{100 * a[30]:.1f} %" for a in data["areas"]]
        assert float(shares[1].split()[0]) > 99
        cursor = browser.run(
            "const c = document.querySelector('.cursor');"
            "const s = document.querySelector('#timeline svg');"
            "const r = s.getBoundingClientRect();"
            "return (c.getBoundingClientRect().x + 1 - r.x) / r.width"
        )
        assert cursor == pytest.approx(0.75, abs=0.01)
        browser.type("#timeline", "\ue012")  # Left.
        assert now() == pytest.approx(2.0, abs=0.05)
        browser.type("#timeline", "\ue011")  # Home.
        assert now() == pytest.approx(0.0, abs=0.01)
        browser.click(".film button:nth-child(3)")
        assert now() == pytest.approx(data["moments"][2] - 5, abs=0.02)
        marked = browser.run(
            "return [...document.querySelectorAll('.film button')]"
            ".map(b => b.classList.contains('on')).indexOf(true)"
        )
        assert marked == 2
        browser.click("td button")
        assert now() == pytest.approx(0.0, abs=0.02)
        # Nothing is wider than the page, and nothing lies over the curves.
        assert browser.run(
            "return document.documentElement.scrollWidth <= innerWidth"
        )
        browser.picture(tmp_path / "page.png")
        picture = cv2.imread(str(tmp_path / "page.png"))
        assert picture.shape[1] >= 1000 and picture.std() > 20
