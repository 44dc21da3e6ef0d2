"""The workspace file `vecrun.yaml`: connections, environments, where state lives, limits; and how secrets are resolved.

A workspace is the folder that holds it. Values that start with ./ or ../ are taken from there.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal
from urllib.parse import quote

from pydantic import AfterValidator, ConfigDict, Field, model_validator

from runner.errors import Diagnostic, InvalidFile, NotFound, register_secret
from runner.policies import DriftRules, Rule
from runner.spec import (
    REFERENCE,
    Document,
    SpecModel,
    check_envelope,
    check_model,
    digest,
    literal_secrets,
    parse,
    read_text,
    shown,
    suggest,
)

FILE_NAME = "vecrun.yaml"
_SCHEMA_NAME = re.compile(r"[a-z0-9_]{1,40}")
_USER_PART = re.compile(r"[a-z][a-z0-9+.-]*://[^/@?#]*$", re.IGNORECASE)
_PARAMETER = re.compile(r"[a-z][a-z0-9+.-]*://[^#]*[?&][^=&]*=[^&]*$", re.IGNORECASE)
#: What models are called beside connections, in plans.
MODEL = "model:"
#: Settings of a model that decide about its vectors; another address, limit, price or key does not make a plan stale.
SHAPING = frozenset(
    {"provider", "model", "revision", "version", "dimension", "document_prefix", "query_prefix", "normalize",
     "too_long"}
)  # fmt: skip
#: A SQLite file that is not named from the root: SQLAlchemy would look for it in the current folder.
RELATIVE_SQLITE = re.compile(r"(sqlite(?:\+\w+)?:///)(?!/|:memory:|file:)(?=.)")


#: Seconds of a thousand years, more or less: a date has room for that.
LONGEST = 365_000 * 86_400


def parse_duration(text: str) -> str:
    """Check a duration such as 30d, 12h, 15m or 90s."""
    if duration_seconds(text) > LONGEST:
        raise ValueError(f"{text!r} is too long; a duration has at most {LONGEST // 86_400:,} days")
    return text


def duration_seconds(text: str) -> int:
    """Seconds of 30d, 12h, 15m or 90s, LONGEST + 1 at most. ValueError for anything else."""
    units = {"d": 86_400, "h": 3_600, "m": 60, "s": 1}
    if len(text) < 2 or text[-1] not in units or not text[:-1].isdigit():
        raise ValueError(f"{text!r} is no duration; write 30d, 12h, 15m or 90s")
    # twelve digits are beyond LONGEST in any unit, and of very many no number can be made
    return min(int(text[:-1].lstrip("0")[:12] or 0) * units[text[-1]], LONGEST + 1)


Duration = Annotated[str, AfterValidator(parse_duration), Field(examples=["30d", "12h"])]


class StateSettings(SpecModel):
    """Where vecrun keeps its records: files and SQLite on one host, PostgreSQL for a team."""

    directory: str = Field(
        "./state",
        description="State files, one JSON a job, and serving.json; in a folder of its own for each environment.",
    )
    database: str = Field(
        "",
        description="postgresql://… for a team: ledger and state documents live there, each environment in a schema of "
        "its own. sqlite:///… is the ledger of one host. Empty: SQLite beside the state files.",
    )
    retention: Duration = Field("30d", description="How long a run can be rolled back.")


class Broker(SpecModel):
    """The queue of a team's workers. With one, partitions are worked on by `vecrun worker` processes."""

    url: str = Field(description="redis://… or rediss://…; unix:///path for a socket.")
    namespace: str = Field("vecrun", pattern=r"^[A-Za-z0-9_-]{1,40}$", description="Prefix of the keys in Redis.")


class Metrics(SpecModel):
    """Figures for Prometheus, from `vecrun worker` and from an apply that works by itself."""

    listen: str = Field("", description="HOST:PORT to serve them at; empty: nowhere.", examples=["127.0.0.1:9464"])


class Environment(SpecModel):
    """Values that change between dev, staging and prod."""

    variables: dict[str, Any] = Field({}, description="Variables for the templates of job files.")
    connections: dict[str, dict[str, Any]] = Field({}, description="Connections replaced or added in this environment.")
    models: dict[str, dict[str, Any]] = Field({}, description="Models replaced or added in this environment.")
    state: StateSettings | None = Field(None, description="Instead of the workspace's.")
    broker: Broker | None = Field(None, description="Instead of the workspace's.")


