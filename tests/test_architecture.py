"""The house keeps its shape: tables sorted and complete, imports only downward, modules of a size that can be read
(DESIGN 2; A1: a fifth store is one file and one line).
"""

from __future__ import annotations

import ast
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from runner.kinds import KINDS, kind_module, spec_models
from runner.spec import SpecModel
from runner.store import ConnectionConfig, Store
from runner.stores import STORES, config_model
from tests.conftest import EDITIONS

ROOT = Path(__file__).resolve().parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
MODULES = sorted((ROOT / "runner").rglob("*.py"))


def test_the_tables_are_sorted() -> None:
    assert list(STORES) == sorted(STORES)
    assert list(KINDS) == sorted(KINDS)


def test_every_file_of_stores_is_registered() -> None:
    folder = ROOT / "runner" / "stores"
    names = {path.stem for path in folder.iterdir() if path.stem not in ("__init__", "__pycache__")}
    assert names == set(STORES)


def test_every_store_has_its_extra_and_is_part_of_all() -> None:
    extras = PROJECT["project"]["optional-dependencies"]
    for name in STORES:
        assert name in extras, f"pip install 'vecrun[{name}]' is what its error message says"
        assert name in extras["all"][0]
        assert name in EDITIONS.values(), "no edition of it is tested"


@pytest.mark.parametrize("name", STORES)
def test_the_config_of_a_store_explains_itself(name: str) -> None:
    model = config_model(name)
    assert issubclass(model, ConnectionConfig)
    schema = model.model_json_schema()
    assert schema["properties"]["type"]["const"] == name
    for key, value in schema["properties"].items():
        assert key == "type" or "description" in value or "$ref" in value, f"{name}.{key} has no description"


@pytest.mark.parametrize("name", STORES)
def test_importing_a_store_imports_no_client(name: str) -> None:
    module, store, _ = STORES[name].split(":")
    clients = ("pyarrow", "psycopg", "pymilvus", "milvus_lite", "qdrant_client", "weaviate", "grpc")
    code = (
        f"import sys, {module}\nfound = sorted(set({clients!r}) & set(sys.modules))\nassert not found, found\n"
        f"from runner.store import Store\nassert issubclass({module}.{store}, Store) and {module}.{store}.type == {name!r}\n"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert Store.__abstractmethods__


@pytest.mark.parametrize("kind", KINDS)
def test_a_kind_has_a_spec_and_plans(kind: str) -> None:
    assert issubclass(spec_models()[kind](), SpecModel)
    module = kind_module(kind)
    assert callable(module.plan_steps)
    assert callable(module.connections)


def test_the_import_contracts_hold() -> None:
    assert PROJECT["tool"]["importlinter"]["contracts"]
    done = subprocess.run(
        [Path(sys.executable).parent / "lint-imports"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout


def test_modules_are_of_a_size_that_can_be_read() -> None:
    long = {str(path.relative_to(ROOT)) for path in MODULES if len(path.read_text().splitlines()) > 500}
    assert not long, "split them"


FORBIDDEN = {"utils", "util", "helpers", "helper", "manager", "service", "services", "common", "misc"}


def test_rooms_have_names_that_say_something() -> None:
    assert not {path.stem for path in MODULES} & FORBIDDEN
    assert not {path.parent.name for path in MODULES} & FORBIDDEN


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(ROOT)))
def test_modules_explain_themselves_and_leave_nothing_open(path: Path) -> None:
    text = path.read_text()
    tree = ast.parse(text)
    if path.name != "__main__.py" and tree.body:
        assert ast.get_docstring(tree), "no docstring"
    for word in ("TODO", "FIXME", "XXX", "NotImplementedError()  #"):
        assert word not in text
    assert "import dramatiq" not in text or path.name == "actors.py"
