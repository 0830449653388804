# Needs Python 3.10 or newer and make; `make test` in a fresh clone does the rest.

PYTHON ?= python3
ARGS   ?=

VENV  := .venv
BIN   := $(VENV)/bin
STAMP := $(VENV)/installed

# True when .venv has a Python that is new enough, has pip, and was made for this very folder.
works = $(BIN)/python -c 'import sys, pip; sys.exit(sys.version_info < (3, 10))' 2>/dev/null \
        && grep -qF "$(CURDIR)/$(VENV)/bin/" $(BIN)/pip 2>/dev/null

# A stamp in an environment that does not work (moved, copied, its Python removed) counts for nothing.
ifneq ($(shell $(works) && echo yes),yes)
.PHONY: $(STAMP)
endif

.DEFAULT_GOAL := help
.PHONY: help demo test test-all check clean

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-8s %s\n", $$1, $$2}' $(firstword $(MAKEFILE_LIST))

demo: $(STAMP) ## pocket model -> unlearn -> evaluate -> runs/demo/report.html; options: ARGS="--seed 11"
	$(BIN)/unsee demo --out runs/demo --overwrite $(ARGS)

# One process per processor; a test in a debugger wants ARGS="-n0 --pdb tests/test_x.py".
PYTEST := $(BIN)/pytest -n logical --maxprocesses 4 --dist worksteal --durations 10 --durations-min 2

test: $(STAMP) ## run the tests; some of them: ARGS="-m 'not slow and not nightly'"
	$(PYTEST) -m 'not nightly' $(ARGS)

test-all: $(STAMP) ## run all tests, also the nightly ones
	$(PYTEST) $(ARGS)

check: $(STAMP) ## lint, formatting, types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

clean: ## remove the environment, the caches, builds and runs/demo (other runs stay)
	rm -rf $(VENV) build dist runs/demo .mypy_cache .ruff_cache .pytest_cache
	find . -type d -name __pycache__ -prune -exec rm -rf {} +

# A working .venv is brought up to date, so one with a build of torch of your own choice is kept;
# any other is made anew (rm, because `venv --clear` would empty what a symbolic link points to).
# The stamp comes last: no stamp without a finished install.
$(STAMP): pyproject.toml constraints.txt
	@$(works) || { \
	  $(PYTHON) -c 'import sys; sys.version_info < (3, 10) and sys.exit("unsee needs Python 3.10 or newer, this is %d.%d; try: make PYTHON=python3.12" % sys.version_info[:2])' \
	  && rm -rf $(VENV) && echo "making $(VENV) with $(PYTHON)" && $(PYTHON) -m venv $(VENV); }
	@echo "installing the versions of constraints.txt into $(VENV); the first time this takes minutes, most of it torch"
	@$(BIN)/pip install --quiet --disable-pip-version-check 'pip>=22.3'
	@$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	@touch $@
