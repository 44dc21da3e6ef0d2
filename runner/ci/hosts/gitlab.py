"""GitLab, through python-gitlab. It waits where GitLab says that it was asked too often."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import cached_property
from typing import Any

from runner.ci.hosts import TIMEOUT, Comment, missing, moment, refused

#: Access levels that may push: Developer and above.
_DEVELOPER = 30


class GitLab:
    """One project. `url`: of the host, without /api/v4; `project`: its id or path. `user`: who a job's token stands for."""

    name = "GitLab"
    limit = 1_000_000

    def __init__(self, url: str, project: str, *, token: str = "", job_token: str = "", user: str = "") -> None:
        try:
            import gitlab
        except ImportError as exc:
            raise missing("python-gitlab") from exc
        self._client = gitlab.Gitlab(
            url, private_token=token or None, job_token=job_token or None, timeout=TIMEOUT, per_page=100, user_agent="vecrun",
            retry_transient_errors=True, keep_base_url=True,
        )  # fmt: skip
        self._user = user
        self._project = self._client.projects.get(project, lazy=True)

    def comments(self, pr: int) -> Iterator[Comment]:
        with _translated("read the notes"):
            notes = self._change(pr).notes.list(iterator=True, sort="asc", order_by="created_at", max_retries=5)
            for note in notes:
                if not note.system and note.author["username"] == self._login:
                    yield self._comment(pr, note)

    def create(self, pr: int, text: str) -> Comment:
        with _translated("write a note"):
            notes = self._change(pr).notes
            return self._comment(pr, notes.create({"body": text}, retry_transient_errors=False))

    def update(self, comment: Comment, text: str) -> Comment:
        with _translated("update a note"):
            comment.handle.body = text
            comment.handle.save(max_retries=5)
            return Comment(comment.id, text, comment.url, comment.handle)

    def head(self, pr: int) -> str:
        with _translated("read the merge request"):
            return str(self._project.mergerequests.get(pr, max_retries=5).sha)

    def approvals(self, pr: int, head: str, since: str = "") -> tuple[str, ...]:
        with _translated("read the approvals"):
            change = self._project.mergerequests.get(pr, max_retries=5)
            pushed = [
                moment(item.created_at) for item in change.diffs.list(iterator=True) if item.head_commit_sha == head
            ]
            if change.sha != head or not pushed:
                return ()
            # an approval is of the merge request: it is of this commit when it came after it
            users = [
                item["user"]
                for item in change.approvals.get().approved_by
                if item.get("approved_at") and moment(item["approved_at"]) >= max(*pushed, moment(since))
            ]
            return tuple(
                sorted(
                    user["username"]
                    for user in users
                    if user["username"] != change.author["username"] and self._may_write(user["id"])
                )
            )

    def of_commit(self, commit: str) -> list[int]:
        with _translated("look for the merge request of a commit"):
            found = self._project.commits.get(commit, lazy=True).merge_requests()
            return [int(item["iid"]) for item in found]

    def _change(self, pr: int) -> Any:
        return self._project.mergerequests.get(pr, lazy=True)

    @cached_property
    def _login(self) -> str:
        if self._user:
            return self._user
        self._client.auth()
        assert self._client.user is not None
        return str(self._client.user.username)

    def _may_write(self, user: int) -> bool:
        import gitlab

        try:
            return int(self._project.members_all.get(user).access_level) >= _DEVELOPER
        except gitlab.GitlabGetError as exc:
            if exc.response_code == 404:  # no member
                return False
            raise

    def _comment(self, pr: int, note: Any) -> Comment:
        return Comment(int(note.id), str(note.body), f"!{pr} note {note.id}", note)


@contextmanager
def _translated(doing: str) -> Iterator[None]:
    import gitlab
    import requests

    try:
        yield
    except gitlab.GitlabError as exc:
        raise refused("GitLab", doing, exc.response_code, str(exc.error_message)) from None
    except requests.RequestException as exc:
        raise refused("GitLab", doing, None, type(exc).__name__) from None
