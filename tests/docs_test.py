"""Commands and flags in the documentation are ones that programs take."""

import argparse
import os
import pathlib
import re
import runpy
from unittest import mock

from absl import app, flags
import pytest

from lsts_tf import experiment
from tests import flag_scope, pages

PYTHON = ".venv/bin/python"
WIDTH = 120
# Flags in the text that belong to programs of others.
FOREIGN = {
    "--flagfile",  # absl, everywhere
    "--manual_dir",  # tfds build
    "--qpfile",  # x264
    "--zones",  # x264
}


class Taken(Exception):  # noqa: N818, not an error
    """A program took its flags and would begin."""


def path_of(module):
    return pages.ROOT.joinpath(*module.split(".")).with_suffix(".py")


@pytest.fixture
def take(tmp_path, monkeypatch):
    """Starts a program as `python -m` does, up to where its flags are read."""
    empty = tmp_path / "experiment.flags"
    empty.touch()
    monkeypatch.chdir(pages.ROOT)
    real = argparse.ArgumentParser.parse_args
    given = []

    def by_absl(main, **_):
        rest = flags.FLAGS(["program", *given])
        if "run_dir" in flags.FLAGS:
            experiment.from_flags(flags.FLAGS)
        raise Taken(set(flags.FLAGS), rest)

    def by_argparse(parser):
        real(parser, given)
        raise Taken(
            {o.lstrip("-") for a in parser._actions for o in a.option_strings},
            given,
        )

    monkeypatch.setattr(app, "run", by_absl)
    monkeypatch.setattr(argparse.ArgumentParser, "parse_args", by_argparse)

    def flagfile(argument):
        """That of a run is its experiment's; without one, the defaults."""
        if not re.match("--flagfile=(?!experiments/)", argument):
            return argument
        name = pathlib.PurePath(argument).parent.name
        of_run = pathlib.Path("experiments", f"{name}.flags")
        return f"--flagfile={of_run if of_run.exists() else empty}"

    def start(command):
        """Names of all flags of the program."""
        given[:] = [flagfile(a) for a in command.arguments]
        path = str(path_of(command.module))
        with mock.patch.dict(os.environ), flag_scope.defined():
            try:
                runpy.run_path(path, run_name="__main__")
            except Taken as taken:
                return taken.args[0]
        raise AssertionError(f"{command.module} read no flags.")

    return start


def test_every_command_is_one_that_its_program_takes(take):
    """Modules are there; flags are defined, and their values allowed."""
    checked = 0
    for page in pages.PAGES:
        for command in pages.commands(page):
            assert path_of(command.module).is_file(), (page.name, command)
            if not command.arguments:
                continue
            try:
                take(command)
            except (flags.Error, SystemExit) as error:
                error.add_note(f"{page.name}: {command}")
                raise
            checked += 1
    assert checked > 50


def test_a_wrong_command_is_found(take):
    for command, error in {
        ("lsts_tf.predict", "--output=out", "--no_such_flag"): flags.Error,
        ("lsts_tf.export", "--output=out", "--format=onnx"): flags.Error,
        ("lsts_tf.train", "--batch_size=0"): flags.Error,
        ("benchmarks.train", "--no_such_flag"): SystemExit,
    }.items():
        module, *arguments = command
        with pytest.raises(error):
            take(pages.Command(PYTHON, module, tuple(arguments)))


def test_every_flag_in_the_text_is_one_of_a_program(take):
    # A command with arguments has those without which a program does not start.
    said = [c for page in pages.PAGES for c in pages.commands(page)]
    programs = {c.module: c for c in sorted(said, key=lambda c: c.arguments)}
    del programs["benchmarks.encoding"]  # It has no flags.
    known = {f"--{name}" for c in programs.values() for name in take(c)}
    for page in pages.PAGES:
        named = {
            found[0]
            for span in pages.spans(page)
            if (found := re.match(r"--\w+", span))
        }
        assert named - FOREIGN <= known, page.name


def test_commands_to_paste_use_the_environment():
    for page in pages.PAGES:
        for command in pages.fenced_commands(page):
            assert command.interpreter == PYTHON, (page.name, command)


def test_what_stands_for_something_is_explained():
    """Words in capitals, of which the reader makes a path or an address."""
    for page in pages.PAGES:
        text = " ".join(a for c in pages.fenced_commands(page) for a in c[2])
        placeholders = set(
            re.findall(r"(?<![\w.])[A-Z][A-Z\d]+(?![\w.])", text)
        )
        explained = set(re.findall(r"\b[A-Z][A-Z\d]+\b", pages.prose(page)))
        assert placeholders <= explained, page.name


def test_lines_of_python_print_what_the_page_says(capsys):
    lines = "".join(t for page in pages.PAGES for t in pages.blocks(page))
    found = re.findall(rf'^{PYTHON} -c "(.*)" +# (.*)$', lines, re.MULTILINE)
    assert found
    for code, printed in found:
        exec(code, {})
        assert capsys.readouterr().out.strip() == printed


def test_lines_are_at_most_120_columns_wide():
    """Prose, code and tables: no row of a table needs to be wider."""
    datasets = sorted(pages.ROOT.glob("data/*/README.md"))
    for page in (*pages.PAGES, *datasets):
        lines = page.read_text(encoding="utf-8").splitlines()
        wide = [n for n, line in enumerate(lines, 1) if len(line) > WIDTH]
        assert not wide, page.relative_to(pages.ROOT)


def test_nothing_is_left_to_be_filled_in():
    for page in (*pages.ROOT.glob("*.md"), *pages.ROOT.glob("*/**/*.md")):
        if ".venv" in page.parts or "workspace" in page.parts:
            continue
        found = re.findall(
            r"\b[A-Z]+_TABLE\w*|\bTODO\b|\bTRAINED\b", page.read_text()
        )
        assert not found, page
