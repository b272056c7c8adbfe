# Two commands on a fresh machine: `make demo` and `make test`. VENV= may point outside the checkout.
SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DELETE_ON_ERROR:

VENV ?= .venv
PY := $(VENV)/bin/python
RUN := PYTHONPATH="$(CURDIR)" $(PY)

# The environment is rebuilt only when one of these changes. Stamps are written last, so a broken install repeats.
KEY := $(shell cat requirements.txt pyproject.toml | sha256sum | cut -c1-16)
STAMP := $(VENV)/.installed-$(KEY)
STAMP_DEV := $(VENV)/.installed-dev-$(KEY)
PLACE := $(VENV)/.checkout

.PHONY: demo test lint types nano dist clean install install-dev

demo: install
	@mkdir -p outputs
	$(VENV)/bin/hummingbird generate "a red circle moving right on a black background" --seed 0 --out outputs/demo.mp4 --contact-sheet outputs/demo.png

# Two processes of one thread each use two cores better than one process of two. A file's tests share its fixtures;
# files keep their order, or those of few long tests (the browser's) would come last, with one core idle.
test: lint
	OMP_NUM_THREADS=1 $(RUN) -m pytest -m "not slow and not gpu" -n 2 --dist loadfile --no-loadscope-reorder

lint: install-dev
	$(RUN) -m ruff check .
	$(RUN) -m ruff format --check .
	$(RUN) -m mypy --cache-dir "$(VENV)/.mypy_cache"

# Trains the embedded model again from nothing, offline (hours on two cores; uses a GPU where there is one).
nano: install
	$(RUN) train/nano.py all configs/train

# A wheel and a source distribution in dist/, checked as the package index checks them.
dist: install-dev
	rm -rf dist
	$(PY) -m build --no-isolation
	$(PY) -m twine check --strict dist/*

clean:
	rm -rf .venv outputs build dist *.egg-info .pytest_cache .ruff_cache .mypy_cache
	find hummingbird data_pipeline train tests -name __pycache__ -type d -prune -exec rm -rf {} +

# --- environment -----------------------------------------------------------------------------------------------

define create
	@python="$${PYTHON:-}"; \
	supported='import sys, venv, ensurepip; sys.exit(not (3, 11) <= sys.version_info < (3, 14))'; \
	if [ ! -x "$(PY)" ]; then \
	  if [ -z "$$python" ]; then \
	    for candidate in python3 python3.13 python3.12 python3.11; do \
	      if "$$candidate" -c "$$supported" >/dev/null 2>&1; then python="$$candidate"; break; fi; \
	    done; \
	  fi; \
	  if [ -z "$$python" ] || ! "$$python" -c "$$supported" >/dev/null 2>&1; then \
	    echo "error: no usable Python (got $$(python3 --version 2>&1 || true)), expected 3.11 to 3.13 with venv; install one (Debian: apt install python3 python3-venv) or name it: make PYTHON=/path/to/python3.12" >&2; exit 1; \
	  fi; \
	  "$$python" -m venv "$(VENV)"; \
	fi
	$(PY) -m pip install --quiet --disable-pip-version-check --upgrade pip "setuptools>=77"
endef

$(STAMP):
	$(create)
	$(PY) -m pip install --disable-pip-version-check --progress-bar off --no-build-isolation -e .
	@rm -f "$(VENV)"/.installed-*; printf '%s' "$(CURDIR)" > "$(PLACE)"; touch "$@"

$(STAMP_DEV):
	$(create)
	$(PY) -m pip install --disable-pip-version-check --progress-bar off --no-build-isolation -e ".[dev]"
	@rm -f "$(VENV)"/.installed-*; printf '%s' "$(CURDIR)" > "$(PLACE)"; touch "$(STAMP)" "$@"

# An environment kept outside the checkout may have served another one: point it here (seconds, no downloads).
define point_here
	@if [ "$$(cat "$(PLACE)" 2>/dev/null)" != "$(CURDIR)" ]; then \
	  $(PY) -m pip install --quiet --disable-pip-version-check --no-build-isolation --no-deps -e .; \
	  printf '%s' "$(CURDIR)" > "$(PLACE)"; \
	fi
endef

install: $(STAMP)
	$(point_here)

install-dev: $(STAMP_DEV)
	$(point_here)
