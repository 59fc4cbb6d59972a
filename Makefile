# Set-up and checks from a fresh clone: `make demo` and `make test` each build .venv when it is missing or out of date.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
TORCH = $(shell grep '^torch==' constraints.txt)

.DEFAULT_GOAL := help
.PHONY: help install demo docs test lint clean distclean

help: ## List the targets
	@awk -F ':.*## ' '/^[a-z]+:.*## / { printf "  make %-10s %s\n", $$1, $$2 }' Makefile
	@echo "  With another interpreter (3.11 or newer): make PYTHON=python3.12 demo"

install: $(STAMP) ## Create .venv with the package, all extras and the test tools

# torch is named beside the package, in one call, so that pip settles on the tested version and never fetches another.
$(STAMP): pyproject.toml constraints.txt
	@$(BIN)/python -m pip --version >/dev/null 2>&1 || { \
	  $(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed; name one: make PYTHON=python3.11")' \
	  && echo "Creating $(VENV)" && $(PYTHON) -m venv --clear $(VENV); }
	$(BIN)/python -m pip install -c constraints.txt '$(TORCH)' -e '.[dev]'
	@touch $@

demo: $(STAMP) ## Prune the embedded CLIP from start to end; writes runs/demo/report.html
	$(BIN)/patchranking demo --out runs/demo

docs: $(STAMP) ## Build the site of the documentation; writes runs/site/index.html
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --quiet

test: lint ## Lint, type check and run the tests, a process for each core
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n auto --dist worksteal

lint: $(STAMP) ## ruff check, ruff format --check and mypy
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

clean: ## Remove caches and build output (keeps .venv and runs)
	rm -rf dist build .mypy_cache .ruff_cache .pytest_cache .hypothesis
	find src tests -type d -name __pycache__ -prune -exec rm -rf {} +

distclean: clean ## Also remove .venv
	rm -rf $(VENV)
