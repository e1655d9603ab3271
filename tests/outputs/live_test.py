import time

import numpy as np
import pytest

from lsts_tf.outputs import live
from tests import cheap_prediction, predict_test


def play(camera, count):
    """Shows a film to it; overlays, and when they came."""
    found = []
    for number in range(count):
        if shown := camera(predict_test.picture(number)):
            found.append((time.monotonic(), shown))
        time.sleep(0.005)
    return found


def until(camera, user=""):
    """The first overlay."""
    for _ in range(500):
        if found := camera(predict_test.picture(0), user):
            return found
        time.sleep(0.01)
    raise AssertionError("No overlay came.")


@pytest.fixture
def camera(model):
    camera = live.Live(lambda: model)
    yield camera
    camera.end()


def test_an_overlay_is_of_a_frame_that_came(camera):
    found = until(camera)
    height, width = predict_test.SIZE[::-1]
    assert found.picture.shape == (height, width, 3)
    assert found.picture.dtype == np.uint8
    # Something is drawn over it.
    assert (found.picture != predict_test.picture(0)).any()
    assert 0 < found.delay < 60


def test_a_slow_model_lags_by_a_few_frames_only():
    """At four times its pace most frames are dropped."""
    model = cheap_prediction.predictor(cheap_prediction.Slow(0.02))
    camera = live.Live(lambda: model)
    until(camera)
    before = model.extractor.seen
    found = play(camera, 200)
    seen = model.extractor.seen - before
    camera.end()
    assert 10 < seen < 120
    assert 10 < len(found) <= seen + 2 * live.CHUNK
    # What waits: a chunk in front, one in work, one behind.
    assert found[-1][1].delay < 10 * live.CHUNK * 0.02


def test_overlays_come_in_the_order_of_their_frames(camera):
    until(camera)
    begin = time.monotonic()
    came = [when - shown.delay for when, shown in play(camera, 100)]
    late = [time for time in came if time > begin]
    assert len(late) > 10
    assert late == sorted(late)


def test_another_user_begins_a_clip(camera):
    until(camera, "one")
    running = camera._clip._running
    # Maps of one clip are not given to another user.
    assert camera(predict_test.picture(0), "other") is None
    assert running.done()
    camera.end("one")
    assert camera._clip is not None
    camera.end("other")
    assert camera._clip is None


def test_a_pause_begins_a_clip(camera, monkeypatch):
    until(camera)
    running = camera._clip._running
    monkeypatch.setattr(live, "_PAUSE", 0.0)
    camera(predict_test.picture(0))
    assert running.done()


def test_the_model_is_loaded_once_and_late(model):
    loaded = []
    camera = live.Live(lambda: loaded.append(1) or model)
    assert not loaded
    until(camera, "one")
    until(camera, "other")
    camera.end()
    assert loaded == [1]


def test_an_error_of_the_model_reaches_the_user(model, monkeypatch):
    camera = live.Live(lambda: model)
    monkeypatch.setattr(model, "hop", 4)
    with pytest.raises(ValueError, match="maps at once"):
        until(camera)
    # And does not stay.
    monkeypatch.setattr(model, "hop", 1)
    until(camera, "other")
    camera.end()