class Limits(SpecModel):
    """How much of this machine and of the stores a run may use."""

    workers: int = Field(2, ge=1, le=64, description="Partitions a process works on at once.")
    batches_in_flight: int = Field(2, ge=1, le=64, description="Batches read ahead of the writer, per partition.")
    retries: int = Field(5, ge=0, le=100, description="Tries of a batch after a transient error.")
    retry_delay: float = Field(
        0.5, gt=0, le=60, description="Seconds before the first retry; doubles each time, at most 30 s."
    )
    lease_seconds: int = Field(
        30, ge=5, le=3600, description="A run whose process is silent for so long has lost its lock."
    )
    runs: int = Field(2, ge=1, le=64, description="Runs at work at once, in this environment; further ones wait.")
    runs_per_source: int = Field(1, ge=1, le=16, description="Runs that may read one collection at once.")
    wait: Duration = Field("10m", description="How long a run waits for a slot of `runs` before it is refused.")


class KeptVectors(SpecModel):
    """Vectors are kept by model and text in the ledger's database, so that no text is paid for twice."""

    keep: Duration = Field(
        "30d",
        description="How long after they were made; vecrun gc removes older ones. 0s: until the run is completed.",
    )


class Policies(SpecModel):
    """What a plan may cost before somebody has to accept it (VC101 and VC102), and rules that no job can accept (VP)."""

    usd: float | None = Field(None, ge=0, description="Most that embedding may cost.")
    time: Duration | None = Field(None, description="Longest that embedding may take.")
    rules: tuple[Rule, ...] = Field((), description="All that are for a plan count.")

    @model_validator(mode="after")
    def _told_apart(self) -> Policies:
        names = [rule.name for rule in self.rules]
        if twice := next((name for name in names if names.count(name) > 1), None):
            raise ValueError(f"two rules are called {twice}")
        return self


class Ci(SpecModel):
    """Pull requests: vecrun ci."""

    signing_key: str = Field(
        "", description="Key that vecrun ci plan signs its plans with, and vecrun ci apply asks for. A reference."
    )


Happening = Literal["success", "failure", "paused", "cancelled"]


class Notification(SpecModel):
    """Who is told how a run ended or that it waits for an operator: a webhook, or any service Apprise knows."""

    model_config = SpecModel.model_config | ConfigDict(
        json_schema_extra={
            "oneOf": [{"required": ["webhook"]}, {"required": ["apprise"]}],
            "dependentRequired": {"secret": ["webhook"]},
        }
    )

    on: tuple[Happening, ...] = Field(
        ("success", "failure", "paused", "cancelled"), min_length=1, description="What is told; default: all four."
    )
    jobs: tuple[str, ...] = Field(("*",), min_length=1, description="Names or patterns of jobs; default: all.")
    webhook: str | None = Field(
        None, pattern=r"^(https?://|\$\{)", description="http(s) URL that gets the event as JSON by POST."
    )
    secret: str | None = Field(
        None, description="Key of the webhook: X-Vecrun-Signature carries the HMAC-SHA256 of the body. A reference."
    )
    apprise: str | None = Field(
        None,
        pattern=r"^([A-Za-z][A-Za-z0-9+.-]*://|\$\{)",
        description="URL of Apprise: mailto://, slack://, msteams://, …",
    )

    @model_validator(mode="after")
    def _one_address(self) -> Notification:
        if (self.webhook is None) == (self.apprise is None):
            raise ValueError("give either webhook or apprise")
        if self.secret is not None and self.webhook is None:
            raise ValueError("secret belongs to a webhook")
        return self


def _environment_name(name: str) -> str:
    """The folder of an environment's state lies beside the history of those without one."""
    if name == "history":
        raise ValueError("no environment can be called history: the state directory keeps earlier versions there")
    return name


EnvironmentName = Annotated[str, AfterValidator(_environment_name)]


class Workspace(SpecModel):
    """vecrun.yaml."""

    api_version: Literal["vecrun/v1"] = Field("vecrun/v1", alias="apiVersion")
    kind: Literal["Workspace"] = "Workspace"
    connections: dict[str, dict[str, Any]] = Field({}, description="name -> connection; `type` chooses the store.")
    models: dict[str, dict[str, Any]] = Field({}, description="name -> embedding model; `provider` chooses who embeds.")
    environments: dict[EnvironmentName, Environment] = {}
    state: StateSettings = StateSettings()
    broker: Broker | None = Field(None, description="Without one, runs work in their own process.")
    limits: Limits = Limits()
    vectors: KeptVectors = KeptVectors()
    policies: Policies = Policies()
    drift: DriftRules = DriftRules()
    metrics: Metrics = Metrics()
    ci: Ci = Ci()
    notifications: tuple[Notification, ...] = Field((), description="Who is told when a run ends or is paused.")


