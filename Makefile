# `make run` and `make test` need Python 3.11 and nothing else; both make .venv first.
PYTHON ?= python3.11
VENV := .venv
BIN := $(VENV)/bin

.PHONY: setup run test check reliability clean

setup: $(VENV)/.installed

$(VENV)/.installed: pyproject.toml constraints.txt requirements-embedded.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install -c constraints.txt torch
	$(BIN)/pip install -c constraints.txt -e '.[dev,dp,flower,openai,openvino]' reasoning-gym
	$(BIN)/pip install --no-deps -r requirements-embedded.txt
	touch $@

run: setup  ## the quickstart, into runs/quickstart
	$(BIN)/fedsdr run examples/quickstart.toml --out runs/quickstart $(if $(wildcard runs/quickstart/config.toml),--resume)

test: setup  ## one process a core; the tests of the embedded model run one at a time
	$(BIN)/python -m pytest -n auto --maxprocesses 8 --dist loadgroup

check: setup  ## format, lint and types
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

reliability: setup  ## the full counts of docs/reliability.md; ONLY=kills runs those of that name
	$(BIN)/python -m pytest tests/reliability --full -n 0 -rP $(if $(ONLY),-k $(ONLY))

bench: setup  ## writes the tables of docs/performance.md; under 15 minutes on two idle cores
	$(BIN)/pip install -c constraints.txt -e '.[bench]'
	$(BIN)/python benchmarks/bench.py

clean:
	rm -rf $(VENV) runs build *.egg-info src/*.egg-info
