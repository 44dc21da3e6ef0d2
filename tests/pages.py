"""The commands that README.md and docs/ tell a reader to type: found in fenced blocks, checked against the code, and run.

A page is followed from top to bottom as a reader would: files that it shows are written (their first line is a comment with
their name, or they are a whole job), commands are run in this process, and what it shows of their output must have come.
"""

from __future__ import annotations

import contextlib
import functools
import importlib.util
import io
import os
import re
import runpy
import shlex
import subprocess
import textwrap
import tomllib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import click
import yaml
from click.testing import CliRunner, Result

from runner.cli import cli

ROOT = Path(__file__).resolve().parents[1]
PAGES = ("README.md", *sorted(str(path.relative_to(ROOT)) for path in (ROOT / "docs").rglob("*.md")))
#: Languages of fenced blocks whose lines are typed into a shell, and those that hold no commands.
SHELL, OTHER = {"sh", "bash", "console"}, {"json", "python", "text", "yaml", "{toctree}"}
#: Programs that a page may use beside vecrun, and that are run.
TOOLS = {"rm", "mkdir", "cat", "ls"}
_FENCE = re.compile(
    r"^(?P<indent> *)(?P<fence>`{3,})(?P<language>\S*)[^\n]*\n(?P<text>.*?)^ *(?P=fence) *$", re.MULTILINE | re.DOTALL
)
_FILE = re.compile(r"# ([\w./-]+\.(?:yaml|py))(, at its end)?\n")
_PLACEHOLDER = re.compile(r"[A-Z][A-Z.:/|]*|…|\[.*|\.\.\.")


@dataclass(frozen=True)
class Block:
    """A fenced block."""

    page: str
    line: int
    language: str
    text: str


@dataclass(frozen=True)
class Command:
    """One line to be typed, without its comment, and what the page shows of its output (None: nothing)."""

    page: str
    line: int
    text: str
    shown: tuple[str, ...] | None = None

    @property
    def place(self) -> str:
        return f"{self.page}:{self.line}: {self.text}"


@functools.cache
def blocks(page: str) -> tuple[Block, ...]:
    text = (ROOT / page).read_text()
    return tuple(
        Block(page, text.count("\n", 0, found.start()) + 1, found["language"], textwrap.dedent(found["text"]))
        for found in _FENCE.finditer(text)
    )


def commands(block: Block) -> Iterator[Command]:
    """The commands of a block, in their order. In a console block they begin with `$ `, and output follows."""
    if block.language not in SHELL:
        return
    lines = block.text.splitlines()
    if block.language == "console":
        starts = [number for number, line in enumerate(lines) if line.startswith("$ ")]
        assert starts[:1] == [0], f"{block.page}:{block.line}: a console block begins with `$ `"
        for start, end in zip(starts, [*starts[1:], len(lines)], strict=True):
            shown = tuple(lines[start + 1 : end])
            yield Command(block.page, block.line + start + 1, _bare(lines[start][2:]), shown)
        return
    whole = ""
    for number, line in enumerate(lines, block.line + 1):
        whole += line.strip()
        if whole.endswith("\\"):
            whole = whole[:-1]
            continue
        if bare := _bare(whole):
            yield Command(block.page, number, bare)
        whole = ""


def _bare(line: str) -> str:
    """Without a comment at its end, which begins with `#` after a space outside quotes."""
    quote = ""
    for place, letter in enumerate(line):
        if quote:
            quote = "" if letter == quote else quote
        elif letter in "'\"":
            quote = letter
        elif letter == "#" and (place == 0 or line[place - 1] == " "):
            return line[:place].rstrip()
    return line.rstrip()


def inline(page: str) -> Iterator[Command]:
    """What stands between backticks in the text of a page and begins with vecrun or a program that may hold it."""
    text = _FENCE.sub(lambda found: "\n" * found[0].count("\n"), (ROOT / page).read_text())
    for found in re.finditer(r"`((?:vecrun|make|python -m|docker compose|kubectl) [^`]+)`", text):
        yield Command(page, text.count("\n", 0, found.start()) + 1, " ".join(found[1].split()))


# -- whether a command could be run: its words against the code ---------------------------------------------------------


def complaints(text: str) -> list[str]:
    """What is wrong with a command line: a subcommand, an option, a target, an extra, a module, a file that is not there."""
    wrong = []
    for words in _simple(text):
        match words:
            case ["vecrun", *rest]:
                wrong += _vecrun(rest)
            case ["make", *targets]:
                wrong += [f"no target {name}" for name in targets if name not in _targets()]
            case ["python" | "python3", "-m", module, *_] if module not in ("venv", "pip"):
                wrong += [] if importlib.util.find_spec(module) else [f"no module {module}"]
        wrong += [
            f"no extra {name}"
            for found in re.findall(r"(?:^| )(?:vecrun|\.)\[([\w,-]+)\]", " ".join(words))
            for name in found.split(",")
            if name not in _project()["optional-dependencies"]
        ]
        wrong += [f"no file {word}" for word in words if word.startswith("deploy/") and not (ROOT / word).exists()]
    return wrong


def _simple(text: str) -> Iterator[list[str]]:
    """The simple commands of a line as words. Those inside `$(…)` and after another program's words (docker … vecrun), too."""
    lexer = shlex.shlex(text, posix=True, punctuation_chars="();&|<>")
    lexer.whitespace_split, lexer.commenters = True, ""
    words: list[str] = []
    for word in [*lexer, ";"]:
        if word and set(word) <= set("();&|"):
            while words and (words[0] in ("do", "then", "in") or re.match(r"\w+=", words[0])):
                words.pop(0)
            if words:
                yield words
                if words[0] in ("docker", "kubectl"):
                    inner = [at for at, one in enumerate(words) if one == "vecrun" and words[at - 1] != "-n"]
                    yield from (words[at:] for at in inner[-1:])
            words = []
        else:
            words.append(word)


