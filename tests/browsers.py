"""Chromium, driven by Selenium; its camera plays a pattern."""

import shutil

import pytest

_NAMES = ("chromium", "chromium-browser", "google-chrome", "chrome")


def start():
    """A browser, which a `with` block ends."""
    webdriver = pytest.importorskip("selenium.webdriver")
    program = next(filter(None, map(shutil.which, _NAMES)), None)
    driver = shutil.which("chromedriver")
    if not program or not driver:
        pytest.skip("Chromium or chromedriver is not installed.")
    options = webdriver.ChromeOptions()
    options.binary_location = program
    for argument in (
        *("headless=new", "no-sandbox", "disable-dev-shm-usage"),
        "use-fake-ui-for-media-stream",
        "use-fake-device-for-media-stream",
        "window-size=1400,1000",
    ):
        options.add_argument(f"--{argument}")
    service = webdriver.ChromeService(executable_path=driver)
    return webdriver.Chrome(options=options, service=service)
