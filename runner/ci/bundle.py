"""The plans of a change as one artefact: a folder with a file for each plan and `ci.json`, which names them all.

`ci.json` carries the digest of each plan, of each file beside it and of itself, so one altered byte is found anywhere; with
a key it is signed, too. Nothing in it is secret.
"""

from __future__ import annotations

import hashlib
import hmac
import json
from collections.abc import Mapping
from pathlib import Path

from pydantic import ValidationError

from runner.errors import NotFound, PlanRefused, VecrunError
from runner.plan import Plan
from runner.plan import read as read_plan
from runner.points import Model
from runner.spec import digest

FORMAT_VERSION = "1.0"
NAME = "ci.json"
#: The Markdown document that a host shows.
DOCUMENT = "comment.md"


class Planned(Model):
    """A job that the change touches. `plan`: its file in the folder; empty when it could not be planned (`error`), or when
    nothing but its name changes (`renamed_from`)."""

    job: str
    file: str  # of the spec, in the repository
    kind: str
    plan: str = ""
    plan_digest: str = ""
    identity: str = ""  # the same for a plan that does the same: `Plan.identity`
    summary: str = ""
    changes: bool = False
    destroys: tuple[str, ...] = ()
    blocked: bool = False
    usd: float | None = None
    seconds: float | None = None
    renamed_from: str = ""
    serial: int | None = None  # of the state that moves with the name
    parts: dict[str, str] = {}  # what it is made from -> digest: spec, connection NAME, model:NAME, file PATH, …
    why: tuple[str, ...] = ()  # which of its parts moved
    error: str = ""


class Bundle(Model):
    """What a change does to the jobs of a workspace. `inputs`: digest over everything that the plans were made from; commits
    that differ in nothing else (a merge, a squash) have the same. `removed`: jobs that nothing describes any more."""

    format_version: str = FORMAT_VERSION
    tool_version: str
    base: str  # commit
    head: str  # commit
    workspace: str = "."  # its folder in the repository
    environment: str = ""
    inputs: str
    jobs: tuple[Planned, ...] = ()
    removed: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()  # what a reader should know besides: files that are not committed, say
    digest: str = ""  # over all above
    files: dict[
        str, str
    ] = {}  # the others in the folder -> sha256; the document names the digest, so they are not in it
    seal: str = ""  # digest over the digest and the files
    signature: str = ""  # HMAC-SHA256 over the seal

    @property
    def has_changes(self) -> bool:
        """Whether anything is to be done."""
        return any(item.changes or item.renamed_from for item in self.jobs)

    @property
    def has_destroy(self) -> bool:
        """Whether something is gone for good afterwards."""
        return any(item.destroys for item in self.jobs)

    @property
    def failed(self) -> bool:
        """Whether a job could not be planned."""
        return any(item.error for item in self.jobs)

    @property
    def identity(self) -> str:
        """The same for bundles that do the same, whenever and for whichever commit they were made."""
        return digest(
            {item.job: [item.identity, item.renamed_from, item.serial, sources(item.parts)] for item in self.jobs}
        )

    def sealed(self, key: str = "") -> Bundle:
        """The same with its digest, and signed with `key` if there is one."""
        found = digest(self.model_dump(mode="json", exclude={*_SEALS}))
        seal = _seal(found, self.files)
        return self.model_copy(
            update={"digest": found, "seal": seal, "signature": _signature(seal, key) if key else ""}
        )


#: What is not part of the digest.
_SEALS = ("digest", "files", "seal", "signature")


def sources(parts: Mapping[str, str]) -> dict[str, str]:
    """Those parts of a job that its plan does not show whole: connections, models and files, with their digests."""
    return {name: found for name, found in parts.items() if name.startswith(("connection ", "model:", "file "))}


def content(data: bytes) -> str:
    """The digest of a file of the folder."""
    return f"sha256:{hashlib.sha256(data).hexdigest()}"


