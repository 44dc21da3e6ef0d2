"""What vecrun reads of a git repository: commits, the files of one, which files are not committed. Nothing is written to it.

The `git` command does it. What a commit holds is data of whoever wrote it: links that lead out of the workspace are refused,
and nothing is checked out.
"""

from __future__ import annotations

import hashlib
import os
import posixpath
import re
import subprocess
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from runner.errors import NotFound, VecrunError

#: The first line of a file that Git LFS keeps elsewhere.
_LFS = b"version https://git-lfs.github.com/spec/v1\n"
_LFS_DIGEST = re.compile(rb"^oid sha256:([0-9a-f]{64})$", re.MULTILINE)
_LINK, _SUBMODULE = "120000", "160000"
#: Links that lead to links.
_LINKS = 8


@dataclass(frozen=True)
class Repository:
    """A repository. `top`: its folder; `prefix`: where the workspace is in it, with / at its end, or empty."""

    top: Path
    prefix: str

    @property
    def workspace(self) -> str:
        """The folder of the workspace in the repository; . when it is the repository."""
        return self.prefix.rstrip("/") or "."

    def commit(self, name: str) -> str:
        """The commit that a branch, a tag or a digest names. NotFound."""
        if not name or name.startswith("-"):
            raise NotFound("No such commit", repr(name), "Name a branch, a tag or a commit, such as origin/main")
        found = self._try("rev-parse", "--verify", "--quiet", f"{name}^{{commit}}")
        if found is None:
            raise NotFound(
                "No such commit", f"{name} is not in {self.top}",
                "Fetch it: git fetch origin; actions/checkout: fetch-depth: 0; GitLab: GIT_DEPTH: 0",
            )  # fmt: skip
        return found.decode().strip()

    def merge_base(self, one: str, other: str) -> str:
        """The commit at which two parted. VecrunError when the repository does not have it."""
        found = self._try("merge-base", self.commit(one), self.commit(other))
        if found is not None and found.strip():
            return found.decode().split()[0]
        shallow = self._git("rev-parse", "--is-shallow-repository").strip() == b"true"
        raise VecrunError(
            "The commits have no common ancestor here", f"{one} and {other} in {self.top}",
            "The clone is shallow. Fetch all of it: git fetch --unshallow; actions/checkout: fetch-depth: 0; GitLab: GIT_DEPTH: 0"
            if shallow else "Choose a base that the change comes from",
        )  # fmt: skip

    def files(self, commit: str, below: str = "") -> dict[str, str]:
        """Files of the workspace in a commit, by their path in it: what each is (its mode). `below`: only that file or those
        in that folder."""
        at = posixpath.normpath(self.prefix + below) if self.prefix + below else ""
        found = self._git("ls-tree", "-r", "-z", "--full-tree", commit, *(["--", at] if at not in ("", ".") else []))
        entries = [line.split("\t", 1) for line in found.decode("utf-8", "surrogateescape").split("\0") if line]
        return {
            name.removeprefix(self.prefix): what.split()[0] for what, name in entries if name.startswith(self.prefix)
        }

    def read(self, commit: str, path: str) -> bytes | None:
        """A file of the workspace in a commit, through links that stay in the workspace; None when there is none. VecrunError
        for a link that leads out of it."""
        for _step in range(_LINKS):
            if (at := self._inside(path)) is None:
                raise outside(path)
            mode = self.files(commit, at).get(at)
            if mode is None or mode == _SUBMODULE:
                return None
            data = self._git("cat-file", "blob", f"{commit}:{self.prefix}{at}")
            if mode != _LINK:
                return data
            path = posixpath.join(posixpath.dirname(at), data.decode("utf-8", "surrogateescape"))
        raise outside(path)

    def changed(self, paths: Iterable[str]) -> list[str]:
        """Those of the workspace's files (or files in these folders) that are not as HEAD has them, sorted."""
        at = [f":(top,literal){posixpath.normpath(self.prefix + path)}" for path in paths]
        if not at:
            return []
        found = self._git("status", "--porcelain=v1", "-z", "--no-renames", "--untracked-files=all", "--", *at)
        lines = [line for line in found.decode("utf-8", "surrogateescape").split("\0") if line]
        names = (line[3:].removeprefix(self.prefix) for line in lines)
        return sorted(name.encode("utf-8", "surrogateescape").decode("utf-8", "replace") for name in names)

    def tracked(self, path: str) -> bool:
        """Whether git keeps a file of the workspace."""
        at = posixpath.normpath(self.prefix + path)
        return bool(self._git("ls-files", "-z", "--", f":(top,literal){at}"))

    def _inside(self, path: str) -> str | None:
        at = posixpath.normpath(path)
        return None if at.startswith(("/", "../")) or at == ".." else at

    def _try(self, *args: str) -> bytes | None:
        done = _run(self.top, args)
        return done.stdout if done.returncode == 0 else None

    def _git(self, *args: str) -> bytes:
        done = _run(self.top, args)
        if done.returncode != 0:
            raise VecrunError("git has failed", f"git {args[0]}: {_said(done)}")
        return done.stdout


def find(root: Path) -> Repository:
    """The repository that a workspace is in. VecrunError when there is none."""
    done = _run(root, ("rev-parse", "--show-toplevel", "--show-prefix"))
    if done.returncode != 0:
        said = _said(done)
        hint = "Make one: git init. vecrun ci compares commits"
        if "dubious ownership" in said:
            hint = f"Trust it: git config --global --add safe.directory {root}"
        raise VecrunError("This is no git repository", f"{root}: {said}", hint)
    top, _, prefix = done.stdout.decode("utf-8", "surrogateescape").partition("\n")
    return Repository(Path(top), prefix.rstrip("\n"))


def outside(path: str) -> VecrunError:
    """The error about a path that leaves the workspace."""
    return VecrunError("A file leads out of the workspace", path, "Put the file into the workspace, not a link to it")


def is_pointer(data: bytes) -> bool:
    """Whether a file is what Git LFS leaves in its place."""
    return data.startswith(_LFS)


def content_digest(data: bytes) -> str:
    """sha256 of a file as 64 hex digits; of a pointer of Git LFS, that of the file that it stands for."""
    found = _LFS_DIGEST.search(data) if is_pointer(data) else None
    return found[1].decode() if found else hashlib.sha256(data).hexdigest()


def _run(folder: Path, args: Iterable[str]) -> subprocess.CompletedProcess[bytes]:
    """git, without questions, locks or colours, in English."""
    quiet = {"GIT_TERMINAL_PROMPT": "0", "GIT_OPTIONAL_LOCKS": "0", "LC_ALL": "C"}
    try:
        return subprocess.run(  # noqa: S603  a list of arguments, no shell
            ["git", "-c", "core.fsmonitor=false", "-c", "core.quotepath=false", *args],  # noqa: S607  wherever it is installed
            cwd=folder, env=os.environ | quiet, capture_output=True, check=False, stdin=subprocess.DEVNULL,
        )  # fmt: skip
    except OSError as exc:
        raise VecrunError(
            "git cannot be started", str(exc.strerror), "Install git: vecrun ci compares commits"
        ) from exc


def _said(done: subprocess.CompletedProcess[bytes]) -> str:
    lines = done.stderr.decode("utf-8", "replace").strip().splitlines()
    return lines[0] if lines else f"exit code {done.returncode}"
