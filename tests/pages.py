"""What the documentation lets its readers type: commands, flags and code."""

from collections.abc import Iterator
import pathlib
import re
import shlex
from typing import Any, NamedTuple

ROOT = pathlib.Path(__file__).parents[1]
PAGES = sorted(
    [ROOT / "README.md", ROOT / "WORKSPACE.md", *ROOT.glob("docs/*.md")]
)

_FENCED = re.compile(r"^```(\w*)\n(.*?)^```$", re.DOTALL | re.MULTILINE)
_SPAN = re.compile(r"`([^`]+)`")
# What a page lets a sign stand for, such as $P.
_SHORT = re.compile(r"`(\$[A-Z])` below stands for\s+`([^`]+)`")
_OURS = re.compile(r"-m (lsts_tf|benchmarks)\.")


class Command(NamedTuple):
    """`interpreter -m module arguments`."""

    interpreter: str
    module: str
    arguments: tuple[str, ...]


def blocks(page: pathlib.Path, language: str = "") -> list[str]:
    """Texts of the fenced blocks of a language."""
    found = _FENCED.findall(page.read_text(encoding="utf-8"))
    return [text for tag, text in found if tag == language]


def run_python(
    name: str, *, replace: tuple[str, str] = ("", ""), **names: Any
) -> Iterator[dict[str, Any]]:
    """Runs a page's blocks of Python one after the other, as one program.

    Args:
        name: Of the page, as README.md or predict.md.
        replace: A word of the blocks, and what stands in its place.
        **names: What the blocks take for granted.

    Yields:
        All names after each block; what is changed there holds for the next.
    """
    (page,) = (p for p in PAGES if p.name == name)
    for code in blocks(page, "python"):
        exec(compile(code.replace(*replace), str(page), "exec"), names)
        yield names


def prose(page: pathlib.Path) -> str:
    """Everything but the fenced blocks."""
    return _FENCED.sub("", page.read_text(encoding="utf-8"))


def spans(page: pathlib.Path) -> list[str]:
    """Code between words, each on one line."""
    found = _SPAN.findall(prose(page))
    return [" ".join(s.replace(r"\|", "|").split()) for s in found]


def fenced_commands(page: pathlib.Path) -> list[Command]:
    """Commands to paste; a sign that stands for one is written out."""
    text = "\n".join(blocks(page)).replace("\\\n", " ")
    return _commands(page, text.splitlines())


def commands(page: pathlib.Path) -> list[Command]:
    """Those, and the ones between words."""
    return [*fenced_commands(page), *_commands(page, spans(page))]


def _commands(page: pathlib.Path, lines: list[str]) -> list[Command]:
    short = dict(_SHORT.findall(page.read_text(encoding="utf-8")))
    found = []
    for line in lines:
        for sign, command in short.items():
            line = line.replace(f"{sign} ", f"{command} ")
        if _OURS.search(line):
            found += _parsed(line)
    return found


def _parsed(line: str) -> list[Command]:
    lexer = shlex.shlex(line, posix=True, punctuation_chars=";|&<>")
    lexer.whitespace_split = True
    found, words = [], []
    for word in [*lexer, ";"]:
        if set(word) <= set(";|&<>"):
            if "-m" in words[1:]:
                at = words.index("-m")
                before, (module, *arguments) = words[at - 1], words[at + 1 :]
                found.append(Command(before, module, tuple(arguments)))
            words = []
        else:
            words.append(word)
    return found
