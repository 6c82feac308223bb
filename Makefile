# make demo    set up, then the whole road on real text: prepare, train, export, generate, remove each domain, report
# make test    set up, then the tests (SLOW=1 adds the slow ones)
# make check   what CI runs: lint, types, all tests
# make clean-demo   forget the demo's run, to start it over
#
# PYTHON picks the interpreter of the new environment, TORCH the build of torch it gets.

PYTHON ?= python3
TORCH ?= torch==2.13.0
SLOW ?=
PYTEST_ARGS ?=

BIN := .venv/bin
DATA := data/demo
RUN := runs/demo

.PHONY: demo test check lint clean-demo
.DELETE_ON_ERROR:

# One resolution for torch and everything else, so that nothing pulls in a second build of torch.
.venv/.ready: pyproject.toml setup.py
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet "$(TORCH)" --editable ".[dev]"
	touch $@

test: .venv/.ready
	$(BIN)/python -m pytest $(if $(SLOW),-m "") $(PYTEST_ARGS)

lint: .venv/.ready
	$(BIN)/ruff check .
	$(BIN)/pyright --warnings

check: lint
	$(MAKE) test SLOW=1
