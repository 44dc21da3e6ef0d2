"""Which jobs a change touches: both sides are read offline, and what each job is made from is compared by the job's name.

A file that only moves is no change, nor is what vecrun.yaml says about things a job does not use. A job that only gets
another name is the same job.
"""

from __future__ import annotations

import posixpath
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import yaml

from runner.ci import git
from runner.commands.context import Context
from runner.errors import InvalidFile, NotFound, VecrunError
from runner.kinds import kind_module, spec_models
from runner.kinds.batch_operation import BatchOperationSpec
from runner.settings import FILE_NAME, Settings
from runner.settings import load as load_settings
from runner.spec import REFERENCE, Job, digest, load_job, parse
from runner.world import connection_model

#: The folder of a workspace with its job files.
JOBS = "jobs"


@dataclass(frozen=True)
class Entry:
    """A job and what it is made from: `parts` names each and its digest. `file` is in the workspace."""

    job: str
    file: str
    kind: str
    parts: Mapping[str, str]


@dataclass(frozen=True)
class Broken:
    """A job file that cannot be used, and why. `job`: as it or its other side calls itself, else the file."""

    job: str
    file: str
    why: str


@dataclass(frozen=True)
class Side:
    """All jobs of one side by name. `problem`: why nothing of it could be read."""

    jobs: Mapping[str, Entry] = field(default_factory=dict)
    broken: tuple[Broken, ...] = ()
    problem: str = ""

    def digest(self, jobs: Iterable[str]) -> str:
        """Names what some jobs are made from: the same for commits in which that is the same."""
        return digest({name: dict(self.jobs[name].parts) if name in self.jobs else None for name in jobs})


@dataclass(frozen=True)
class Rename:
    """A job that has another name now. `parts`: what else changed of it."""

    old: str
    new: str
    parts: tuple[str, ...] = ()


@dataclass(frozen=True)
class Change:
    """What a change does to the jobs. `touched`: what to plan (those in `renamed` and `broken` are not in it); `why` names
    what moved for each; `removed`: names that nothing describes any more."""

    touched: tuple[Entry, ...] = ()
    why: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    renamed: tuple[Rename, ...] = ()
    removed: tuple[str, ...] = ()
    broken: tuple[Broken, ...] = ()
    notes: tuple[str, ...] = ()


def present(context: Context) -> Side:
    """The jobs as they are in the working tree."""
    root = context.settings.root
    repository = git.find(root)

    def read(path: str) -> bytes | None:
        at = root / path
        if not at.resolve().is_relative_to(root.resolve()):
            raise git.outside(path)
        data = at.read_bytes() if at.is_file() else None
        if data is not None and git.is_pointer(data):
            raise VecrunError(
                "A file is not there, only its pointer of Git LFS", path, "git lfs pull; actions/checkout: lfs: true"
            )
        return data

    folder = root / JOBS
    files = [str(at.relative_to(root)) for at in sorted(folder.rglob("*")) if _is_job_file(at.name) and not at.is_dir()]
    return _side(context.settings, context.variables, files, read, repository.tracked)


def at_commit(
    context: Context, repository: git.Repository, commit: str, variables: Mapping[str, Any] | None = None,
    variable_files: Iterable[Path] = (),
) -> Side:  # fmt: skip
    """The jobs as they are in a commit, in the same environment. `variables`, `variable_files`: given by the user beside
    those of vecrun.yaml; files of the workspace are taken from the commit, too."""
    with tempfile.TemporaryDirectory(prefix="vecrun-") as name:
        folder = Path(name)

        def read(path: str) -> bytes | None:
            return repository.read(commit, path)

        settings_text = read(FILE_NAME)
        if settings_text is None:
            return Side(problem=f"has no {FILE_NAME}")
        (folder / FILE_NAME).write_bytes(settings_text)
        try:
            settings = load_settings(folder, context.settings.environment, connection_model)
            # its problems read as they do on the other side
            shown = replace(settings.document, file=context.settings.document.file)
            settings = replace(settings, document=shown)
            given = dict[str, Any]()
            for file in variable_files:
                given |= _variables(context, file, read)
        except VecrunError as exc:
            return Side(problem=f"cannot be read by this vecrun: {_shortly(exc)}")
        files = sorted(path for path in repository.files(commit, JOBS) if _is_job_file(path.rpartition("/")[2]))
        known = settings.variables | given | dict(variables or {})
        return _side(settings, known, files, read, lambda _path: True)


