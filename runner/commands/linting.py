"""`lint`: what a reviewer would object to in job files and the workspace, as far as it can be seen offline.

Everything that `validate` finds is an error. The rest are warnings, with the code that a plan would use where it has one;
a job silences those it wants with `accept`, each with a reason.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from runner.clauses.lint import NO_LIMIT
from runner.commands.context import Context, load
from runner.commands.validation import job_files, linked_folders, validate
from runner.errors import Diagnostic, InvalidFile, NotFound
from runner.kinds import KINDS, kind_module
from runner.policies import fits
from runner.settings import FILE_NAME, MODEL, duration_seconds
from runner.spec import REFERENCE, Document, Job, read_text

INVALID = "invalid"
NO_DESCRIPTION = "VW101"
VAIN_ACCEPTANCE = "VW102"
NO_REASON = "VW103"
SHORT_RETENTION = "VW104"
UNUSED = "VW105"
NO_SUCH_JOB = "VW106"
SECRET = "VW107"  # noqa: S105
MADE_TWICE = "VW108"
LINKED = "VW109"
#: What only lint asks a job to accept, of any kind; a plan tells it, if at all, for information.
SILENCED = frozenset(
    {"VB104", "VB106", "VB109", "VB110", "VB111", "VB112", "VI145", "VI146", "VI147", "VI151", "VI152", "VI153", "VI175",
     NO_LIMIT, NO_DESCRIPTION, SHORT_RETENTION, MADE_TWICE}
)  # fmt: skip
#: Providers that take money.
PAID = ("openai",)
DAY = 86_400
#: Words that are no reason.
_FILLERS = {
    "accepted",
    "because",
    "known",
    "later",
    "no reason",
    "not relevant",
    "okay",
    "tbd",
    "test",
    "todo",
    "wanted",
}
#: Keys as providers write them: these are nothing else.
_KEYS = re.compile(
    r"\b(sk-[A-Za-z0-9_-]{20,}|gh[pousr]_[A-Za-z0-9]{20,}|github_pat_\w{20,}|glpat-[\w-]{20,}|AKIA[0-9A-Z]{16}"
    r"|xox[abpr]-[\w-]{10,}|eyJ[\w-]{10,}\.eyJ[\w-]{10,}\.[\w-]{10,})"
)
_SECRET_NAME = re.compile(r"(password|passwd|secret|api_?key|token)$", re.IGNORECASE)


@dataclass(frozen=True)
class Finding:
    """One thing to look at. `level`: error or warning; `line` and `column` are 1-based, 0 where not known; `accepted`: the
    reason that the job gives."""

    code: str
    level: str
    file: str
    line: int
    column: int
    field: str
    message: str
    hint: str = ""
    accepted: str = ""


@dataclass(frozen=True)
class Linted:
    """What was looked at and all that was found; `accepted` findings are among `findings`."""

    files: tuple[str, ...]
    findings: tuple[Finding, ...]

    @property
    def errors(self) -> int:
        return sum(item.level == "error" for item in self.findings)

    @property
    def warnings(self) -> int:
        """Those that no job accepts."""
        return sum(item.level == "warning" and not item.accepted for item in self.findings)


def lint(context: Context, paths: Iterable[Path] = ()) -> Linted:
    """Look at job files (folders: all *.yaml and *.yml below). Without any: at jobs/ and at vecrun.yaml, too.

    NotFound when a path is not there; InvalidFile when vecrun.yaml itself cannot be read.
    """
    settings_file = (context.settings.root / FILE_NAME).resolve()
    given = [*paths]
    files = [path for path in job_files(given or [context.settings.root / "jobs"]) if path.resolve() != settings_file]
    whole = not given or len(files) < len([*job_files(given)])
    problems = validate(context, files).problems
    found = [_error(item) for item in problems]
    jobs = list[Job]()
    for path in files:
        with suppress(InvalidFile):
            jobs.append(load(context, path))
    for job in jobs:
        found += _of_job(context, job)
    found += _made_twice(jobs)
    for folder in linked_folders(given or [context.settings.root / "jobs"]):
        message = "this is a link to a folder, and job files in it are not looked at"
        found.append(
            Finding(
                LINKED, "warning", str(folder), 0, 0, "", message, "make it a folder, or name it: vecrun lint FOLDER"
            )
        )
    if whole:
        found += _of_workspace(context)
        if not given and not problems:
            found += _unused(context, jobs, [read_text(path) for path in files])
    order = sorted(found, key=lambda item: (item.file, item.line, item.column, item.code))
    return Linted(tuple(str(path) for path in files), tuple(dict.fromkeys(order)))


def _error(item: Diagnostic) -> Finding:
    return Finding(INVALID, "error", item.file, item.line, 0, item.field, item.message, item.hint)


def _warning(
    document: Document, at: tuple[str | int, ...], code: str, message: str, hint: str = "", accepted: str = "",
    level: str = "warning",
) -> Finding:  # fmt: skip
    place = document.known(at)
    field = ".".join(str(part) for part in at)
    column = document.columns.get(place, 0)
    return Finding(code, level, document.file, document.line(at), column, field, message, hint, accepted)


def _of_job(context: Context, job: Job) -> Iterator[Finding]:
    spec: Any = job.spec
    module, accept = kind_module(job.kind), spec.accept
    reasons = {item.code: item.reason for item in accept}

    def warning(at: tuple[str | int, ...], code: str, message: str, hint: str = "") -> Finding:
        return _warning(job.document, at, code, message, hint, reasons.get(code, ""))

    if not job.description.strip():
        yield warning(("metadata",), NO_DESCRIPTION, "no description", "say in a sentence what the job is for")
    for item in module.lint(spec):
        at = ("spec", *item.where.split("."))
        yield warning(at, item.code, item.message)
    yield from _unlimited(context, job, warning)
    if spec.retention is not None and duration_seconds(spec.retention) < DAY:
        message = f"a run can be rolled back for {spec.retention} only, less than a day"
        yield warning(("spec", "retention"), SHORT_RETENTION, message)
    wanted = [code for rule in context.settings.workspace.policies.rules for code in rule.require.accepted]
    yield from _acceptances(job, accept, module.ACCEPTABLE | SILENCED, tuple(wanted))
    yield from _secrets(job.document)


def _made_twice(jobs: list[Job]) -> Iterator[Finding]:
    """Collections that several jobs would create: whichever is applied second finds it there."""
    first: dict[tuple[str, str], Job] = {}
    for job in jobs:
        for at, connection, collection in _created(job):
            other = first.setdefault((connection, collection), job)
            if other is not job:
                message = f"{connection}/{collection} is what job {other.name} creates, too ({other.document.file})"
                accepted = next((item.reason for item in job.spec.accept if item.code == MADE_TWICE), "")  # type: ignore[attr-defined]
                yield _warning(job.document, at, MADE_TWICE, message, "give it another name", accepted)


def _created(job: Job) -> Iterator[tuple[tuple[str | int, ...], str, str]]:
    """(field, connection, name) of the collections that a job creates, as far as its file says so."""
    spec: Any = job.spec
    if job.kind == "VectorMigration" and isinstance(spec.target, str):
        for number, rule in enumerate(spec.rules):
            if not set("*?[") & set(rule.from_):
                yield ("spec", "collections", number), spec.target, rule.to.replace("{name}", rule.from_)
    if job.kind == "Reembedding" and not spec.in_place:
        name = spec.to.replace("{name}", spec.collection).replace("{model}", spec.model)
        yield ("spec", "to" if "to" in job.document.data["spec"] else "collection"), spec.connection, name


def _unlimited(context: Context, job: Job, warning: Any) -> Iterator[Finding]:
    """A model that takes money, and no limit for it."""
    budget, policy = getattr(job.spec, "budget", None), context.settings.workspace.policies
    if budget is None or budget.usd is not None or policy.usd is not None:
        return
    named, _inline = kind_module(job.kind).connections(job.spec)
    for name in named:
        raw: dict[str, Any] = {}
        with suppress(NotFound):  # an unknown model is an error of validate
            raw = context.settings.connection(name) if name.startswith(MODEL) else {}
        price = raw.get("price")
        if price or (price is None and raw.get("provider") in PAID):
            message = f"model {name.removeprefix(MODEL)} takes money, and nothing limits what may be spent"
            yield warning(
                ("spec", "model"), NO_LIMIT, message, "budget: {usd: …} in the job, or policies.usd in vecrun.yaml"
            )
            return


def _acceptances(job: Job, accept: Any, acceptable: frozenset[str], wanted: tuple[str, ...]) -> Iterator[Finding]:
    """Entries of accept that do nothing, or say nothing. `wanted`: what policies want to have accepted."""
    for number, item in enumerate(accept):
        at, words = ("spec", "accept", number), item.reason.strip()
        if item.code not in acceptable and (not fits(item.code, wanted) or item.code[:2] in ("VP", "VX")):
            why = (
                "a policy is not accepted by a job" if item.code.startswith("VP") else f"no {job.kind} has that finding"
            )
            if item.code.startswith("VX"):
                why = "it cannot be accepted"
            hint = f"there are: {', '.join(sorted(acceptable))}"
            yield _warning(job.document, (*at, "code"), VAIN_ACCEPTANCE, f"{item.code} does nothing here: {why}", hint)
        if item.code in [other.code for other in accept[:number]]:
            yield _warning(job.document, (*at, "code"), VAIN_ACCEPTANCE, f"{item.code} is accepted twice")
        if len(words) < 8 or words.casefold().rstrip(".!") in _FILLERS:
            yield _warning(
                job.document, (*at, "reason"), NO_REASON, f"this is no reason: {words!r}",
                "say why the finding does no harm here",
            )  # fmt: skip


def _secrets(document: Document) -> Iterator[Finding]:
    """Keys that stand in a file. `validate` finds those in the places where keys belong."""
    for at in document.lines:
        value = _at(document.data, at)
        if not isinstance(value, str) or REFERENCE.search(value):
            continue
        variable = "variables" in at and _SECRET_NAME.search(str(at[-1])) and value
        if variable or _KEYS.search(value):
            yield _warning(
                document, at, SECRET, "a secret seems to be written out here", "use ${env:NAME} or ${file:/path}",
                level="error",
            )  # fmt: skip


def _at(data: Any, path: tuple[str | int, ...]) -> Any:
    for part in path:
        data = data[part]
    return data


def _of_workspace(context: Context) -> Iterator[Finding]:
    document, workspace = context.settings.document, context.settings.workspace
    states = [(("state", "retention"), workspace.state)]
    states += [
        (("environments", name, "state", "retention"), item.state)  # type: ignore[misc]
        for name, item in workspace.environments.items()
        if item.state is not None
    ]
    for at, state in states:
        if duration_seconds(state.retention) < DAY:
            message = f"runs can be rolled back for {state.retention} only, less than a day"
            yield _warning(document, at, SHORT_RETENTION, message)
    yield from _secrets(document)


def _unused(context: Context, jobs: list[Job], texts: list[str]) -> Iterator[Finding]:
    """What vecrun.yaml has and no job needs. A name that stands anywhere in a job file counts as used: a template may
    choose it."""
    document, workspace = context.settings.document, context.settings.workspace
    for key, table in (("connections", workspace.connections), ("models", workspace.models)):
        for name in table:
            if not any(name in text for text in texts):
                yield _warning(document, (key, name), UNUSED, f"no job uses this {key.removesuffix('s')}")
    names = {job.name for job in jobs}
    given: list[tuple[tuple[str | int, ...], tuple[str, ...]]] = [
        (("policies", "rules", number), rule.jobs) for number, rule in enumerate(workspace.policies.rules)
    ]
    given += [(("drift", "ignore", number), rule.jobs) for number, rule in enumerate(workspace.drift.ignore)]
    given += [(("notifications", number), item.jobs) for number, item in enumerate(workspace.notifications)]
    for at, patterns in given:
        for pattern in patterns:
            if pattern != "*" and not any(fits(name, (pattern,)) for name in names):
                yield _warning(document, (*at, "jobs"), NO_SUCH_JOB, f"no job is called {pattern!r}")
    kinds = {job.kind for job in jobs}
    for number, rule in enumerate(workspace.policies.rules):
        if (
            kinds
            and not any(fits(kind, rule.kinds) for kind in kinds)
            and any(fits(kind, rule.kinds) for kind in KINDS)
        ):
            yield _warning(
                document,
                ("policies", "rules", number, "kinds"),
                NO_SUCH_JOB,
                f"there is no job of kind {', '.join(rule.kinds)}",
            )
