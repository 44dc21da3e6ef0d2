"""What `vecrun init --ci` adds to a new workspace: the workflows of a host, and the environment that they plan and apply.

The texts in `templates/` are copies of `examples/ci`, made by `make schemas`.
"""

from __future__ import annotations

from importlib import resources

from runner import workspace

#: host -> (template, where it goes in a repository).
HOSTS: dict[str, dict[str, str]] = {
    "github": {
        f"github/vecrun-{name}.yml": f".github/workflows/vecrun-{name}.yml" for name in ("plan", "apply", "drift")
    },
    "gitlab": {"gitlab/vecrun.gitlab-ci.yml": ".gitlab-ci.yml"},
}
_BEFORE = "\nstate:\n"
_PRODUCTION = """\
  prod:                             # what pipelines plan and apply: VECRUN_ENV in their files
    state: {database: "${env:VECRUN_DATABASE}"}
"""


def files(host: str) -> dict[str, str]:
    """Path -> text, for a host of HOSTS; vecrun.yaml is among them."""
    folder = resources.files("runner.ci") / "templates"
    made = {path: (folder / name).read_text(encoding="utf-8") for name, path in HOSTS[host].items()}
    return made | {"vecrun.yaml": workspace.SETTINGS.replace(_BEFORE, _PRODUCTION + _BEFORE, 1)}
