"""Files that are generated: JSON Schemas and docs/reference from the code, what init writes from examples/ci, what the demo runs
from jobs/examples. `--check` compares, `--write` writes."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click

from runner import schemas
from runner.ci.starting import HOSTS
from runner.cli import cli

ROOT = Path(__file__).parent.parent


def files() -> dict[Path, str]:
    """Path -> content, for everything that is generated."""
    made = {ROOT / "schemas" / f"{name}.json": schemas.dumps(name) for name in schemas.names()}
    made[ROOT / "docs" / "reference" / "command-line.md"] = "\n".join(_commands())
    for name in schemas.names():
        made[ROOT / "docs" / "reference" / f"{name}.md"] = "\n".join(_settings(name))
    for name in (name for templates in HOSTS.values() for name in templates):
        made[ROOT / "runner" / "ci" / "templates" / name] = (ROOT / "examples" / "ci" / name).read_text()
    for job in ("model-credentials",):
        made[ROOT / "runner" / "demo" / f"{job}.yaml"] = (ROOT / "jobs" / "examples" / f"{job}.yaml").read_text()
    return made


def _commands() -> Iterator[str]:
    yield "# Command line"
    yield ""
    yield "Generated from the commands themselves by `make schemas`."
    yield ""

    def walk(command: click.Command, path: str) -> Iterator[str]:
        context = click.Context(command, info_name=path, max_content_width=100, terminal_width=100)
        yield from ("## " + path, "", "```text", command.get_help(context), "```", "")
        if isinstance(command, click.Group):
            for name in sorted(command.commands):
                yield from walk(command.commands[name], f"{path} {name}")

    yield from walk(cli, "vecrun")


def _settings(name: str) -> Iterator[str]:
    schema = schemas.schema(name)
    yield f"# {name}"
    yield ""
    yield f"Generated from the models by `make schemas`; the JSON Schema is `schemas/{name}.json`."
    yield ""
    definitions = schema.get("$defs", {})
    parts = {name: schema} | {key: value for key, value in sorted(definitions.items()) if "properties" in value}
    for title, part in parts.items():
        if not part.get("properties"):
            continue
        yield f"## {title.replace('connection_', 'connection: ')}"
        yield ""
        if part.get("description"):
            yield from (part["description"], "")
        yield "| key | value | default | |"
        yield "| --- | --- | --- | --- |"
        for key, field in part["properties"].items():
            must = "required" if key in part.get("required", []) else _default(field)
            text = field.get("description", "").replace("|", "\\|").replace("\n", " ")
            yield f"| `{key}` | {_type(field)} | {must} | {text} |"
        yield ""


def _default(field: dict[str, Any]) -> str:
    value = field.get("default")
    return "" if value in (None, {}, [], "") or isinstance(value, dict) else f"`{value}`"


def _type(field: dict[str, Any]) -> str:
    if "$ref" in field:
        return str(field["$ref"]).rsplit("/", 1)[1]
    if "enum" in field or "const" in field:
        return ", ".join(f"`{item}`" for item in field.get("enum", [field.get("const")]))
    if branches := field.get("anyOf") or field.get("allOf"):
        return " or ".join(_type(branch) for branch in branches if "if" not in branch) or "mapping"
    if field.get("type") == "array":
        return f"list of {_type(field.get('items', {}))}"
    return str(field.get("type", "any")).replace("object", "mapping").replace("string", "text")


def main() -> int:
    stale = []
    for path, text in files().items():
        if "--write" in sys.argv:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text, encoding="utf-8")
        elif not path.exists() or path.read_text(encoding="utf-8") != text:
            stale.append(str(path.relative_to(ROOT)))
    if stale:
        print(f"not what the code says: {', '.join(stale)}; run: make schemas", file=sys.stderr)  # noqa: T201
    return 1 if stale else 0


if __name__ == "__main__":
    sys.exit(main())
