# Kerf: every command a developer needs.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
.PHONY: setup demo test test-slow check bench clean

setup: $(VENV)/.installed

$(VENV)/.installed: pyproject.toml constraints/cpu.txt hatch_build.py
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints/cpu.txt \
		--editable '.[agent,server,search,dev]'
	touch $@

demo: setup
	$(BIN)/kerf demo --output demo-out

test: setup
	$(BIN)/python -m pytest -n 2 --dist loadgroup -m "not slow"

test-slow: setup
	$(BIN)/python -m pytest -m slow

check: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	KERF_DATA_DIR=$(VENV)/check sh -c '$(BIN)/kerf db upgrade && $(BIN)/alembic check'

clean:
	rm -rf $(VENV) demo-out build dist
