# Two commands from a fresh clone: `make run` and `make test`. Each sets itself up.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.ready
# Test files at a time. A file stays with one process, so a guest boots once for all its tests.
JOBS ?= 2

.PHONY: run test setup lint types docs bench fuzz clean help

help: ## list the targets
	@grep -hE '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*##/\t/' | expand -t 10

run: setup ## overview of this machine, and the HTML report beside it
	@source=live; head -c 8 /proc/kpageflags >/dev/null 2>&1 || { source=bundled:debian-6.12; \
	  echo "the page flags of this machine need root; showing a recorded machine" >&2; }; \
	$(BIN)/memdesc --source $$source || test $$? -eq 1; \
	$(BIN)/memdesc report --source $$source --force --output memdesc-report.html

setup: $(STAMP) ## make .venv with the command and every extra

$(STAMP): pyproject.toml
	@echo "setting up $(VENV) (once)" >&2
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --upgrade 'pip>=25.1'
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[all]'
	@touch $@

$(VENV)/.ready-dev: $(STAMP)
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --group dev
	@touch $@

test: $(VENV)/.ready-dev ## everything that must hold: lint, types, tests
	@$(BIN)/python tools/test_setup.py
	@$(MAKE) --no-print-directory lint
	@$(MAKE) --no-print-directory types
	@$(BIN)/python -m pytest -q -n $(JOBS) --dist loadfile

lint: $(VENV)/.ready-dev ## style and the import rule
	@$(BIN)/ruff check --quiet .
	@$(BIN)/ruff format --check --quiet .
	@$(BIN)/lint-imports --no-logo 2>&1 | tail -n 4

types: $(VENV)/.ready-dev ## two strict type checkers
	@$(BIN)/mypy
	@$(BIN)/pyrefly check --output-format min-text

docs: $(VENV)/.ready-dev ## regenerate the reference pages from the data
	@$(BIN)/python -m memdesc.kernels.type_table > docs/reference/types.md
	@$(BIN)/python -m memdesc.scenarios.grammar docs/scenarios.md
	@$(BIN)/python -m memdesc.scenarios.index scenarios/README.md

bench: $(VENV)/.ready-dev ## measure, side by side with page-types
	@$(BIN)/python -m benchmarks

fuzz: $(VENV)/.ready-dev ## coverage-guided fuzzing of the parsers, one minute per target
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check atheris
	@for target in texts machine words raw; do \
	  $(BIN)/python fuzz/fuzz_parsers.py $$target -max_total_time=60 -print_final_stats=0 -artifact_prefix=.cache/ || exit 1; \
	done

clean: ## remove what the targets made
	rm -rf $(VENV) memdesc-report.html build dist .cache
