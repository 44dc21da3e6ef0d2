"""The deployment files agree with the command line, the settings and each other; no container is started here.

Images are pinned, nothing is published beyond loopback, every secret comes from outside, and a stop leaves time to drain.
"""

from __future__ import annotations

import configparser
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click
import pytest
import yaml

from runner import __version__
from runner.kinds import spec_models
from runner.metrics import METRICS
from runner.settings import Settings, load
from runner.spec import load_job
from runner.world import connection_model
from tests.e2e.test_cli import LEAVES

ROOT = Path(__file__).resolve().parents[1]
DEPLOY = ROOT / "deploy"
KUBERNETES = sorted((DEPLOY / "kubernetes").rglob("*.yaml"))
YAML = sorted([ROOT / "docker-compose.yml", *DEPLOY.rglob("*.yaml"), *DEPLOY.rglob("*.yml")])
#: A worker hands back what it works on within so many seconds of SIGTERM; whoever stops it must wait longer.
DRAIN_SECONDS = 30
REFERENCE = re.compile(r"\$\{env:(\w+)\}")


def documents(path: Path) -> list[dict[str, Any]]:
    return [document for document in yaml.safe_load_all(path.read_text()) if document is not None]


COMPOSE = documents(ROOT / "docker-compose.yml")[0]
SERVICES: dict[str, dict[str, Any]] = COMPOSE["services"]
MANIFESTS = [document for path in KUBERNETES for document in documents(path)]
PODS = {
    item["metadata"].get("name") or item["metadata"]["generateName"]: item["spec"]["template"]["spec"]
    for item in MANIFESTS
    if "template" in item.get("spec", {})
}
CONTAINERS = [container for pod in PODS.values() for container in pod["containers"]]
UNIT = configparser.ConfigParser(strict=False, interpolation=None)
UNIT.optionxform = str  # type: ignore[assignment]
UNIT.read(DEPLOY / "systemd" / "vecrun-worker.service")


def manifest(kind: str) -> dict[str, Any]:
    (found,) = [item for item in MANIFESTS if item["kind"] == kind]
    return found


def env_example() -> dict[str, str]:
    lines = (ROOT / ".env.example").read_text().splitlines()
    return dict(line.split("=", 1) for line in lines if line and not line.startswith("#"))


def seconds(text: str) -> int:
    return int(text.removesuffix("s"))


@pytest.mark.parametrize("path", YAML, ids=lambda path: str(path.relative_to(ROOT)))
def test_every_file_parses_and_says_something(path: Path) -> None:
    assert documents(path)
    assert all(isinstance(document, dict) for document in documents(path))


# Images -------------------------------------------------------------------------------------------------------------


def images() -> Iterator[str]:
    yield from (service["image"] for service in SERVICES.values())
    yield from (container["image"] for container in CONTAINERS)
    yield from re.findall(r"^FROM (\S+)", (ROOT / "Dockerfile").read_text(), re.MULTILINE)


@pytest.mark.parametrize("image", sorted(set(images())))
def test_every_image_is_pinned_to_a_version(image: str) -> None:
    name, _, tag = image.rpartition(":")
    assert name, f"{image} has no tag"
    assert re.match(r"v?\d+\.\d+\.\d+", tag), f"{image}: a tag of full versions does not move"
    if name.endswith("vecrun"):
        assert tag == __version__