@dataclass(frozen=True)
class Settings:
    """A loaded workspace in one environment. Connections still hold references, never secrets."""

    root: Path
    workspace: Workspace
    document: Document
    environment: str = ""

    @property
    def state(self) -> StateSettings:
        """Where the records of the chosen environment are."""
        return self._chosen("state") or self.workspace.state

    @property
    def broker(self) -> Broker | None:
        """The queue of the chosen environment, its URL resolved; None: runs work in their own process."""
        chosen: Broker | None = self._chosen("broker") or self.workspace.broker
        if chosen is None:
            return None
        url = resolve({"url": chosen.url}, self.document, self._place("broker"), self.root)["url"]
        return chosen.model_copy(update={"url": url})

    @property
    def signing_key(self) -> str:
        """The key of `vecrun ci`, resolved; empty: plans are not signed."""
        given = self.workspace.ci.signing_key
        key = str(resolve({"signing_key": given}, self.document, ("ci",), self.root)["signing_key"])
        if given and not key:  # else plans that nobody signed would be taken
            raise InvalidFile([self.document.diagnostic(("ci", "signing_key"), "the key is empty")])
        return key

    @property
    def has_broker(self) -> bool:
        """Whether partitions are worked on by `vecrun worker` processes."""
        return (self._chosen("broker") or self.workspace.broker) is not None

    def _chosen(self, key: str) -> Any:
        return getattr(self.workspace.environments.get(self.environment), key, None)

    def _place(self, key: str) -> tuple[str, ...]:
        return ("environments", self.environment, key) if self._chosen(key) else (key,)

    @property
    def state_directory(self) -> Path:
        return (self.root / self.state.directory / quote(self.environment, safe="")).resolve()

    @property
    def records_url(self) -> str:
        """The SQLAlchemy URL of the ledger."""
        given = resolve({"database": self.state.database}, self.document, self._place("state"), self.root)["database"]
        url = given or f"sqlite:///{self.state_directory / 'ledger.db'}"
        return RELATIVE_SQLITE.sub(lambda found: f"{found[1]}{self.root}/", url, count=1)

    @property
    def records_schema(self) -> str:
        """The schema in PostgreSQL: one for each environment, so that they never see each other's runs."""
        name = self.environment
        if name and not _SCHEMA_NAME.fullmatch(name):  # what PostgreSQL would cut or quote is told apart by a digest
            name = f"{re.sub('[^a-z0-9_]', '_', name.lower())[:30]}_{digest(name).removeprefix('sha256:')[:12]}"
        return f"vecrun_{name}" if name else "vecrun"

    @property
    def variables(self) -> dict[str, Any]:
        """Variables of the chosen environment, and its name as `environment`."""
        chosen = self.workspace.environments.get(self.environment)
        return {"environment": self.environment} | (chosen.variables if chosen else {})

    def connection(self, name: str) -> dict[str, Any]:
        """The raw connection (references unresolved), or model when it is called model:NAME. NotFound names those there are."""
        chosen = self.workspace.environments.get(self.environment)
        key, bare = _table(name)
        known: dict[str, dict[str, Any]] = getattr(self.workspace, key) | (getattr(chosen, key) if chosen else {})
        if bare not in known:
            what = key.removesuffix("s")
            raise NotFound(f"No such {what}", f"{self.document.file} has no {what} {bare!r}", suggest(bare, known))
        return known[bare]

    def connection_digest(self, name: str) -> str:
        """Names what the connection points at, without resolving its secrets; of a model: what its vectors depend on."""
        raw = self.connection(name)
        return digest({key: raw[key] for key in raw if key in SHAPING} if name.startswith(MODEL) else raw)

    def resolved(self, name: str) -> dict[str, Any]:
        """The connection with references replaced and ./ paths made absolute. InvalidFile names the missing one."""
        key, bare = _table(name)
        at: tuple[str, ...] = (key, bare)
        if bare in getattr(self.workspace.environments.get(self.environment), key, {}):
            at = ("environments", self.environment, *at)
        return resolve(self.connection(name), self.document, at, self.root)


def _table(name: str) -> tuple[str, str]:
    """(key of vecrun.yaml, name there) of a connection, or of a model."""
    return ("models", name.removeprefix(MODEL)) if name.startswith(MODEL) else ("connections", name)


def resolve(data: Mapping[str, Any], document: Document, at: tuple[str | int, ...], root: Path) -> dict[str, Any]:
    """Replace ${env:NAME} and ${file:/path}, registering each value as a secret; collect all that are missing."""
    problems: list[Diagnostic] = []

    def value_of(source: str, name: str, path: tuple[str | int, ...]) -> str:
        if source == "env":
            value = os.environ.get(name)
            if value is None:
                problems.append(
                    document.diagnostic(path, f"environment variable {name} is not set", f"export {name}=…")
                )
        else:
            try:
                value = (root / name).read_text(encoding="utf-8").rstrip("\r\n")
            except OSError as exc:
                value = None
                problems.append(document.diagnostic(path, f"file {name} cannot be read: {exc.strerror}"))
            except UnicodeDecodeError:  # its text would be a part of the secret
                value = None
                problems.append(document.diagnostic(path, f"file {name} is no text", "write it in base64"))
        register_secret(value or "")
        return value or ""

    def walk(item: Any, path: tuple[str | int, ...]) -> Any:
        if isinstance(item, str):
            if item.startswith(("./", "../")):
                item = str((root / item).resolve())
            item = REFERENCE.sub(lambda found: _in_place(value_of(found[1], found[2], path), found), item)
            return RELATIVE_SQLITE.sub(lambda found: f"{found[1]}{root}/", item, count=1)
        if isinstance(item, Mapping):
            return {key: walk(value, (*path, key)) for key, value in item.items()}
        if isinstance(item, list):
            return [walk(value, (*path, number)) for number, value in enumerate(item)]
        return item

    result: dict[str, Any] = walk(data, at)
    if problems:
        raise InvalidFile(problems)
    return result


