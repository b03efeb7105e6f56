# Kerf: every command a developer needs.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
.PHONY: setup demo test test-slow test-docs test-sanitizers docs audit check bench bench-kernels bench-search bench-latency \
	bench-load chaos fuzz screenshots wheels release clean

setup: $(VENV)/.installed

$(VENV)/.installed: pyproject.toml constraints/cpu.txt hatch_build.py
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints/cpu.txt \
		--editable '.[agent,server,search,dev]'
	touch $@

demo: setup
	$(BIN)/kerf demo --output demo-out

test: setup
	$(BIN)/python -m pytest -n 2 --dist loadgroup --no-loadscope-reorder -m "not slow"

test-slow: setup
	$(BIN)/python -m pytest -m slow

# Every command of the documentation, in the order of its pages, against processes of its own: minutes.
test-docs: setup
	$(BIN)/python -m pytest tests/docs -m "slow or not slow"

# The documentation as a site that loads nothing from elsewhere: site/index.html. A link that leads nowhere is an error.
docs: setup
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints/cpu.txt --editable '.[docs]'
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict --quiet
	$(BIN)/python -m docsite.check site

# The pictures of the dashboard in docs/images/, from a real run on this machine: some ten minutes, wants chromium.
screenshots: setup
	$(BIN)/python -m docsite.screenshots

# The loader of program images and all kernels under the address and undefined-behaviour sanitizers.
test-sanitizers: setup
	$(BIN)/python -m pytest tests/sanitizers

# Advisories on what is installed, from PyPI's database. Fails where that cannot be asked: unknown is not safe.
audit: setup
	$(BIN)/python -m pip install --quiet --disable-pip-version-check 'pip-audit>=2.7'
	$(BIN)/pip-audit --strict --skip-editable

# AUDIT=0: without asking for advisories, on a machine that cannot.
check: setup
	$(BIN)/python -m pip check
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	rm -rf $(VENV)/check
	KERF_DATA_DIR=$(VENV)/check sh -c '$(BIN)/kerf db upgrade && $(BIN)/alembic check'
ifneq ($(AUDIT),0)
	$(MAKE) audit
endif

# QUICK=1: a choice of layers and few rounds, under 50 s.
bench-kernels: setup
	$(BIN)/python -m bench.kernels $(if $(QUICK),--quick) --json bench/results/kernels.json

# QUICK=1: the operators alone, under 50 s. The whole takes hours, and goes on where it was stopped.
bench-search: setup
	$(BIN)/python -m bench.search $(if $(QUICK),--quick) --json bench/results/search.json

# QUICK=1: 10 held-out networks of the stored measurements, seconds. `python -m bench.latency.dataset` measures anew.
bench-latency: setup
	$(BIN)/python -m bench.latency $(if $(QUICK),--quick) --json bench/results/latency.json

# Faults on real processes, half an hour or more; QUICK=1: one search on SQLite, under 50 s.
chaos: setup
	$(BIN)/python -m tests.chaos $(if $(QUICK),--quick) --json bench/results/chaos.json

# Requests made up from the OpenAPI document, and damaged files: minutes.
fuzz: setup
	$(BIN)/python -m tests.fuzz.api --cases 22000 --json bench/results/fuzz.json
	$(BIN)/python -m tests.fuzz.files

# QUICK=1: 100 agents on SQLite and on PostgreSQL, under 50 s. The whole, with up to 2,000, takes half an hour.
bench-load: setup
	$(BIN)/python -m bench.load $(if $(QUICK),--quick) --json bench/results/load.json

bench: bench-kernels bench-search bench-latency

# One wheel for each machine in WHEELS; armv7l works the same way, untested on hardware.
WHEELS ?= x86_64 aarch64
wheels: setup
	for machine in $(WHEELS); do \
		KERF_NATIVE_TARGET=$$machine $(BIN)/python -m hatchling build -t wheel -d dist || exit 1; done

# The wheels, a bill of materials for agents and one for servers beside them (dist/*.cdx.json), and whether building the
# wheels again gives the same files.
release: wheels
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints/cpu.txt --editable '.[release]'
	$(BIN)/python -m release.sbom dist
	$(BIN)/python -m pytest -m slow tests/integration/test_release.py

clean:
	rm -rf $(VENV) demo-out build dist site