def test_the_image_is_built_from_what_is_there_and_runs_as_nobody() -> None:
    text = (ROOT / "Dockerfile").read_text()
    build, final = re.split(r"^FROM .*$", text, flags=re.MULTILINE)[1:]
    allowed = [line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")]
    copied = [name for line in re.findall(r"^COPY (.+)$", build, re.MULTILINE) for name in line.split()[:-1]]
    assert "runner" in copied
    assert sorted(copied) == sorted(allowed)
    assert all((ROOT / name).exists() for name in copied)
    (user,) = re.findall(r"^USER (\d+):", final, re.MULTILINE)
    assert int(user) >= 1000
    assert all(pod["securityContext"]["runAsUser"] == int(user) for pod in PODS.values())
    assert 'ENTRYPOINT ["vecrun"]' in final
    assert "pip" not in final


# Compose ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", SERVICES)
def test_ports_are_published_on_loopback_only(name: str) -> None:
    service = SERVICES[name]
    assert not {"network_mode", "privileged", "pid", "ipc"} & set(service)
    for port in service.get("ports", []):
        assert isinstance(port, str)
        assert port.startswith(("127.0.0.1:", "[::1]:")), port


@pytest.mark.parametrize("name", SERVICES)
def test_a_service_is_healthy_only_once_it_was_asked(name: str) -> None:
    service = SERVICES[name]
    assert "healthcheck" in service or service.get("profiles") == ["cli"]
    for other, wanted in service.get("depends_on", {}).items():
        assert wanted["condition"] == "service_healthy"
        assert "healthcheck" in SERVICES[other]


def test_what_is_mounted_exists() -> None:
    mounts = [volume.split(":")[0] for service in SERVICES.values() for volume in service.get("volumes", [])]
    assert {mount for mount in mounts if not mount.startswith(".")} == set(COMPOSE["volumes"])
    assert [mount for mount in mounts if mount.startswith(".") and not (ROOT / mount).exists()] == []
    used = {item["source"] for service in SERVICES.values() for item in service.get("configs", [])}
    assert used == set(COMPOSE["configs"])


def test_the_example_names_every_variable_and_no_secret() -> None:
    used = set(re.findall(r"(?<!\$)\$\{(\w+)", (ROOT / "docker-compose.yml").read_text()))
    given = env_example()
    assert used == set(given) - {"COMPOSE_PROFILES"}
    secrets = {name for name in given if name.endswith(("_PASSWORD", "_KEY"))}
    assert len(secrets) == 5
    assert all(given[name] == "" for name in secrets)
    assert all(given[name] for name in set(given) - secrets)
    for name in secrets:  # an empty one stops `docker compose up` instead of starting an open database
        assert not re.search(rf"\$\{{{name}(?!:\?)", (ROOT / "docker-compose.yml").read_text()), name
    profiles = {profile for service in SERVICES.values() for profile in service.get("profiles", [])}
    assert set(given["COMPOSE_PROFILES"].split(",")) == profiles - {"cli"}


def test_git_does_not_take_the_secrets() -> None:
    assert "/.env" in (ROOT / ".gitignore").read_text().splitlines()


def test_redis_keeps_what_it_was_given() -> None:
    settings = dict(line.split(maxsplit=1) for line in COMPOSE["configs"]["redis"]["content"].splitlines())
    assert settings["appendonly"] == "yes"
    assert settings["maxmemory-policy"] == "noeviction"
    assert "requirepass" in settings


# Workspaces ---------------------------------------------------------------------------------------------------------


def workspace(name: str, folder: Path) -> Settings:
    """The workspace of the Compose or the Kubernetes files, laid out in `folder` as its containers see it."""
    (folder / "jobs").mkdir()
    if name == "compose":
        (folder / "vecrun.yaml").write_text((DEPLOY / "compose" / "vecrun.yaml").read_text())
        for path in (DEPLOY / "compose" / "jobs").iterdir():
            (folder / "jobs" / path.name).write_text(path.read_text())
    else:
        data = manifest("ConfigMap")["data"]
        for volume in PODS["vecrun-handbook-"]["volumes"]:
            for item in volume.get("configMap", {}).get("items", []):
                (folder / item["path"]).write_text(data[item["key"]])
    return load(folder, "", connection_model)


@pytest.mark.parametrize("name", ["compose", "kubernetes"])
def test_the_workspaces_are_valid_and_so_are_their_jobs(name: str, tmp_path: Path) -> None:
    settings = workspace(name, tmp_path)
    assert settings.workspace.model_dump()["state"]["database"] == "${env:VECRUN_DATABASE}"
    assert settings.workspace.model_dump()["broker"]["url"] == "${env:VECRUN_REDIS}"
    jobs = sorted((tmp_path / "jobs").glob("*.yaml"))
    assert jobs
    for path in jobs:
        job = load_job(path, spec_models(), {})
        connections = settings.workspace.connections
        assert {job.document.data["spec"][end] for end in ("source", "target")} <= set(connections)
        assert all(connections[job.document.data["spec"][end]].get("path") is None for end in ("source", "target"))


def test_each_reference_of_a_workspace_is_given_to_its_containers() -> None:
    wanted = set(REFERENCE.findall((DEPLOY / "compose" / "vecrun.yaml").read_text()))
    for name in ("worker", "vecrun"):
        assert set(SERVICES[name]["environment"]) == wanted
    wanted = set(REFERENCE.findall(manifest("ConfigMap")["data"]["vecrun.yaml"]))
    secret = manifest("Secret")
    assert set(secret["stringData"]) == wanted
    assert all("REPLACE_ME" in value for value in secret["stringData"].values())
    for container in CONTAINERS:
        assert container["envFrom"] == [{"secretRef": {"name": secret["metadata"]["name"]}}]


def test_a_folder_can_be_applied_without_the_samples() -> None:
    """`kubectl apply -f deploy/kubernetes` must not write placeholders over a real secret, nor start a job."""
    for path in (DEPLOY / "kubernetes").glob("*.yaml"):
        assert not {document["kind"] for document in documents(path)} & {"Secret", "Job"}, path.name


# Commands -----------------------------------------------------------------------------------------------------------


def filled(word: str) -> str:
    """A word of docker-compose.yml with .env.example filled in."""
    return re.sub(r"\$\{(\w+)[^}]*\}", lambda found: env_example()[found[1]], word)


def commands() -> Iterator[tuple[str, list[str]]]:
    yield "compose", [filled(word) for word in SERVICES["worker"]["command"]]
    yield "systemd", UNIT["Service"]["ExecStart"].split()[1:]
    yield from ((f"kubernetes {container['name']}", container["args"]) for container in CONTAINERS)


@pytest.mark.parametrize("words", [words for _, words in commands()], ids=[where for where, _ in commands()])
def test_the_command_line_takes_what_they_start(words: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(DEPLOY / "compose")
    command = LEAVES[(words[0],)]
    context: click.Context = command.make_context(words[0], list(words[1:]))
    assert context.params


def test_prometheus_and_the_probes_ask_where_the_workers_answer() -> None:
    asked = yaml.safe_load((DEPLOY / "prometheus.yml").read_text())["scrape_configs"][0]["dns_sd_configs"][0]
    assert asked["names"] == ["worker"]
    assert f"--metrics=0.0.0.0:{asked['port']}" in SERVICES["worker"]["command"]
    assert f"127.0.0.1:{asked['port']}/metrics" in " ".join(SERVICES["worker"]["healthcheck"]["test"])
    (container,) = PODS["vecrun-worker"]["containers"]
    (port,) = container["ports"]
    assert f"--metrics=0.0.0.0:{port['containerPort']}" in container["args"]
    for probe in ("startupProbe", "livenessProbe", "readinessProbe"):
        assert container[probe]["httpGet"]["port"] == port["name"]


def test_alerts_ask_for_metrics_that_there_are() -> None:
    (prometheus,) = documents(DEPLOY / "prometheus.yml")
    assert prometheus["rule_files"] == ["alerts.yml"]
    assert "./deploy/alerts.yml:/etc/prometheus/alerts.yml:ro" in SERVICES["prometheus"]["volumes"]
    (group,) = documents(DEPLOY / "alerts.yml")[0]["groups"]
    named = {name for rule in group["rules"] for name in re.findall(r"vecrun_\w+", rule["expr"])}
    assert named
    assert named <= set(METRICS)


def test_a_stop_leaves_time_to_drain_and_a_death_is_followed_by_a_start() -> None:
    assert seconds(SERVICES["worker"]["stop_grace_period"]) > DRAIN_SECONDS
    assert PODS["vecrun-worker"]["terminationGracePeriodSeconds"] > DRAIN_SECONDS
    service = UNIT["Service"]
    assert int(service["TimeoutStopSec"]) > DRAIN_SECONDS
    assert service["KillMode"] == "mixed"
    assert service["OOMPolicy"] == "continue"
    assert service["Restart"] == SERVICES["worker"]["restart"] == "always"
    assert service["EnvironmentFile"].startswith("/etc/")