def _vecrun(words: Sequence[str]) -> list[str]:
    """Wrong subcommands and options, also of a line with words in capitals that stand for something."""
    command: click.Command = cli
    rest = [word for word in words if word not in (">", "<")]
    wrong = []
    options = {name: param for param in cli.params for name in param.opts}
    while rest:
        word = rest.pop(0)
        if word.startswith("-") and word != "-":
            name, equals, _ = word.partition("=")
            found = options.get(name)
            if name in ("-h", "--help"):
                continue
            if found is None:
                wrong.append(f"no option {name}")
            elif not equals and isinstance(found, click.Option) and not found.is_flag and not found.count:
                rest = rest[1:]
        elif isinstance(command, click.Group) and not _PLACEHOLDER.fullmatch(word):
            if word not in command.commands:
                return [*wrong, f"no command {word}"]
            command = command.commands[word]
            options |= {name: param for param in command.params for name in (*param.opts, *param.secondary_opts)}
    return wrong


@functools.cache
def _targets() -> frozenset[str]:
    return frozenset(re.findall(r"^([a-z][a-z-]*):", (ROOT / "Makefile").read_text(), re.MULTILINE))


@functools.cache
def _project() -> dict[str, dict[str, list[str]]]:
    found: dict[str, dict[str, list[str]]] = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    return found


# -- a reader who does what a page says ---------------------------------------------------------------------------------


class Person(io.BytesIO):
    """Somebody at a terminal, who answers yes."""

    def __init__(self) -> None:
        super().__init__(b"yes\n" * 3)

    def isatty(self) -> bool:
        return True


@dataclass
class Reader:
    """Follows a page. `before`: what happens in the world before a command; `ends`: its exit codes, where they are not 0."""

    before: Mapping[str, Callable[[], object]] = field(default_factory=dict)
    ends: Mapping[str, Sequence[int]] = field(default_factory=dict)
    done: list[str] = field(default_factory=list)

    def follow(self, page: str, left_out: Callable[[Command], bool]) -> None:
        """Write the files and run the commands of a page. AssertionError where something else comes than is shown."""
        for block in blocks(page):
            self.save(block)
            for command in commands(block):
                if not left_out(command):
                    self.run(command)
        assert not [name for name in (*self.before, *self.ends) if name not in self.done], (
            "the page has no such command"
        )

    def save(self, block: Block) -> None:
        """Write a file that a page shows. Settings are left to the world of the page: servers are meant there."""
        if block.language not in ("yaml", "python"):
            return
        named = _FILE.match(block.text)
        if named:
            path, more = Path(named[1]), bool(named[2])
        elif re.match(r"(# yaml-language-server: .*\n)?apiVersion: ", block.text):
            path, more = Path("jobs", f"{yaml.safe_load(block.text)['metadata']['name']}.yaml"), False
        else:
            return
        if path.name != "vecrun.yaml":
            path.parent.mkdir(exist_ok=True)
            path.write_text(path.read_text() + block.text.partition("\n")[2] if more else block.text)

    def run(self, command: Command) -> None:
        """Run one line."""
        if prepare := self.before.get(command.text):
            prepare()
        printed, code = "", 0
        for part in command.text.split(" && "):
            words = shlex.split(part)
            if words[0] == "cd":
                os.chdir(words[1])
            elif words[0] == "vecrun":
                found = vecrun(*words[1:])
                printed, code = printed + found.output, found.exit_code
            elif words[0] == "python":
                with contextlib.redirect_stdout(io.StringIO()) as out:
                    runpy.run_path(words[1])
                printed += out.getvalue()
            else:
                assert words[0] in TOOLS, f"{command.place}: neither run nor left out with a reason"
                told = subprocess.run(part, shell=True, check=True, capture_output=True, text=True, timeout=60)
                printed += told.stdout
            if code:
                break
        times = self.done.count(command.text)
        expected = [*self.ends.get(command.text, []), 0, 0, 0, 0][times]
        self.done.append(command.text)
        assert code == expected, f"{command.place}: exit code {code}\n{printed}"
        if command.shown:
            missing = not_shown(command.shown, printed)
            assert missing is None, f"{command.place}: no line {missing!r} in\n{printed}"


def vecrun(*words: str) -> Result:
    """The command line in this process, with somebody at the terminal."""
    found = CliRunner().invoke(cli, list(words), input=Person())
    if found.exception is not None and not isinstance(found.exception, SystemExit):
        raise found.exception
    return found


def not_shown(shown: Sequence[str], printed: str) -> str | None:
    """The first line of `shown` that did not come; None when all did, in this order and without gaps but those marked `…`."""
    lines = [line.rstrip() for line in printed.rstrip("\n").split("\n")]
    at, gap = 0, False
    for line in map(str.rstrip, shown):
        if line == "…":
            gap = True
            continue
        pattern = re.compile(".*".join(map(re.escape, line.split("…"))))
        while at < len(lines) and not pattern.fullmatch(lines[at]):
            if not gap:
                return line
            at += 1
        if at == len(lines):
            return line
        at, gap = at + 1, False
    return None if gap or at == len(lines) else "(the end: more was printed)"
