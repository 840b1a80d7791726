# `make demo` and `make test` are all that a newcomer needs; both make .venv first.
PYTHON ?= python3
BIN := .venv/bin
PACKAGE := build/package
EXTRAS := tune zarr parquet bench export test dev

.PHONY: demo test gpu check format package clean

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

# Builds both distributions, installs the wheel into an environment of its own and runs the demo there, in
# another folder. The dependencies are those of .venv, by path: PyTorch is not downloaded a second time.
package: .venv/installed
	rm -rf $(PACKAGE)
	$(PYTHON) -m venv $(PACKAGE)/builder
	$(PACKAGE)/builder/bin/pip install --quiet "build>=1.2"
	$(PACKAGE)/builder/bin/python -m build --outdir $(PACKAGE)/dist .
	$(PYTHON) -m venv --without-pip $(PACKAGE)/installed
	$(BIN)/python -c "import sysconfig; print(sysconfig.get_path('purelib'))" \
		> "$$($(PACKAGE)/installed/bin/python -c "import sysconfig; print(sysconfig.get_path('purelib'))")/dependencies.pth"
	$(BIN)/pip --python $(PACKAGE)/installed install --quiet --no-deps $(PACKAGE)/dist/*.whl
	$(BIN)/pip --python $(PACKAGE)/installed check
	for extra in $(EXTRAS); do \
		$(BIN)/pip --python $(PACKAGE)/installed install --quiet --dry-run "$$(echo $(PACKAGE)/dist/*.whl)[$$extra]" || exit 1; \
	done
	mkdir $(PACKAGE)/elsewhere
	cd $(PACKAGE)/elsewhere && ../installed/bin/python -c "import stacker; assert 'site-packages' in stacker.__file__"
	cd $(PACKAGE)/elsewhere && ../installed/bin/stacker demo

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
