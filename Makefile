# `make demo` and `make test` are all that a newcomer needs; both make .venv first.
PYTHON ?= python3
BIN := .venv/bin

.PHONY: demo test gpu check format clean

demo: .venv/installed
	$(BIN)/stacker demo

test: .venv/installed-test
	$(BIN)/pytest -n auto --dist worksteal

# On one GPU: the tests that need it, then training and stage two at real size, within nine minutes.
gpu: .venv/installed-test
	$(BIN)/stacker bench gpu --tests tests/gpu --out artifacts/gpu

check: .venv/installed-dev
	$(BIN)/ruff format --check stacker tests
	$(BIN)/ruff check stacker tests
	$(BIN)/mypy

format: .venv/installed-dev
	$(BIN)/ruff format stacker tests
	$(BIN)/ruff check --fix stacker tests

clean:
	rm -rf .venv build dist .hypothesis .pytest_cache .mypy_cache .ruff_cache

$(BIN)/pip:
	@$(PYTHON) -c "import sys; sys.exit('stacker needs Python 3.11 or newer, found ' + sys.version.split()[0] + '; try: make PYTHON=python3.12 ...') if sys.version_info < (3, 11) else None"
	$(PYTHON) -m venv .venv

.venv/installed: $(BIN)/pip pyproject.toml
	$(BIN)/pip install --quiet -e .
	@touch $@

.venv/installed-test: .venv/installed
	$(BIN)/pip install --quiet -e ".[test]"
	@touch $@

.venv/installed-dev: .venv/installed-test
	$(BIN)/pip install --quiet -e ".[test,dev]"
	@touch $@
