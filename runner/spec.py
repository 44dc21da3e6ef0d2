"""From a YAML file to a checked job: rendering, positions, and every problem of the file at once.

The table of kinds is handed in (`load_job(..., kinds=...)`), so this room knows none of them.
"""

from __future__ import annotations

import difflib
import hashlib
import os
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, TypeVar

import jinja2
import jinja2.sandbox
import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from runner.errors import Diagnostic, InvalidFile, NotFound
from runner.points import json_dumps

API_VERSION = "vecrun/v1"
NAME_PATTERN = r"^[A-Za-z0-9]([A-Za-z0-9._-]{0,61}[A-Za-z0-9])?$"
#: Parts a document may have with its YAML aliases written out: a few lines of nested aliases could fill the memory.
MAX_PARTS = 100_000
#: A secret reference: ${env:NAME} or ${file:/path}.
REFERENCE = re.compile(r"\$\{(env|file):([^}]*)\}")

T = TypeVar("T", bound=BaseModel)
Name = Annotated[str, Field(pattern=NAME_PATTERN, description="Letters, digits, dot, dash, underscore; at most 63.")]


class Misplaced(ValueError):
    """What a validator of a whole finds wrong further inside. `at`: the path of that, from where it is raised."""

    def __init__(self, message: str, *at: str | int) -> None:
        super().__init__(message)
        self.at = at


class SpecModel(BaseModel):
    """Base of everything a user writes: unknown keys are errors, values are immutable."""

    model_config = ConfigDict(frozen=True, extra="forbid", populate_by_name=True)


class Metadata(SpecModel):
    """Who the job is."""

    name: Name = Field(json_schema_extra={"not": {"const": "serving"}})
    description: str = ""
    labels: dict[str, str] = {}

    @field_validator("name")
    @classmethod
    def _free(cls, value: str) -> str:
        if value == "serving":
            raise ValueError("no job can be called serving: the state directory keeps the serving pointers under it")
        return value


@dataclass(frozen=True)
class Document:
    """A parsed YAML document: plain data and, for every path, the 1-based line and column it starts on."""

    file: str
    data: Any
    lines: Mapping[tuple[str | int, ...], int] = field(default_factory=dict)
    columns: Mapping[tuple[str | int, ...], int] = field(default_factory=dict)

    def line(self, path: Iterable[str | int]) -> int:
        """Line of the deepest part of `path` that the document has. Parts it does not have are skipped:
        pydantic adds names of union branches to its paths."""
        return self.lines.get(self.known(path), 1)

    def known(self, path: Iterable[str | int]) -> tuple[str | int, ...]:
        """The deepest part of `path` that the document has."""
        at: tuple[str | int, ...] = ()
        for part in path:
            if (*at, part) in self.lines:
                at = (*at, part)
        return at

    def diagnostic(self, path: Iterable[str | int], message: str, hint: str = "") -> Diagnostic:
        """A problem at `path`."""
        parts = [part for part in path if not (isinstance(part, str) and part.startswith("function-"))]
        return Diagnostic(self.file, self.line(parts), ".".join(str(part) for part in parts), message, hint)


@dataclass(frozen=True)
class Job:
    """A checked job. `digest` names the rendered, normalised content: comments and key order do not move it."""

    name: str
    kind: str
    spec: SpecModel
    document: Document
    digest: str
    description: str = ""


def read_text(path: Path) -> str:
    """The text of a file a user wrote. NotFound when there is none, InvalidFile when it is not UTF-8."""
    file = shown(path)
    try:
        return path.read_text(encoding="utf-8")
    except FileNotFoundError as exc:
        raise NotFound("No such file", file) from exc
    except OSError as exc:
        raise InvalidFile([Diagnostic(file, 0, "", f"cannot be read: {exc.strerror}")]) from exc
    except UnicodeDecodeError as exc:
        line = path.read_bytes()[: exc.start].count(b"\n") + 1
        raise InvalidFile([Diagnostic(file, line, "", "not UTF-8 text", "save the file as UTF-8")]) from exc


def shown(path: Path) -> str:
    """A path as messages name it: from the current folder where it is below that."""
    relative = os.path.relpath(path)
    return str(path) if relative.startswith("..") else relative


