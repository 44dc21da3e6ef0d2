"""What is shipped agrees with the code: documentation, schemas, sample jobs and the files of a workspace (G1, G2)."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml

from runner import schemas, workspace
from runner.errors import InvalidFile
from runner.kinds import KINDS, spec_models
from runner.objects import OBJECTS
from runner.settings import Workspace, load
from runner.spec import load_job, parse
from runner.stores import STORES, config_model
from runner.world import connection_model
from tests.e2e.test_bad_input import FILES, SETTINGS_FILES
from tests.e2e.test_cli import LEAVES

ROOT = Path(__file__).resolve().parents[1]
JOBS = sorted((ROOT / "jobs").glob("*.yaml"))
EXAMPLES = sorted((ROOT / "jobs" / "examples").glob("*.yaml"))


def documentation() -> str:
    return "\n".join(path.read_text() for path in [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))])


@pytest.fixture(scope="module")
def reference() -> str:
    return "\n".join(path.read_text() for path in sorted((ROOT / "docs" / "reference").rglob("*.md")))


@pytest.mark.parametrize("words", LEAVES, ids=" ".join)
def test_every_command_and_option_is_documented(reference: str, words: tuple[str, ...]) -> None:
    assert f"vecrun {' '.join(words)}" in reference
    for option in LEAVES[words].params:
        for name in option.opts:
            if name.startswith("--"):
                assert name in reference


@pytest.mark.parametrize("name", sorted([*STORES, *KINDS, *OBJECTS, "sql"]))
def test_every_connection_type_and_kind_is_documented(reference: str, name: str) -> None:
    assert name in reference


def fields(schema: dict[str, Any]) -> set[str]:
    """Every key that a JSON Schema allows anywhere."""
    if isinstance(schema, list):
        return set().union(*map(fields, schema)) if schema else set()
    if not isinstance(schema, dict):
        return set()
    found = set(schema.get("properties", {}))
    return found.union(*(fields(value) for value in schema.values()))


def test_every_setting_is_documented(reference: str) -> None:
    models = [Workspace, *(config_model(name) for name in STORES), *(model() for model in spec_models().values())]
    names = set().union(*(fields(model.model_json_schema(by_alias=True)) for model in models))
    assert len(names) > 60
    assert sorted(name for name in names if name not in reference) == []


def test_the_exit_codes_are_documented() -> None:
    text = documentation()
    for code in (2, 3, 10, 11, 12, 13, 14, 130):
        assert f"{code}" in text


def test_links_between_pages_lead_somewhere() -> None:
    import re

    links = [
        (path, target)
        for path in [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
        for target in re.findall(r"\]\(([^)#\s]+)(?:#[^)]*)?\)", path.read_text())
        if "://" not in target and not target.startswith("mailto:")
    ]
    assert [f"{path.relative_to(ROOT)}: {to}" for path, to in links if not (path.parent / to).exists()] == []


@pytest.mark.parametrize("kind", schemas.names())
def test_the_published_schemas_are_those_of_the_models(kind: str) -> None:
    assert (ROOT / "schemas" / f"{kind}.json").read_text() == schemas.dumps(kind), (
        f"vecrun schema {kind} > schemas/{kind}.json"
    )
    jsonschema.Draft202012Validator.check_schema(schemas.schema(kind))


def test_no_other_schema_lies_there() -> None:
    assert sorted(path.stem for path in (ROOT / "schemas").glob("*.json")) == sorted(schemas.names())


def test_the_shipped_workspace_is_what_init_makes(tmp_path: Path) -> None:
    for name in ("vecrun.yaml", *(f"jobs/{path.name}" for path in JOBS)):
        assert (ROOT / name).read_text() == workspace.FILES[name], name
    assert {f"jobs/{path.name}" for path in JOBS} == {name for name in workspace.FILES if name.startswith("jobs/")}
    workspace.create(tmp_path)
    load(tmp_path, "demo", connection_model)


@pytest.mark.parametrize("path", [*JOBS, *EXAMPLES], ids=lambda path: path.stem)
def test_shipped_jobs_pass_both_layers(path: Path) -> None:
    job = load_job(path, spec_models(), {})
    jsonschema.validate(job.document.data, json.loads((ROOT / "schemas" / f"{job.kind}.json").read_text()))


def test_the_shipped_workspace_passes_both_layers() -> None:
    settings = load(ROOT, "", connection_model)
    jsonschema.validate(settings.document.data, json.loads((ROOT / "schemas" / "Workspace.json").read_text()))


#: Errors that only the models can see: they are about text, references, other files, or what Python computes.
ONE_LAYER = {
    "secret", "secret that is a number", "secret in a URL", "secret in a query", "unknown connection",
    "a duration", "a date and a number as keys",
}  # fmt: skip


def judged(text: str | bytes, kind: str) -> bool | None:
    """Whether the JSON Schema accepts it; None for what is not one YAML document."""
    try:
        data = parse(text.decode() if isinstance(text, bytes) else text, "f").data
    except (InvalidFile, UnicodeDecodeError):
        return None
    if kind == "VectorMigration" and "{{" in str(text):
        return None
    return bool(jsonschema.Draft202012Validator(schemas.schema(kind)).is_valid(data))


@pytest.mark.parametrize("name", FILES)
def test_a_wrong_job_fails_both_layers(name: str) -> None:
    if name not in ONE_LAYER:
        assert judged(FILES[name][0], "VectorMigration") in (False, None)


@pytest.mark.parametrize("name", SETTINGS_FILES)
def test_a_wrong_workspace_fails_both_layers(name: str) -> None:
    if name not in ONE_LAYER:
        assert judged(SETTINGS_FILES[name][0], "Workspace") in (False, None)


def test_yaml_samples_in_the_documentation_are_valid() -> None:
    """Every YAML block that begins with apiVersion is a whole file."""
    import re

    count = 0
    for path in [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]:
        for block in re.findall(r"```ya?ml\n(.*?)```", path.read_text(), re.DOTALL):
            if "apiVersion: vecrun/v1" not in block or "{{" in block:
                continue
            data = yaml.safe_load(block)
            errors = list(jsonschema.Draft202012Validator(schemas.schema(data["kind"])).iter_errors(data))
            assert not errors, f"{path.relative_to(ROOT)}: {errors[0].message}"
            count += 1
    assert count
