"""The workspace a verb works on, and how jobs and runs are found in it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from runner.errors import NotFound
from runner.kinds import spec_models
from runner.settings import Broker, Settings, find_root
from runner.settings import load as load_settings
from runner.spec import Job, load_job, suggest
from runner.state import States, open_states
from runner.world import connection_model

if TYPE_CHECKING:
    from runner.ledger import Ledger
    from runner.sweeper import Sweeper


@dataclass(frozen=True)
class Context:
    """What every verb works on: a workspace in one environment, and its variables."""

    settings: Settings
    variables: Mapping[str, Any] = field(default_factory=dict)

    @property
    def states(self) -> States:
        return open_states(self.settings)

    def broker(self, ledger: Ledger) -> Broker | None:
        """The queue of the chosen environment; None: runs work in their own process. Its keys are apart from those of
        every other ledger, so that workers never get messages of runs they do not know."""
        broker = self.settings.broker
        if broker is None:
            return None
        return broker.model_copy(update={"namespace": f"{broker.namespace}-{ledger.identity()[:8]}"})

    @contextmanager
    def ledger(self, *, reading: bool = False) -> Iterator[Sweeper]:
        """The ledger, open for one verb. A verb that only reads does not make one where there is none yet."""
        from runner.sweeper import Sweeper

        url = self.settings.records_url
        if reading and url.startswith("sqlite:///") and not Path(url.removeprefix("sqlite:///")).exists():
            with Sweeper.temporary() as ledger:
                yield ledger
            return
        ledger = Sweeper(url, self.settings.records_schema)
        try:
            yield ledger
        finally:
            ledger.close()


def open_context(
    workspace: Path | None = None, environment: str = "", variables: Mapping[str, Any] | None = None
) -> Context:
    """Find and check the workspace at or above `workspace` (default: the current folder)."""
    root = find_root((workspace or Path.cwd()).resolve())
    settings = load_settings(root, environment, connection_model)
    return Context(settings, settings.variables | dict(variables or {}))


def load(context: Context, path: Path) -> Job:
    """Read and check one job file."""
    return load_job(path, spec_models(), context.variables)


def job_name(context: Context, job: str) -> str:
    """A job given by name or by its file."""
    path = Path(job)
    return load(context, path).name if path.suffix in (".yaml", ".yml") and path.exists() else job


def find_run(context: Context, ledger: Ledger, name: str) -> dict[str, Any]:
    if name.startswith("r-"):
        with suppress(NotFound):
            return ledger.run(name)
    job = job_of(context, ledger, name)
    for row in ledger.runs_of(job):
        return ledger.run(row["run"])
    if applied := context.states.load(job).applied:
        where = f"run {applied[-1].run} of job {job} is not in this ledger: the state was pushed from elsewhere"
        raise NotFound("No run", where, f"vecrun state show {job}")
    raise NotFound("No run", f"job {job} was never applied", "vecrun runs")


def job_of(context: Context, ledger: Ledger, name: str) -> str:
    """A job by name or file; NotFound when neither a run nor a state of it exists."""
    job = job_name(context, name)
    if not ledger.runs_of(job) and job not in context.states.jobs():
        known = sorted({row["job"] for row in ledger.runs_of()} | set(context.states.jobs()))
        raise NotFound("No such job", f"{name!r} has no runs and no state", suggest(name, known))
    return job