def render(text: str, file: str, variables: Mapping[str, Any]) -> str:
    """Jinja2 in a sandbox; an undefined name is an error with its line."""
    environment = jinja2.sandbox.SandboxedEnvironment(
        undefined=jinja2.StrictUndefined, keep_trailing_newline=True, autoescape=False
    )
    try:
        return environment.from_string(text).render(**variables)
    except jinja2.TemplateSyntaxError as exc:
        raise InvalidFile([Diagnostic(file, exc.lineno, "", f"template: {exc.message}")]) from exc
    except jinja2.UndefinedError as exc:
        known = ", ".join(sorted(variables)) or "none"
        hint = f"known variables: {known}; add one with --var NAME=VALUE or under environments in vecrun.yaml"
        raise InvalidFile([Diagnostic(file, _template_line(exc), "", f"template: {exc.message}", hint)]) from exc
    except Exception as exc:  # whatever an expression does: division by zero, a wrong type, a sandbox refusal
        raise InvalidFile([Diagnostic(file, _template_line(exc), "", f"template: {exc}")]) from exc


def _template_line(exc: BaseException) -> int:
    line, trace = 1, exc.__traceback__
    while trace is not None:
        if trace.tb_frame.f_code.co_filename == "<template>":
            line = trace.tb_lineno
        trace = trace.tb_next
    return line


class _Loader(yaml.SafeLoader):
    """SafeLoader with the words of YAML 1.2, as editors and JSON read them: `no`, 12:30 and dates are text, 1e-5 is not."""


