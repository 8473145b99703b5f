# Everything runs in one environment, .venv, which is made when it is missing and brought up to
# date when requirements change. `make demo` installs what shoal needs to run and nothing more.

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.SUFFIXES:
MAKEFLAGS += --no-builtin-rules
SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c

# `make -f /path/to/Makefile` from elsewhere works like `make -C /path/to`.
here := $(dir $(lastword $(MAKEFILE_LIST)))
targets := demo test check bench clean proto docs format requirements help

ifneq ($(here),./)
.PHONY: $(targets)
$(targets):
	@$(MAKE) --no-print-directory -C "$(here)" -f Makefile $@
else

python := .venv/bin/python
sources := benchmarks peer proto scheduler tests

# Tests that only compute run in parallel. Those with real processes, sockets and timing share the
# machine with nobody, so that a busy neighbour can't make one fail.
serial_tests := tests/integration tests/clients
parallel_tests := $(filter-out $(serial_tests),$(patsubst %/,%,$(wildcard tests/*/)))
workers ?= auto

.PHONY: $(targets)

help: ## this list
	@grep -E '^[a-z]+:.*##' Makefile | sed -E 's/^([a-z]+):.*## (.*)/  make \1\t\2/' | expand -t 22

demo: .venv/stamp-run ## a swarm of 8 nodes on this machine, with a live display
	@.venv/bin/shoal demo $(DEMO)

test: .venv/stamp-dev ## all tests, with branch coverage of what is pure
	$(python) -m pytest $(parallel_tests) -n $(workers) --maxprocesses=8 --dist=worksteal \
		--durations=10 --cov --cov-report=term:skip-covered --cov-fail-under=95
	$(python) -m pytest $(serial_tests) --durations=10

check: .venv/stamp-dev ## lint, format, types, import contracts, tidiness, generated files
	$(python) -m ruff check .
	$(python) -m ruff format --check .
	$(python) -m mypy
	$(python) -c 'from importlinter.cli import lint_imports_command; lint_imports_command()'
	$(python) -m pytest tests/tidy -q

bench: .venv/stamp-dev ## CPU per GB, memory and small-file latency of real processes
	$(python) -m benchmarks.real $(BENCH)

proto: .venv/stamp-dev ## generate code from proto/shoal/v1/*.proto
	$(python) -m tests.tidy.generated protobuf

docs: .venv/stamp-dev ## generate docs/configuration.md
	$(python) -m tests.tidy.generated configuration

format: .venv/stamp-dev ## format sources, mend what the linter can mend
	$(python) -m ruff check --fix .
	$(python) -m ruff format .

requirements: .venv/stamp-dev ## compile requirements/*.txt again (needs pip-compile on the PATH)
	@command -v pip-compile >/dev/null || { \
		echo "pip-compile is missing: install pip-tools (for example: pipx install pip-tools)"; \
		exit 1; }
	CUSTOM_COMPILE_COMMAND="make requirements" pip-compile -q $(compile) --all-build-deps \
		-o requirements/run.txt pyproject.toml
	CUSTOM_COMPILE_COMMAND="make requirements" pip-compile -q $(compile) \
		-o requirements/dev.txt pyproject.toml requirements/dev.in

# No index, no host name: where packages come from is the business of whoever installs them.
compile := --no-emit-index-url --no-emit-trusted-host --no-emit-find-links --strip-extras \
	--allow-unsafe

clean: ## remove everything that was made, .venv too
	rm -rf .venv .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache \
		.coverage .coverage.* build dist *.egg-info results
	find $(sources) -name __pycache__ -type d -prune -exec rm -rf {} +

# An environment knows its own path; a copied or moved one is made anew.
.venv/stamp-python: .venv/stamp-at-$(shell pwd | cksum | cut -d ' ' -f 1)
	@touch $@

.venv/stamp-at-%:
	@python=; \
	for candidate in python3.11 python3; do \
		if $$candidate -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then \
			python=$$candidate; break; \
		fi; \
	done; \
	if [ -z "$$python" ]; then \
		echo "shoal needs Python 3.11 or later, and neither python3.11 nor python3 is that."; \
		echo "On Debian 12 and later: apt-get install python3 python3-venv"; \
		exit 1; \
	fi; \
	if [ -d .venv ]; then echo "making .venv anew: it was made at another place"; rm -rf .venv; fi; \
	echo "making .venv with $$($$python --version)"; \
	$$python -m venv .venv || { \
		rm -rf .venv; \
		echo "$$python can't make an environment. On Debian: apt-get install python3-venv"; \
		exit 1; }
	@touch $@

.venv/stamp-run: requirements/run.txt pyproject.toml .venv/stamp-python
	@echo "installing what shoal needs to run"
	@$(python) -m pip install --quiet --disable-pip-version-check -r requirements/run.txt
	@$(python) -m pip install --quiet --disable-pip-version-check --no-deps \
		--no-build-isolation -e .
	@touch $@

.venv/stamp-dev: requirements/dev.txt .venv/stamp-run
	@echo "installing tools for tests and checks"
	@$(python) -m pip install --quiet --disable-pip-version-check -r requirements/dev.txt
	@touch $@

endif
