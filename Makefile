# Everything a newcomer types. Works with GNU make 3.81 (macOS) and needs only Python >= 3.11 with pip.

# Candidates, tried in this order. To choose one: make demo PYTHON=/path/to/python3
PYTHON ?= python3 python3.12 python3.11 python3.13 python3.14
ARGS ?=

BIN := .venv/bin
PINS := pyproject.toml constraints.txt
# Installers talk on stderr: stdout belongs to the command (make demo ARGS=--json).
INSTALL := $(BIN)/python -m pip install --disable-pip-version-check -c constraints.txt -e

.PHONY: help demo up test chaos fuzz lint types ci clean

help: ## this list
	@awk -F ':.*## ' '/^[a-z]+:.*## / { printf "  make %-7s %s\n", $$1, $$2 }' Makefile

demo: .venv/.installed ## start the service, forget two people, show before, after and verdict (ARGS=--json, ARGS=--keep)
	@$(BIN)/lethe demo $(ARGS)

up: .venv/.installed ## the service, staying up: API docs at /docs
	@$(BIN)/lethe up $(ARGS)

test: .venv/.installed-dev ## all tests (ARGS="tests/core -x" for some)
	@$(BIN)/python -m pytest $(ARGS)

chaos: .venv/.installed-dev ## a long storm of faults over the service (JOBS=240, SEED=a number)
	@LETHE_CHAOS_JOBS=$(or $(JOBS),240) LETHE_CHAOS_SEED=$(SEED) $(BIN)/python -m pytest tests/chaos/test_storm.py -s $(ARGS)

fuzz: .venv/.installed-dev ## schemathesis over the whole API, longer than make test does (EXAMPLES=100)
	@LETHE_FUZZ_EXAMPLES=$(or $(EXAMPLES),30) $(BIN)/python -m pytest tests/api/test_fuzz.py $(ARGS)

lint: .venv/.installed-dev ## ruff: rules and format
	@$(BIN)/python -m ruff check .
	@$(BIN)/python -m ruff format --check .

types: .venv/.installed-dev ## mypy, strict
	@$(BIN)/python -m mypy

ci: ## lint, types and tests, as the build server runs them
	@.ci/run

clean: ## remove caches and build leftovers; the environment stays (rm -r .venv removes it)
	@rm -rf build dist *.egg-info .mypy_cache .pytest_cache .ruff_cache .hypothesis
	@find . -path ./.venv -prune -o -name __pycache__ -type d -prune -exec rm -rf {} +

# The stamps are written last, so an installation that failed or was interrupted is done again.
.venv/.installed: $(PINS) | $(BIN)/pip
	@echo "Installing Lethe into .venv (once; this takes a few minutes) ..." >&2
	@$(INSTALL) '.[engine,embedded]' >&2
	@touch $@

.venv/.installed-dev: $(PINS) | $(BIN)/pip
	@echo "Installing Lethe and its development tools into .venv (once; this takes a few minutes) ..." >&2
	@$(INSTALL) '.[engine,embedded,dev]' >&2
	@touch .venv/.installed $@

# A Python without ensurepip (Debian splits it off) still makes an environment: its own pip fills it.
$(BIN)/pip:
	@for python in $(PYTHON); do \
	  "$$python" -c 'import sys, venv; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || continue; \
	  if "$$python" -c 'import ensurepip' 2>/dev/null; then \
	    exec "$$python" -m venv .venv >&2; \
	  else \
	    "$$python" -m venv --without-pip .venv >&2 && exec "$$python" -m pip --python $(BIN)/python install pip >&2; \
	    exit 1; \
	  fi; \
	done; \
	echo "Lethe needs Python >= 3.11 with its venv module. Tried: $(PYTHON)." >&2; \
	for python in $(PYTHON); do "$$python" --version 2>/dev/null | sed "s|^|  $$python is |" >&2; done; \
	echo "Install one, or name it: make $(MAKECMDGOALS) PYTHON=/path/to/python3" >&2; \
	exit 1