_Loader.yaml_implicit_resolvers = {}
for _tag, _pattern, _first in (
    ("bool", r"true|True|TRUE|false|False|FALSE", "tTfF"),
    ("int", r"[-+]?[0-9]+|0x[0-9a-fA-F]+", "-+0123456789"),
    ("float", r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?", "-+.0123456789"),
    ("null", r"~|null|Null|NULL|", ["~", "n", "N", ""]),
):
    _Loader.add_implicit_resolver(f"tag:yaml.org,2002:{_tag}", re.compile(f"^(?:{_pattern})$"), list(_first))
_Loader.add_constructor(
    "tag:yaml.org,2002:int", lambda _loader, node: int(node.value, 16 if node.value.startswith("0x") else 10)
)


def parse(text: str, file: str) -> Document:
    """One YAML document with positions. Syntax errors, a second document and doubled keys are InvalidFile."""
    lines: dict[tuple[str | int, ...], int] = {}
    columns: dict[tuple[str | int, ...], int] = {}
    problems: list[Diagnostic] = []
    above: list[yaml.Node] = []
    loader: _Loader | None = None

    def walk(at: tuple[str | int, ...], part: yaml.Node, mark: yaml.Mark) -> Any:
        assert loader is not None
        lines[at], columns[at] = mark.line + 1, mark.column + 1
        if part in above or len(lines) > MAX_PARTS:
            reason = "an alias that holds itself" if part in above else f"more than {MAX_PARTS:,} values"
            raise yaml.MarkedYAMLError(problem=reason, problem_mark=part.start_mark)
        if isinstance(part, yaml.ScalarNode):
            value = loader.construct_object(part, deep=True)
            # JSON writes a character beyond 16 bits as two escapes, which YAML reads as two halves
            return value.encode("utf-16", "surrogatepass").decode("utf-16") if isinstance(value, str) else value
        above.append(part)
        result: Any
        if isinstance(part, yaml.MappingNode):
            result = {}
            for key_node, value_node in part.value:
                key = loader.construct_object(key_node, deep=True)
                place = key_node.start_mark.line + 1
                if not isinstance(key, str):
                    problems.append(
                        Diagnostic(file, place, ".".join(map(str, at)), f"key {key!r} is not text", "quote it")
                    )
                    key = str(key)
                key = key.encode("utf-16", "surrogatepass").decode("utf-16")
                if key in result:
                    field, hint = ".".join(map(str, (*at, key))), f"it is on line {lines[(*at, key)]} too; keep one"
                    problems.append(Diagnostic(file, place, field, "this key stands here twice", hint))
                result[key] = walk((*at, key), value_node, key_node.start_mark)
        else:
            result = [walk((*at, number), item, item.start_mark) for number, item in enumerate(part.value)]
        above.pop()
        return result

    try:
        loader = _Loader(text)
        node = loader.get_single_node()
        if node is None:
            raise InvalidFile([Diagnostic(file, 1, "", "the file is empty")])
        data = walk((), node, yaml.Mark(file, 0, 0, 0, "", 0))
    except yaml.MarkedYAMLError as exc:
        mark = exc.problem_mark or exc.context_mark
        line = mark.line + 1 if mark else 1
        raise InvalidFile([Diagnostic(file, line, "", f"not YAML: {exc.problem or exc.context}")]) from exc
    except yaml.reader.ReaderError as exc:
        line = text.count("\n", 0, exc.position) + 1
        message = f"not YAML: the character U+{int(exc.character):04X} is not allowed"
        raise InvalidFile([Diagnostic(file, line, "", message)]) from exc
    except (yaml.YAMLError, ValueError, RecursionError) as exc:
        raise InvalidFile([Diagnostic(file, 1, "", f"not YAML: {exc}")]) from exc
    finally:
        if loader is not None:
            loader.dispose()
    if problems:
        raise InvalidFile(problems)
    return Document(file, data, lines, columns)


def check_envelope(document: Document, kinds: Iterable[str], what: str, keys: Sequence[str]) -> list[Diagnostic]:
    """Problems of apiVersion, kind and the top-level keys. Kinds are matched exactly; `what` is 'a job', say."""
    if not isinstance(document.data, dict):
        return [document.diagnostic((), f"{what} is a mapping with {', '.join(keys)}")]
    found = []
    version = document.data.get("apiVersion")
    if version != API_VERSION:
        text = "apiVersion is missing" if version is None else f"apiVersion {version!r} is not known"
        hint = f"use {API_VERSION}"
        if isinstance(version, str) and version.startswith("vecrun/"):
            hint = f"this vecrun reads {API_VERSION}; a newer file needs a newer vecrun"
        found.append(document.diagnostic(("apiVersion",), text, hint))
    kind, kinds = document.data.get("kind"), list(kinds)
    if kind not in kinds:
        text = "kind is missing" if kind is None else f"kind {kind!r} is not known"
        found.append(document.diagnostic(("kind",), text, suggest(str(kind), kinds)))
    found += [
        document.diagnostic((key,), "unknown key", suggest(key, keys)) for key in document.data if key not in keys
    ]
    return found


def check_model(model: type[T], data: Any, document: Document, at: tuple[str | int, ...]) -> T | list[Diagnostic]:
    """The validated model, or all its problems with places; `at` is where `data` stands in the document."""
    try:
        return model.model_validate(data)
    except ValidationError as exc:
        schema = model.model_json_schema()
        found: dict[tuple[str | int, ...], list[Any]] = {}
        for error in exc.errors(include_url=False):
            inside = getattr(error.get("ctx", {}).get("error"), "at", ())
            found.setdefault(_place((*error["loc"], *inside), schema, document, at), []).append(error)
        # where several forms are allowed, the one that was meant is the one whose inside was looked at
        meant = {place: errors for place, errors in found.items() if not _is_outdone(place, errors, found)}
        return [_diagnose(place, errors, schema, document, at) for place, errors in meant.items()]


def _place(
    loc: tuple[str | int, ...], schema: dict[str, Any], document: Document, at: tuple[str | int, ...]
) -> tuple[str | int, ...]:
    """A pydantic path without the names of the forms it tried."""
    kept: tuple[str | int, ...] = ()
    for part in loc:
        if (*at, *kept, part) in document.lines or not _is_branch(part, schema):
            kept = (*kept, part)
    return kept


def _is_outdone(place: tuple[str | int, ...], errors: list[Any], found: Iterable[tuple[str | int, ...]]) -> bool:
    """Whether all errors at `place` say 'not this form', or that too little was right, while something was found wrong
    deeper inside."""
    other_form = all(len(error["loc"]) > len(place) or error["type"] == "too_short" for error in errors)
    return other_form and any(other[: len(place)] == place and len(other) > len(place) for other in found)


_EXPECTED = {
    "int_parsing": "a whole number",
    "int_type": "a whole number",
    "int_from_float": "a whole number",
    "float_parsing": "a number",
    "float_type": "a number",
    "bool_parsing": "true or false",
    "bool_type": "true or false",
    "string_type": "text",
    "tuple_type": "a list",
    "list_type": "a list",
    "dict_type": "a mapping",
    "model_type": "a mapping",
    "too_short": "a list of at least {min_length}",
    "greater_than_equal": "at least {ge}",
    "less_than_equal": "at most {le}",
    "greater_than": "more than {gt}",
    "literal_error": "{expected}",
    "enum": "{expected}",
}


def _diagnose(
    place: tuple[str | int, ...],
    errors: list[Any],
    schema: dict[str, Any],
    document: Document,
    at: tuple[str | int, ...],
) -> Diagnostic:
    """One problem of one place, of all that pydantic says about it."""
    first, hint = errors[0], ""
    match first["type"]:
        case "extra_forbidden":
            message, hint = "unknown key", suggest(str(place[-1]), _keys_at(schema, place[:-1]))
        case "missing":
            message = "this key is missing"
        case "value_error":
            message = str(first["ctx"]["error"])
        case _:
            wanted = [_EXPECTED.get(error["type"], "").format(**error.get("ctx", {})) for error in errors]
            if all(wanted):
                message = "should be " + " or ".join(dict.fromkeys(wanted))
            else:
                message = f"{first['msg'][0].lower()}{first['msg'][1:]}"
                hint = next((node["description"] for node in _nodes_at(schema, place) if "description" in node), "")
            hidden = place and place[-1] in (*_SECRET_KEYS, *_ADDRESS_KEYS)
            value = "(not shown)" if hidden else first.get("input")
            message += ", found " + (
                "null" if value is None else repr(value) if isinstance(value, (str, int, float, bool))
                else "a mapping" if isinstance(value, dict) else "a list" if value else "an empty one"
            )  # fmt: skip
            hint = hint or meant(str(value), re.findall(r"'([^']*)'", message.partition(", found")[0]))
    return document.diagnostic((*at, *place), message, hint)


def _is_branch(part: str | int, schema: dict[str, Any]) -> bool:
    """Whether a part of a pydantic path names a form of a value rather than a key of the data."""
    text = str(part)
    return text in schema.get("$defs", {}) or text in ("str", "int", "float", "bool") or "[" in text


def _nodes_at(schema: dict[str, Any], loc: tuple[str | int, ...]) -> list[dict[str, Any]]:
    """The parts of a JSON Schema that speak about a path: several where a value may have several forms."""
    definitions = schema.get("$defs", {})

    def options(node: dict[str, Any]) -> list[dict[str, Any]]:
        if "$ref" in node:
            node = definitions[node["$ref"].rsplit("/", 1)[1]]
        branches = node.get("anyOf") or node.get("oneOf") or node.get("allOf")
        return [leaf for branch in branches for leaf in options(branch)] if branches else [node]

    nodes = options(schema)
    for part in loc:
        step: list[dict[str, Any]] = []
        for node in nodes:
            if isinstance(part, int) and "items" in node:
                step += options(node["items"])
            elif part in node.get("properties", {}):
                step += options(node["properties"][part])
            elif isinstance(node.get("additionalProperties"), dict):
                step += options(node["additionalProperties"])
        nodes = step
    return nodes


def _keys_at(schema: dict[str, Any], loc: tuple[str | int, ...]) -> list[str]:
    """Property names allowed at a path of a JSON Schema."""
    return sorted({key for node in _nodes_at(schema, loc) for key in node.get("properties", {})})


def meant(found: str, allowed: Iterable[str]) -> str:
    """'did you mean …?' when something is near, else nothing."""
    known = {item.lower(): item for item in allowed}
    near = difflib.get_close_matches(found.lower(), known, 1, 0.6)
    return f"did you mean {known[near[0]]}?" if near else ""


def suggest(found: str, allowed: Iterable[str]) -> str:
    """'did you mean …?' when something is near, and what is allowed in any case."""
    allowed = list(allowed)
    listing = f"allowed: {', '.join(allowed)}" if allowed else ""
    return "; ".join(part for part in (meant(found, allowed), listing) if part)


def load_job(
    path: Path, kinds: Mapping[str, Callable[[], type[SpecModel]]], variables: Mapping[str, Any], shown_as: str = ""
) -> Job:
    """Read, render, parse and check one job file. Raises InvalidFile with every problem found."""
    file = shown_as or shown(path)
    document = parse(render(read_text(path), file, variables), file)
    problems = check_envelope(document, kinds, "a job", ("apiVersion", "kind", "metadata", "spec"))
    if not isinstance(document.data, dict):
        raise InvalidFile(problems)
    metadata = check_model(Metadata, document.data.get("metadata", {}), document, ("metadata",))
    spec: SpecModel | list[Diagnostic] = []
    if document.data.get("kind") in kinds:
        model = kinds[document.data["kind"]]()
        spec = check_model(model, document.data.get("spec", {}), document, ("spec",))
    for part in (metadata, spec):
        problems += part if isinstance(part, list) else []
    problems += literal_secrets(document)
    if problems or isinstance(metadata, list) or isinstance(spec, list):
        raise InvalidFile(sorted(problems, key=lambda item: item.line))
    content = {
        "kind": document.data["kind"],
        "name": metadata.name,
        "spec": spec.model_dump(mode="json", by_alias=True),
    }
    return Job(metadata.name, document.data["kind"], spec, document, digest(content), metadata.description)


_SECRET_KEYS = (
    "access_key_id", "api_key", "password", "secret", "secret_access_key", "session_token", "signing_key",
    "token",
)  # fmt: skip
#: Keys of notifications: their values can be secrets as a whole, so a wrong one is not shown either.
_ADDRESS_KEYS = ("webhook", "apprise")
#: Schemes of Apprise whose URL names a place and no key; all others carry one somewhere in it.
KEYLESS = (
    "dbus", "form", "forms", "gnome", "json", "jsons", "macosx", "mailto", "mailtos", "syslog", "windows", "xml", "xmls",
)  # fmt: skip
#: A part of a URL that no person made up: a UUID, or 16 letters and digits or more, mixed. Chat services put keys there.
KEY_IN_URL = re.compile(
    r"(?<![A-Za-z0-9])(?:[0-9a-f]{8}-(?:[0-9a-f]{4}-){3}[0-9a-f]{12}|(?=[A-Za-z]*\d)(?=\d*[A-Za-z])[A-Za-z0-9]{16,})"
)
_KEY_PARAMETER = re.compile(r"[?&](?:auth|code|key|pass|secret|sig|signature|[a-z_]*token)=", re.IGNORECASE)
_URL_PASSWORD = re.compile(
    r"^[a-z][a-z0-9+.-]*://(?:[^/@:]*:([^/@]+)@|\S*[?&](?:password|token|api_key)=([^&\s]+))", re.IGNORECASE
)


def literal_secrets(document: Document) -> list[Diagnostic]:
    """Secrets written out in a file, where only references belong."""
    found = []
    for path in document.lines:
        value: Any = document.data
        for part in path:
            value = value[part]
        if not isinstance(value, (str, int)) or value in ("", True, False) or not path:
            continue
        value = str(value)
        password = _URL_PASSWORD.match(value)
        literal = (path[-1] in _SECRET_KEYS or _holds_key(path, value)) and not REFERENCE.search(value)
        literal = literal and not _computed(path, value)
        if literal or (password and not REFERENCE.search(password.group(1) or password.group(2))):
            found.append(
                document.diagnostic(
                    path, "a secret is written out here", "use a reference: ${env:NAME} or ${file:/path}"
                )
            )
    return found


def _computed(path: tuple[str | int, ...], value: str) -> bool:
    """Whether a value is an expression of a map of rows: it is called as the column or name that it is for."""
    return "map" in path and path[-2] in ("let", "values") and not value.lstrip().startswith(("'", '"'))


def _holds_key(path: tuple[str | int, ...], value: str) -> bool:
    """Whether an address of a notification seems to have a key in it."""
    if path[0] != "notifications" or path[-1] not in _ADDRESS_KEYS:
        return False
    scheme, colon, rest = value.partition("://")
    if path[-1] == "apprise" and colon and scheme.lower() not in KEYLESS:
        return True
    return bool(KEY_IN_URL.search(rest.partition("/")[2]) or _KEY_PARAMETER.search(rest))


def digest(value: Any) -> str:
    """sha256 of canonical JSON, as 'sha256:…'."""
    return "sha256:" + hashlib.sha256(json_dumps(value)).hexdigest()