def compare(old: Side, new: Side) -> Change:
    """What a change does, from both sides."""
    notes = []
    if old.problem:
        notes.append(f"The base {old.problem}. So every job counts as changed")
    broken, known = _new_problems(old, new, notes)
    added = {name: entry for name, entry in new.jobs.items() if name not in old.jobs}
    gone = {name: entry for name, entry in old.jobs.items() if name not in new.jobs and name not in known}
    renamed = _renamed(gone, added)
    renamed_to, renamed_from = {item.new for item in renamed}, {item.old for item in renamed}
    why = {
        name: _moved(old.jobs[name], entry) if name in old.jobs else ("a new job",)
        for name, entry in sorted(new.jobs.items())
        if name not in renamed_to
    }
    touched = tuple(new.jobs[name] for name, moved in why.items() if moved)
    files = {entry.file for entry in touched}
    notes += [
        f"{item.file} of the base cannot be read by this vecrun, so its job counts as changed"
        for item in old.broken
        if item.file in files
    ]
    return Change(
        touched, {entry.job: why[entry.job] for entry in touched}, renamed, tuple(sorted(gone.keys() - renamed_from)),
        broken, tuple(notes),
    )  # fmt: skip


def _new_problems(old: Side, new: Side, notes: list[str]) -> tuple[tuple[Broken, ...], set[str]]:
    """(files that the change made unusable, names of jobs that are not gone but cannot be read). What was so before is
    only noted."""
    broken, known = [], set[str]()
    before = {item.file: item.why for item in old.broken}
    at = {entry.file: entry.job for entry in old.jobs.values()}
    for item in new.broken:
        known |= {item.job, at.get(item.file, item.job)}
        if before.get(item.file) == item.why:
            notes.append(f"{item.file} cannot be used, and could not be before: {item.why}")
        else:
            broken.append(
                Broken(at.get(item.file, item.job) if item.job == item.file else item.job, item.file, item.why)
            )
    return tuple(broken), known


def _moved(old: Entry, new: Entry) -> tuple[str, ...]:
    names = sorted(old.parts.keys() | new.parts.keys())
    return tuple(name for name in names if old.parts.get(name) != new.parts.get(name))


def _renamed(gone: Mapping[str, Entry], added: Mapping[str, Entry]) -> tuple[Rename, ...]:
    """Jobs that have another name: made from the same, or in the same file, or with the same spec and something else changed."""
    found, left = list[Rename](), dict(gone)
    for name, entry in sorted(added.items()):
        like = [old for old in left.values() if old.kind == entry.kind and _alike(old, entry)]
        if like:
            best = min(like, key=lambda old: (bool(_moved(old, entry)), old.file != entry.file, old.job))
            found.append(Rename(best.job, name, _moved(best, entry)))
            del left[best.job]
    return tuple(found)


def _alike(old: Entry, new: Entry) -> bool:
    return old.file == new.file or old.parts["spec"] == new.parts["spec"]


# One side -------------------------------------------------------------------------------------------------------------


def _is_job_file(name: str) -> bool:
    return name.endswith((".yaml", ".yml"))


def _side(
    settings: Settings, variables: Mapping[str, Any], files: Iterable[str], read: Callable[[str], bytes | None],
    tracked: Callable[[str], bool],
) -> Side:  # fmt: skip
    """Load every job file through `read`, and what it is made from. `tracked`: whether git keeps a file."""
    jobs, broken = dict[str, Entry](), list[Broken]()
    doubled = set[str]()
    with tempfile.TemporaryDirectory(prefix="vecrun-") as name:
        copy = Path(name) / "job.yaml"
        for file in files:
            text = b""
            if (name_shown := _printable(file)) != file:
                broken.append(
                    Broken(name_shown, name_shown, f"{name_shown}: the name of the file is not UTF-8. Rename it")
                )
                continue
            try:
                text = read(file) or b""
                copy.write_bytes(text)
                job = load_job(copy, spec_models(), variables, shown_as=file)
                entry = Entry(job.name, file, job.kind, _parts(job, settings, read, tracked))
            except VecrunError as exc:
                broken.append(Broken(_name_in(text) or file, file, _told(exc)))
                continue
            if job.name in jobs:
                doubled.add(job.name)
                message = f"{file}: job name {job.name} is used by {jobs[job.name].file} as well"
                broken.append(Broken(job.name, file, message))
            jobs.setdefault(job.name, entry)
    return Side({name: entry for name, entry in jobs.items() if name not in doubled}, tuple(broken))