def write(folder: Path, bundle: Bundle, key: str = "") -> Bundle:
    """Write `ci.json`, sealed. The plans and the other files lie there already."""
    sealed = bundle.sealed(key)
    text = json.dumps(sealed.model_dump(mode="json"), indent=1, ensure_ascii=False) + "\n"
    (folder / NAME).write_text(text, encoding="utf-8")
    return sealed


def read(folder: Path, key: str = "") -> tuple[Bundle, dict[str, Plan]]:
    """(the bundle, its plans by job). NotFound; PlanRefused when anything in it was altered, is missing, is of a newer format,
    or is not signed with `key`."""
    path = folder / NAME
    if not path.exists():
        raise NotFound("There are no plans of a change", str(path), "vecrun ci plan --base REF --out DIR makes them")
    try:
        return _read(folder, path, key)
    except VecrunError:
        raise
    except Exception as exc:  # whatever a file can hold: not text, nested too deeply, a folder in its place
        raise PlanRefused(
            "These are no whole plans of a change",
            f"{folder}: {type(exc).__name__}",
            "Make them again with vecrun ci plan",
        ) from exc


def _read(folder: Path, path: Path, key: str) -> tuple[Bundle, dict[str, Plan]]:
    bundle = _parsed(path.read_text(encoding="utf-8"), path)
    if key and not hmac.compare_digest(bundle.signature.encode(), _signature(bundle.seal, key).encode()):
        what = "is not signed" if not bundle.signature else "was signed with another key"
        raise PlanRefused(
            "The plans are not signed with this key", f"{path} {what}", "Make them again with vecrun ci plan"
        )
    for name, known in bundle.files.items():
        at = folder / Path(name).name
        if not at.is_file() or content(at.read_bytes()) != known:
            what = "was altered" if at.exists() else "is missing"
            raise PlanRefused(
                "The plans of a change were altered", f"{at} {what}", "Make them again with vecrun ci plan"
            )
    plans = dict[str, Plan]()
    for item in bundle.jobs:
        if not item.plan:
            continue
        plan = read_plan(folder / item.plan)
        if plan.plan_digest != item.plan_digest or plan.job != item.job:
            raise PlanRefused(
                "A plan is another one than the one that was shown", f"{folder / item.plan}: {plan.plan_digest}, not {item.plan_digest}",
                "Make them again with vecrun ci plan",
            )  # fmt: skip
        plans[item.job] = plan
    return bundle, plans


def _parsed(text: str, path: Path) -> Bundle:
    try:
        data = json.loads(text)
        major = int(str(data["format_version"]).split(".", maxsplit=1)[0])
    except (ValueError, KeyError, TypeError) as exc:
        raise PlanRefused(
            "These are no whole plans of a change", str(path), "Make them again with vecrun ci plan"
        ) from exc
    if major > int(FORMAT_VERSION.split(".", maxsplit=1)[0]):
        raise PlanRefused(
            "The plans have a newer format", f"{path}: {data['format_version']}", "Use the vecrun that made them"
        )
    found = digest({key: value for key, value in data.items() if key not in _SEALS})
    altered = found != data.get("digest") or _seal(found, data.get("files", {})) != data.get("seal")
    try:
        bundle = Bundle.model_validate({key: value for key, value in data.items() if key in Bundle.model_fields})
    except ValidationError as exc:
        raise PlanRefused(
            "The plans of a change were altered", f"{path}: {exc.errors()[0]['msg']}", "Make them again"
        ) from exc
    if altered:
        raise PlanRefused(
            "The plans of a change were altered", f"{path}: its content does not match its digest",
            "They are applied exactly as they were shown. Make them again with vecrun ci plan",
        )  # fmt: skip
    return bundle


def _seal(found: str, files: Mapping[str, str]) -> str:
    return digest({"digest": found, "files": dict(files)})


def _signature(text: str, key: str) -> str:
    return hmac.new(key.encode(), text.encode(), hashlib.sha256).hexdigest()
