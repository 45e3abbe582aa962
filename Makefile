# Needs python3 (3.11 or newer) with pip, and make. Everything else is installed into .venv.
PYTHON ?= python3
# The environment has no pip of its own: Debian's python3 lacks ensurepip until python3-venv is installed.
PIP := $(PYTHON) -m pip --disable-pip-version-check --python .venv/bin/python
LOCK := .venv/bin/uv pip compile --quiet --universal --python-version 3.11 --generate-hashes --custom-compile-command "make lock"
RUNTIME := .venv/requirements.stamp
DEVELOPMENT := .venv/requirements-dev.stamp
CHECKS := "ruff check" "ruff format --check" mypy lint-imports "deptry src"

.PHONY: help run check test screenshots systems mutants chaos soak bench bench-smoke lock

help:  ## Show the targets; ARGS="…" is passed on to what a target runs
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "make %-11s %s\n", $$1, $$2}' Makefile

run: ARGS ?= demo
run: $(RUNTIME)  ## Set up and run unstick; without ARGS the demo
	.venv/bin/unstick $(ARGS)

check: $(DEVELOPMENT)  ## Lint, format, types, import rules and dependencies: all of them, even if one fails
	@status=0; for check in $(CHECKS); do echo "== $$check"; .venv/bin/$$check || status=1; done; exit $$status

test: $(DEVELOPMENT)  ## Run the tests against real, private database servers
	@scripts/install-servers
	@scripts/install-systems
	.venv/bin/pytest -n 2 --durations=40 --durations-min=3 $(ARGS)

screenshots: $(DEVELOPMENT)  ## Take a picture of every page of the console, to look at
	@scripts/install-servers
	.venv/bin/python -m tests.screenshots $(ARGS)

systems: $(DEVELOPMENT)  ## Run real job systems, and write what was seen into docs/reference/systems.md
	@scripts/install-servers
	@scripts/install-systems
	RECORD_SYSTEMS=1 .venv/bin/pytest tests/test_systems.py tests/test_one_service.py $(ARGS)

mutants: $(DEVELOPMENT)  ## Change guards one at a time and see that a test notices (hours); ARGS="unstick.domain.*" tries only these
	@scripts/install-servers
	.venv/bin/python -m tests.mutants $(ARGS)

chaos: SECONDS ?= 60
chaos: $(DEVELOPMENT)  ## Kill workers, sweepers and a database for SECONDS, and judge; ARGS="--seed 7" draws the same blows
	@scripts/install-servers
	.venv/bin/python -m chaos --seconds $(SECONDS) $(ARGS)

soak: SECONDS ?= 600
soak: $(DEVELOPMENT)  ## Have three replicas watch a source for SECONDS in spite of blows; nothing may grow or be missed
	@scripts/install-servers
	.venv/bin/python -m chaos.soak --seconds $(SECONDS) $(ARGS)

bench: $(DEVELOPMENT)  ## Measure everything (half an hour), and write docs/reference/performance.md; ARGS="recovery" measures only that and writes nothing
	@scripts/install-servers
	@scripts/install-systems
	@scripts/install-systems benchmarks/others
	.venv/bin/python -m benchmarks $(or $(ARGS),--record)

bench-smoke: $(DEVELOPMENT)  ## See that every benchmark works, with small numbers
	@scripts/install-servers
	@scripts/install-systems
	.venv/bin/pytest tests/test_benchmarks.py tests/test_benchmarks_beside.py $(ARGS)

lock: .venv/bin/python  ## Write the lock files anew; ARGS=--upgrade takes newer releases
	$(PIP) install --quiet uv
	@# The build backend is locked too, for the project itself is built without fetching anything.
	printf 'hatchling\neditables\n' | $(LOCK) $(ARGS) --extra postgres --extra mysql --extra witnesses --extra alerts --extra otel --extra rq --output-file requirements.lock pyproject.toml -
	$(LOCK) $(ARGS) --all-extras --group dev --output-file requirements-dev.lock pyproject.toml requirements.lock

$(RUNTIME) $(DEVELOPMENT): .venv/%.stamp: %.lock pyproject.toml | .venv/bin/python
	$(PIP) install --quiet --require-hashes --requirement $<
	$(PIP) install --quiet --no-deps --no-index --no-build-isolation --editable .
	@touch $@

.venv/bin/python:
	$(PYTHON) -m venv --without-pip .venv