def _in_place(value: str, found: re.Match[str]) -> str:
    """A resolved reference as it stands in its text: escaped where it is the user, password or a parameter of a URL,
    so that any password works, and no part of it is taken for the host and shown."""
    before, after = found.string[: found.start()], found.string[found.end() :]
    if (_USER_PART.match(before) and "@" in after.split("/")[0]) or _PARAMETER.match(before):
        value = quote(value, safe="")
        register_secret(value)
    return value


def find_root(start: Path) -> Path:
    """The nearest folder at or above `start` with a vecrun.yaml. NotFound says how to make one."""
    for folder in (start, *start.parents):
        if (folder / FILE_NAME).is_file():
            return folder
    raise NotFound(
        "No workspace here",
        f"no {FILE_NAME} in {start} or above",
        "Make one: vecrun init. Or name it: vecrun -w FOLDER …",
    )


def load(root: Path, environment: str = "", check_connection: Callable[[str], Any] | None = None) -> Settings:
    """Read and check vecrun.yaml; `check_connection(type)` gives the pydantic model of a connection type, and of
    `model:PROVIDER`."""
    path = root / FILE_NAME
    file = shown(path)
    document = parse(read_text(path), file)
    keys = [item.alias or name for name, item in Workspace.model_fields.items()]
    problems = check_envelope(document, ["Workspace"], "a workspace", keys)
    if not isinstance(document.data, dict):
        raise InvalidFile(problems)
    body = {key: value for key, value in document.data.items() if key in keys and key not in ("apiVersion", "kind")}
    workspace = check_model(Workspace, body, document, ())
    problems += (workspace if isinstance(workspace, list) else []) + literal_secrets(document)
    if check_connection:
        for at, raw in _connections(document.data):
            problems += _check_connection(raw, at, document, check_connection)
    if problems or isinstance(workspace, list):
        raise InvalidFile(sorted(problems, key=lambda item: item.line))
    if environment and environment not in workspace.environments:
        raise NotFound(
            "No such environment", f"{environment!r} in {file}", suggest(environment, workspace.environments)
        )
    settings = Settings(root, workspace, document, environment)
    if settings.has_broker and (not settings.state.database or settings.state.database.startswith("sqlite")):
        message = "workers need a ledger that all of them reach; a SQLite file, which is the default, is for one host"
        hint = "state: {database: postgresql://…}; or leave out the broker"
        raise InvalidFile([document.diagnostic(settings._place("broker"), message, hint)])
    return settings


def _connections(data: dict[str, Any]) -> Iterator[tuple[tuple[str, ...], dict[str, Any]]]:
    """Every connection and model of the file with its place, whatever else is wrong with the file."""
    places: list[tuple[tuple[str, ...], Any]] = [((), data)]
    environments = data.get("environments")
    if isinstance(environments, dict):
        places += [(("environments", name), item) for name, item in environments.items()]
    for at, holder in places:
        for key in ("connections", "models"):
            found = holder.get(key) if isinstance(holder, dict) else None
            for name, raw in (found if isinstance(found, dict) else {}).items():
                if isinstance(raw, dict):
                    yield (*at, key, name), raw


def _check_connection(
    raw: dict[str, Any], at: tuple[str, ...], document: Document, model_of: Callable[[str], Any]
) -> list[Diagnostic]:
    key, prefix, chooses = "type", "", "the store: files, qdrant, …"
    if at[-2] == "models":
        key, prefix, chooses = "provider", MODEL, "who embeds: openai, minilm, …"
    if key not in raw:
        return [document.diagnostic((*at, key), "this key is missing", f"it chooses {chooses}")]
    try:
        model = model_of(prefix + str(raw[key]))
    except NotFound as exc:
        return [document.diagnostic((*at, key), f"{exc.summary[0].lower()}{exc.summary[1:]}: {exc.detail}", exc.hint)]
    checked = check_model(model, raw, document, at)
    return checked if isinstance(checked, list) else []
