"""Where a change is reviewed, GitHub or GitLab, behind one small interface; which one it is stands in the environment.

A request that could make something twice is never repeated by a client; `commenting` looks first, and asks again.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Protocol

from runner.errors import NotFound, Permanent, RateLimited, Transient, VecrunError, register_secret

#: Seconds that a host has for an answer.
TIMEOUT = 30


@dataclass(frozen=True)
class Comment:
    """A comment that was written with our token. `handle`: what its client knows it by."""

    id: int
    text: str
    url: str
    handle: Any


class Host(Protocol):
    """A host for one repository. `pr`: the number of a pull request or a merge request. Every call may raise Transient,
    Permanent or NotFound."""

    name: str
    limit: int  # characters that a comment may have

    def comments(self, pr: int) -> Iterator[Comment]:
        """Our comments, the oldest first."""

    def create(self, pr: int, text: str) -> Comment:
        """Write a comment. Not tried twice: after Transient it may stand there."""

    def update(self, comment: Comment, text: str) -> Comment:
        """Write it anew, in place."""

    def head(self, pr: int) -> str:
        """The newest commit of the change."""

    def approvals(self, pr: int, head: str, since: str = "") -> tuple[str, ...]:
        """Who approved this commit, not before `since` (ISO 8601), may write to the repository, and is not the author;
        sorted."""

    def of_commit(self, commit: str) -> list[int]:
        """The changes that brought a commit, or of which it is the head."""


def choose(name: str = "", repository: str = "", environ: Mapping[str, str] | None = None) -> Host | None:
    """The host that is named (github, gitlab, none), or the one whose pipeline this is; None: there is none.

    `repository`: owner/name, or the id or path of a project. VecrunError when its token or the repository is not known.
    """
    given = os.environ if environ is None else environ
    if not name:
        name = "github" if "GITHUB_REPOSITORY" in given else "gitlab" if "CI_PROJECT_ID" in given else "none"
    if name == "none":
        return None
    if name == "github":
        from runner.ci.hosts.github import GitHub

        url = given.get("GITHUB_API_URL") or "https://api.github.com"
        return GitHub(
            url, _repository(repository, given, "GITHUB_REPOSITORY"), _token(given, "GITHUB_TOKEN", "GH_TOKEN"),
            given.get("VECRUN_GITHUB_APP") or "github-actions",
        )  # fmt: skip
    from runner.ci.hosts.gitlab import GitLab

    url = (given.get("CI_API_V4_URL") or "https://gitlab.com/api/v4").rstrip("/").removesuffix("/api/v4")
    project = _repository(repository, given, "CI_PROJECT_ID")
    if "GITLAB_TOKEN" not in given and (job_token := given.get("CI_JOB_TOKEN")):
        register_secret(job_token)
        return GitLab(url, project, job_token=job_token, user=given.get("GITLAB_USER_LOGIN", ""))
    return GitLab(url, project, token=_token(given, "GITLAB_TOKEN"))


def change_here(environ: Mapping[str, str] | None = None) -> int | None:
    """The number of the pull request or merge request that this pipeline is about; None when it is about none."""
    given = os.environ if environ is None else environ
    if (number := given.get("CI_MERGE_REQUEST_IID", "")).isdigit():
        return int(number)
    if found := re.fullmatch(r"refs/pull/(\d+)/(?:merge|head)", given.get("GITHUB_REF", "")):
        return int(found[1])
    try:
        event = json.loads(Path(given["GITHUB_EVENT_PATH"]).read_text(encoding="utf-8"))
        for key in ("pull_request", "issue"):  # a comment on a pull request is an event of an issue
            if isinstance(event.get(key), dict):
                return int(event[key]["number"])
    except (KeyError, OSError, ValueError, TypeError, AttributeError):
        return None
    return None


def number_of(host: Host, pr: int | None, commit: str) -> int:
    """The change that is meant: the one named, that of this pipeline, or the only one that brought `commit`. NotFound."""
    if (known := pr or change_here()) is not None:
        return known
    found = host.of_commit(commit)
    if len(found) == 1:
        return found[0]
    what = "none" if not found else ", ".join(map(str, found))
    raise NotFound(
        "It is not known which pull request is meant", f"{host.name} knows of commit {commit[:12]}: {what}", "Name it: --pr NUMBER"
    )  # fmt: skip


def refused(name: str, doing: str, status: int | None, said: str, wait: str | None = None) -> VecrunError:
    """The error of an answer that is none. `said`: the host's own sentence; `wait`: seconds, if it says how long."""
    detail = f"{doing}: HTTP {status}" + (f", {_sentence(said)}" if said else "")
    if status in (401, 403):
        hint = "GitHub: permissions: pull-requests: write, contents: read; the token of a fork can only read"
        if name == "GitLab":
            hint = "A project access token with the scope api in GITLAB_TOKEN; the token of a job can do less"
        return Permanent(f"{name} does not allow it", detail, hint)
    if status == 404:
        return NotFound(
            f"{name} does not find it", detail, "Look at the number and the repository, and what the token may read"
        )
    if status == 429:
        return RateLimited.after(_seconds(wait), f"{name} has had too many requests", detail)
    if status is None or status >= 500:
        return Transient(f"{name} does not answer", detail if status else f"{doing}: {_sentence(said)}")
    return Permanent(f"{name} has refused it", detail)


def moment(text: str) -> datetime:
    """A moment as an API or a marker gives it; the beginning of time for none."""
    return datetime.fromisoformat(text) if text else datetime.min.replace(tzinfo=UTC)


def missing(package: str) -> VecrunError:
    """The error when a client is not installed."""
    return VecrunError("A package is missing", package, "pip install 'vecrun[ci]'")


def _sentence(text: str) -> str:
    return " ".join(text.split())[:300]


def _seconds(text: str | None) -> float | None:
    try:
        return float(text) if text else None
    except ValueError:
        return None


def _repository(given: str, environ: Mapping[str, str], variable: str) -> str:
    if found := given or environ.get(variable, ""):
        return found
    raise VecrunError("The repository is not known", f"{variable} is not set", "Name it: --repo OWNER/NAME")


def _token(environ: Mapping[str, str], *variables: str) -> str:
    for variable in variables:
        if found := environ.get(variable):
            register_secret(found)
            return found
    raise VecrunError(
        "There is no token for the host", f"{' or '.join(variables)} is not set",
        "Give the step its token: env: GITHUB_TOKEN: ${{ github.token }}; GitLab: a masked variable GITLAB_TOKEN",
    )  # fmt: skip
