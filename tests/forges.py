"""Hosts of pull requests for tests: GitHub's as the demo has it, with faults, and one that speaks GitLab's API."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from runner.demo.forge import Answer, Forge, Remark

__all__ = ["GitHubForge", "GitLabForge"]


class GitHubForge(Forge):
    """`faults`: (method, end of the path, status, whether it is done all the same), each for one request."""

    faults: list[tuple[str, str, int, bool]]

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self.faults = []

    def respond(self, method: str, path: str, data: Mapping[str, Any], user: str) -> Answer:
        for fault in self.faults:
            wanted, end, status, done = fault
            if method == wanted and path.endswith(end):
                self.faults.remove(fault)
                if done:
                    self.answer(method, path, data, user)
                return Answer(status, {"message": "something went wrong"}, {"Retry-After": "0"})
        return self.answer(method, path, data, user)


class GitLabForge(GitHubForge):
    """The same for a project of GitLab; rights are access levels."""

    def user(self, headers: Mapping[str, str]) -> str | None:
        return self.tokens.get(headers.get("private-token") or headers.get("job-token", ""))

    def answer(self, method: str, path: str, data: Mapping[str, Any], user: str) -> Answer:
        path = path.removeprefix("/api/v4")
        if path == "/user":
            return Answer(200, self._member(user))
        found = re.fullmatch(r"/projects/[^/]+/(.*)", path)
        parts = found[1].split("/") if found else []
        match method, parts:
            case "GET", ["merge_requests", number]:
                return Answer(200, self._merge_request(int(number)))
            case "GET", ["merge_requests", number, "notes"]:
                return Answer(200, [self._note(item) for item in self.said(int(number))])
            case "POST", ["merge_requests", number, "notes"]:
                return Answer(201, self._note(self.say(int(number), user, data["body"])))
            case "PUT", ["merge_requests", _, "notes", number]:
                remark = self.remarks[int(number) - 1]
                if remark.author != user:
                    return Answer(403, {"message": "403 Forbidden"})
                remark.body = data["body"]
                return Answer(200, self._note(remark))
            case "GET", ["merge_requests", number, "versions"]:
                pushed = self.pulls[int(number)].pushed
                return Answer(
                    200,
                    [
                        {"id": place, "head_commit_sha": sha, "created_at": at}
                        for place, (sha, at) in enumerate(pushed.items())
                    ],
                )
            case "GET", ["merge_requests", number, "approvals"]:
                given = [
                    {"user": self._member(item.author), "approved_at": item.at}
                    for item in self.reviews
                    if item.pr == int(number) and item.state == "APPROVED"
                ]
                return Answer(200, {"approved_by": given})
            case "GET", ["members", "all", number]:
                names = [name for name in self.rights if self._member(name)["id"] == int(number)]
                if not names:
                    return Answer(404, {"message": "404 Not found"})
                return Answer(200, self._member(names[0]) | {"access_level": int(self.rights[names[0]])})
            case "GET", ["repository", "commits", sha, "merge_requests"]:
                return Answer(200, [self._merge_request(number) for number in self.of_commit(sha)])
        return Answer(404, {"message": "404 Not found"})

    def _merge_request(self, number: int) -> dict[str, Any]:
        return {"iid": number, "sha": self.head(number), "author": self._member(self.pulls[number].author)}

    def _note(self, item: Remark) -> dict[str, Any]:
        return {"id": item.id, "body": item.body, "author": self._member(item.author), "system": False}

    def _member(self, name: str) -> dict[str, Any]:
        return {"id": sum(name.encode()), "username": name}
