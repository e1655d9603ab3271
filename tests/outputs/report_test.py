import html.parser
import json
import re

import cv2
import numpy as np
import pytest

from lsts_tf.outputs import report
from tests import browsers, folders
from tests.outputs import clips

SIZE = (320, 180)
WILD = '<script>alert("1")</script> & "Größe" 動画'


def clip(count):
    """A bright disc that moves from left to right, and its map."""
    width, height = SIZE
    for i in range(count):
        x, y = int(40 + 240 * i / max(count - 1, 1)), 90
        frame = np.full((height, width, 3), (40, 60, 90), np.uint8)
        cv2.circle(frame, (x, y), 20, (240, 200, 120), -1)
        yield frame, clips.blob(x / 2, y / 2, 12.5, (90, 160))


AREAS = {
    WILD: [(0, 0), (0.5, 0), (0.5, 1), (0, 1)],
    "right": [(0.5, 0), (1, 0), (1, 1), (0.5, 1)],
}


def reported(folder, count=30, *, areas=None, **how):
    """The text of a page."""
    if areas:
        place = folder / "areas.json"
        place.write_text(json.dumps({"unit": "fractions", "areas": areas}))
        how["areas"] = str(place)
    how = {"fps": 10, "size": SIZE} | how
    path, of = folder / "report.html", how.pop("clip", clip(count))
    return clips.written(report.Report, path, of, **how).read_text("utf-8")


SOURCES = {"src", "href", "srcset", "data", "poster", "action"}


class Page(html.parser.HTMLParser):
    """Tags, texts, and where something would be loaded from."""

    VOID = frozenset({"meta", "link", "img", "line", "path", "br"})

    def __init__(self, text):
        super().__init__()
        self.open, self.tags, self.texts, self.sources = [], [], [], []
        self.feed(text)
        self.close()
        assert not self.open
        self.text = " ".join(self.texts)

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.sources += [value for name, value in attrs if name in SOURCES]
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert tag in self.VOID or self.open.pop() == tag

    def handle_data(self, data):
        if self.open and self.open[-1] not in ("style", "script"):
            self.texts.append(data)


def data_of(text):
    (found,) = re.findall(r'<script type="application/json".*?>(.*?)</', text)
    return json.loads(found)


def test_a_page_needs_nothing_but_itself(tmp_path):
    text = reported(
        tmp_path,
        title=WILD,
        note=f"random I3D weights {WILD}",
        about={"weights": {"rgb": WILD, "steps": 3}, "streams": ["rgb", "x"]},
        areas=AREAS,
    )
    assert folders.listed(tmp_path) == ["areas.json", "report.html"]
    page = Page(text)
    assert all(source.startswith("data:") for source in page.sources)
    assert not re.search(r"https?://|url\(|@import|fetch|import\(", text)
    # Ours are the numbers and the program; what the user named is no tag.
    assert page.tags.count("script") == 2 and "alert(" in page.text
    for name in (WILD, f"random I3D weights {WILD}", "weights.rgb", "rgb, x"):
        assert name in page.text or name in page.texts
    assert page.tags.count("video") == 1
    assert page.tags.count("svg") == 2 and page.tags.count("path") == 3
    data = data_of(text)
    assert len(data["times"]) == len(data["focus"]) == 30
    left, right = data["areas"]
    assert left[0] > 0.99 and right[-1] > 0.99
    np.testing.assert_allclose(np.add(left, right), 1, atol=1e-4)


def test_stills_take_the_place_of_a_large_video(tmp_path, monkeypatch):
    monkeypatch.setattr(report, "LIMIT", 100)
    page = Page(reported(tmp_path))
    assert "video" not in page.tags and "larger than" in page.text
    assert page.tags.count("img") == 1 + 12


def test_a_large_clip_is_shown_small(tmp_path):
    frame, map_ = np.zeros((1081, 1921, 3), np.uint8), np.zeros((4, 4), "f4")
    text = reported(tmp_path, size=(1921, 1081), clip=[(frame, map_)])
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
    assert 'class="note"' not in reported(tmp_path, 1)


