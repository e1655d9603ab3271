"""The wheel has all that the package needs, and its papers."""

import configparser
import re
import shutil
import subprocess
import sys
import zipfile

import pytest

import lsts_tf
from tests import pages

FILES = ("pyproject.toml", "README.md", "LICENSE", "THIRD_PARTY_NOTICES.md")


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """Built from a copy: setuptools leaves folders beside what it builds."""
    # As pyproject.toml needs to build.
    pytest.importorskip("setuptools", minversion="77")
    root = tmp_path_factory.mktemp("wheel")
    for name in FILES:
        shutil.copy(pages.ROOT / name, root)
    ignored = shutil.ignore_patterns("__pycache__")
    shutil.copytree(pages.ROOT / "lsts_tf", root / "lsts_tf", ignore=ignored)
    subprocess.run(
        [
            *(sys.executable, "-W", "ignore", "-c"),
            "from setuptools import build_meta as b; b.build_wheel('.')",
        ],
        cwd=root,
        check=True,
        capture_output=True,
    )
    (path,) = root.glob("*.whl")
    with zipfile.ZipFile(path) as file:
        yield file


def test_every_file_of_the_package_is_in_it(wheel):
    package = pages.ROOT / "lsts_tf"
    wanted = {
        str(path.relative_to(pages.ROOT))
        for path in package.rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    got = {name for name in wheel.namelist() if ".dist-info/" not in name}
    assert got == wanted


def test_its_papers(wheel):
    version = lsts_tf.__version__
    info = f"lsts_tf-{version}.dist-info"
    for name in FILES[2:]:
        here = (pages.ROOT / name).read_bytes()
        assert wheel.read(f"{info}/licenses/{name}") == here
    metadata = wheel.read(f"{info}/METADATA").decode()
    assert f"\nVersion: {version}\n" in metadata
    assert "\nLicense-Expression: Apache-2.0\n" in metadata
    scripts = configparser.ConfigParser()
    scripts.read_string(wheel.read(f"{info}/entry_points.txt").decode())
    (command,) = scripts["console_scripts"].items()
    assert command == ("lsts", "lsts_tf.__main__:main")


def test_the_changelog_begins_with_the_version():
    text = (pages.ROOT / "CHANGELOG.md").read_text()
    assert re.search(r"^## \[(.*)\]", text, re.M)[1] == lsts_tf.__version__