def _parts(
    job: Job, settings: Settings, read: Callable[[str], bytes | None], tracked: Callable[[str], bool]
) -> dict[str, str]:
    """What decides about the plan of a job, but for the world: the rendered spec, what it names, and how it is judged.

    Not the variables of the environment: what a job uses of them is in its rendered spec. Models and connections count
    whole, with the address that texts and keys are sent to; secrets stay references.
    """
    parts = {"spec": digest({"kind": job.kind, "spec": job.spec.model_dump(mode="json", by_alias=True)})}
    named, inline = kind_module(job.kind).connections(job.spec)
    inner = [str(raw["connection"]) for raw in inline.values() if raw.get("type") == "backup"]
    used: list[Any] = list(inline.values())
    for name in dict.fromkeys([*named, *inner]):
        raw = settings.connection(name)
        for one in (name, str(raw["connection"])) if raw.get("type") == "backup" else (name,):
            used.append(settings.connection(one))
            parts[one if one.startswith("model:") else f"connection {one}"] = digest(used[-1])
    for path in sorted(set(_referenced(used))):
        if (found := _kept(path, read, tracked)) is not None:
            parts[f"file {path}"] = found
    if isinstance(job.spec, BatchOperationSpec) and (file := job.spec.select.file) is not None:
        data = read(file)
        parts[f"file {file}"] = git.content_digest(data) if data is not None else "missing"
    parts["policies"] = digest(settings.workspace.policies.model_dump(mode="json"))
    if not getattr(job.spec, "retention", None):
        parts["state.retention"] = settings.workspace.state.retention
    parts["state"] = digest([settings.state.directory, settings.state.database])
    return parts


def _referenced(value: Any) -> Iterator[str]:
    """Files of the workspace that references ${file:…} name by their path in it."""
    if isinstance(value, str):
        for kind, name in REFERENCE.findall(value):
            path = posixpath.normpath(name)
            if kind == "file" and not path.startswith(("/", "../")):
                yield path
    elif isinstance(value, Mapping):
        for item in value.values():
            yield from _referenced(item)
    elif isinstance(value, list | tuple):
        for item in value:
            yield from _referenced(item)


def _kept(path: str, read: Callable[[str], bytes | None], tracked: Callable[[str], bool]) -> str | None:
    """The digest of a file that git keeps. None for others: they are secrets, and no digest of them is told."""
    try:
        data = read(path) if tracked(path) else None
    except VecrunError:  # a link to where secrets are mounted, say
        return None
    return git.content_digest(data) if data is not None else None


def _printable(name: str) -> str:
    return name.encode("utf-8", "surrogateescape").decode("utf-8", "replace")


def _variables(context: Context, file: Path, read: Callable[[str], bytes | None]) -> dict[str, Any]:
    """A file of variables, from the commit if it is in the workspace."""
    at, data = file.resolve(), None
    if at.is_relative_to(context.settings.root.resolve()):
        data = read(str(at.relative_to(context.settings.root.resolve())))
    text = data.decode("utf-8") if data is not None else at.read_text(encoding="utf-8")
    found = parse(text, str(file)).data
    return dict(found) if isinstance(found, dict) else {}


def _name_in(text: bytes) -> str:
    """The name that a file which cannot be used gives its job, if it is seen at all."""
    try:
        found = yaml.safe_load(text)
        return str(found["metadata"]["name"])
    except (yaml.YAMLError, KeyError, TypeError, ValueError, RecursionError):
        return ""


def _told(exc: VecrunError) -> str:
    if isinstance(exc, InvalidFile):
        return "\n".join(map(str, exc.diagnostics))
    return "\n".join(part for part in (str(exc), exc.hint) if part)


def _shortly(exc: VecrunError) -> str:
    """Without the path of a temporary folder."""
    if isinstance(exc, InvalidFile):
        first = exc.diagnostics[0]
        return f"{FILE_NAME}:{first.line}: {first.field}: {first.message}"
    return f"{exc.summary}, {exc.hint}" if isinstance(exc, NotFound) and exc.hint else exc.summary