@pytest.mark.parametrize("count", [1, 12, 24, 25, 100, 300])
def test_stills_are_few_and_evenly_spread(tmp_path, monkeypatch, count):
    made = []
    jpeg = report._jpeg
    monkeypatch.setattr(report, "_jpeg", lambda p: made.append(p) or jpeg(p))
    data = data_of(reported(tmp_path, count, fps=1))
    moments = data["moments"]
    assert len(moments) == min(count, 12)
    assert moments[0] == 0 and moments[-1] >= 0.9 * (count - 1)
    if count > 1:
        steps = np.diff(moments)
        assert 0 < steps.max() <= 2 * steps.min()
    assert len(made) <= 25 + 12 * np.log2(count)


def test_long_curves_are_means(tmp_path, monkeypatch):
    monkeypatch.setattr(report, "_POINTS", 10)
    data = data_of(reported(tmp_path, 27, areas=AREAS))
    assert data["times"] == pytest.approx(np.arange(0, 27, 3) / 10)
    monkeypatch.undo()
    each = data_of(reported(tmp_path, 27, areas=AREAS))
    few, all_ = ([found["focus"], *found["areas"]] for found in (data, each))
    means = np.reshape(all_, (3, 9, 3)).mean(axis=2)
    np.testing.assert_allclose(few, means, atol=2e-5)


# What a visitor does; the answers are (video's time, timeline's value).
VISIT = """(async done => {
const movie = document.querySelector('video');
const line = document.getElementById('timeline'), found = {};
async function until(done) {
  while (!done()) await new Promise(go => setTimeout(go, 20));
}
async function now() {
  await until(() => !movie.seeking);
  return [movie.currentTime, Number(line.getAttribute('aria-valuenow'))];
}
await until(() => movie.readyState >= 2 && movie.duration);
found.duration = movie.duration;
found.titles = [document.title, document.querySelector('h1').innerText];
found.loaded = performance.getEntriesByType('resource').map(e => e.name)
    .filter(name => !name.startsWith('data:'));
const curves = document.querySelector('#timeline svg');
curves.scrollIntoView({block: 'center'});
const box = curves.getBoundingClientRect();
const at = {clientX: box.x + 0.75 * box.width, bubbles: true,
    clientY: box.y + box.height / 2};
line.setPointerCapture = () => {};  // It takes real pointers alone.
// Nothing lies over the curves.
document.elementFromPoint(at.clientX, at.clientY)
    .dispatchEvent(new PointerEvent('pointerdown', at));
found.pointer = await now();
found.shares = ['area0', 'area1'].map(
    id => document.getElementById(id).innerText);
const cursor = document.querySelector('.cursor').getBoundingClientRect();
found.cursor = (cursor.x + 1 - box.x) / box.width;
for (const key of ['ArrowLeft', 'Home']) {
  line.dispatchEvent(new KeyboardEvent('keydown', {key}));
  found[key] = await now();
}
const stills = [...document.querySelectorAll('.film button')];
stills[2].click();
found.still = await now();
found.marked = stills.map(still => still.classList.contains('on'));
document.querySelector('td button').click();
found.row = await now();
found.fits = document.documentElement.scrollWidth <= innerWidth;
done(found);
})(arguments[0]);"""


def test_a_browser_plays_the_page_and_clicks_seek(tmp_path):
    how = {"areas": AREAS, "title": WILD, "note": "random"}
    data = data_of(reported(tmp_path, count=40, begin=5.0, **how))
    with browsers.start() as browser:
        browser.set_script_timeout(120)
        browser.get((tmp_path / "report.html").as_uri())
        found = browser.execute_async_script(VISIT)
    assert found["titles"] == [WILD, WILD]
    assert found["duration"] == pytest.approx(4.0)
    assert found["loaded"] == []
    for name, seconds in (
        ("pointer", 3.0),
        ("ArrowLeft", 2.0),
        ("Home", 0.0),
        ("still", data["moments"][2] - 5),
        ("row", 0.0),
    ):
        wanted = [seconds, 5 + seconds]
        assert found[name] == pytest.approx(wanted, abs=0.03), name
    assert found["shares"] == [f"{100 * a[30]:.1f} %" for a in data["areas"]]
    assert float(found["shares"][1].split()[0]) > 99
    assert found["cursor"] == pytest.approx(0.75, abs=0.01)
    assert [k for k, on in enumerate(found["marked"]) if on] == [2]
    assert found["fits"]
