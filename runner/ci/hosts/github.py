"""GitHub and GitHub Enterprise, through PyGithub. It waits where GitHub says that it was asked too often."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cached_property
from typing import TYPE_CHECKING

from runner.ci.hosts import TIMEOUT, Comment, missing, moment, refused

if TYPE_CHECKING:
    from github.IssueComment import IssueComment
    from github.PullRequest import PullRequest

#: Requests that may be sent again: those that come to the same. A comment that is made twice is two.
_REPEATABLE = frozenset({"GET", "PATCH"})
#: States of a review that say something about the change; a comment leaves the state as it was.
_JUDGING = ("APPROVED", "CHANGES_REQUESTED", "DISMISSED")
_MAY_WRITE = ("admin", "maintain", "write")


class GitHub:
    """One repository. `url`: of the API; `repository`: owner/name; `app`: whose token it is where it is no user's."""

    name = "GitHub"
    limit = 65_536

    def __init__(self, url: str, repository: str, token: str, app: str = "github-actions") -> None:
        try:
            import github
        except ImportError as exc:
            raise missing("PyGithub") from exc
        logging.getLogger("github").setLevel(
            logging.ERROR
        )  # it sets itself to INFO, and tells refusals that are expected
        retry = github.GithubRetry(total=5, max_rate_limit_wait=120, allowed_methods=_REPEATABLE)
        self._client = github.Github(
            auth=github.Auth.Token(token), base_url=url.rstrip("/"), timeout=TIMEOUT, per_page=100, retry=retry,
            user_agent="vecrun", seconds_between_requests=None, seconds_between_writes=None, lazy=True,
        )  # fmt: skip
        self._repository = self._client.get_repo(repository)
        self._app = app.removesuffix("[bot]")
        self._pulls: dict[int, PullRequest] = {}

    def comments(self, pr: int) -> Iterator[Comment]:
        with _translated("read the comments"):
            for item in self._pull(pr).get_issue_comments():
                if self._is_mine(item):
                    yield _comment(item)

    def create(self, pr: int, text: str) -> Comment:
        with _translated("write a comment"):
            return _comment(self._pull(pr).create_issue_comment(text))

    def update(self, comment: Comment, text: str) -> Comment:
        with _translated("update a comment"):
            comment.handle.edit(text)
            return _comment(comment.handle)

    def head(self, pr: int) -> str:
        with _translated("read the pull request"):
            return self._pull(pr).head.sha

    def approvals(self, pr: int, head: str, since: str = "") -> tuple[str, ...]:
        judged = dict[str, bool]()
        with _translated("read the reviews"):
            author = self._pull(pr).user.login.lower()
            for review in self._pull(pr).get_reviews():  # the oldest first
                user = review.user
                if user is not None and user.type == "User" and review.state in _JUDGING:
                    judged[user.login] = (
                        review.state == "APPROVED" and review.commit_id == head and review.submitted_at >= moment(since)
                    )
            names = [name for name, approved in judged.items() if approved and name.lower() != author]
            # in a public repository everybody can approve
            return tuple(
                sorted(name for name in names if self._repository.get_collaborator_permission(name) in _MAY_WRITE)
            )

    def of_commit(self, commit: str) -> list[int]:
        with _translated("look for the pull request of a commit"):
            return [item.number for item in self._repository.get_commit(commit).get_pulls()]

    def _pull(self, pr: int) -> PullRequest:
        if pr not in self._pulls:
            self._pulls[pr] = self._repository.get_pull(pr)
        return self._pulls[pr]

    @cached_property
    def _login(self) -> str | None:
        """Our name; None for the token of a pipeline or another app, which is no user."""
        import github

        try:
            return self._client.get_user().login
        except github.GithubException as exc:
            if exc.status in (403, 404):
                return None
            raise

    def _is_mine(self, comment: IssueComment) -> bool:
        user = comment.user
        if user is None:  # it was deleted
            return False
        if self._login is None:  # any app of the repository is a bot, too
            return user.type == "Bot" and user.login == f"{self._app}[bot]"
        return user.login == self._login


def _comment(item: IssueComment) -> Comment:
    return Comment(item.id, item.body or "", item.html_url, item)


@contextmanager
def _translated(doing: str) -> Iterator[None]:
    import github
    import requests

    try:
        yield
    except github.GithubException as exc:
        data = exc.data if isinstance(exc.data, dict) else {}
        errors = [item.get("message", "") for item in data.get("errors", []) if isinstance(item, dict)]
        said = "; ".join(str(part) for part in (data.get("message"), *errors) if part)
        headers = {key.lower(): value for key, value in (exc.headers or {}).items()}
        limited = isinstance(exc, github.RateLimitExceededException)
        status = 429 if limited else exc.status
        raise refused("GitHub", doing, status, said, headers.get("retry-after")) from None
    except requests.RequestException as exc:
        raise refused("GitHub", doing, None, type(exc).__name__) from None
