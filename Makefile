# Targets to try, test and check emqdeploy. `make` alone lists them.
#
#   VENV=path     environment to use; created if there is none, else only what misses is installed
#   PYTHON=python what creates it (3.11 or newer)
#   TORCH=...     what is handed to pip for torch: torch==2.13.0, the path of a wheel, ...
#                 An environment that already has torch keeps it.

VENV ?= .venv
PYTHON ?= python3
TORCH ?= torch

RUN := $(VENV)/bin/python
PIP := $(RUN) -m pip --disable-pip-version-check --quiet
comma := ,
KEEP_TORCH := $(VENV)/.emqdeploy-keep-torch

# torch goes first, once; the constraint keeps the next line from replacing it by another release.
define install
@echo "installing $(1) into $(VENV) (torch takes a while the first time)"
@$(RUN) -c "import sys, importlib.util as u; sys.exit(u.find_spec('torch') is None)" \
	|| $(PIP) install $(TORCH)
@$(RUN) -c "from importlib.metadata import version; print('torch==' + version('torch'))" \
	> $(KEEP_TORCH)
@$(PIP) install --constraint $(KEEP_TORCH) --editable ".[$(1)]"
@touch $@
endef

.DEFAULT_GOAL := help
.PHONY: help demo test test-all soak lint format clean

help: ## list the targets
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/  \1\t\2/p' Makefile | expand -t 14

demo: $(VENV)/.emqdeploy-all ## install and run the demo: train, export, switch precision, report
	$(RUN) -m emqdeploy demo

test: $(VENV)/.emqdeploy-dev ## run the quick tests
	$(RUN) -m pytest -m "not slow and not gpu"

test-all: $(VENV)/.emqdeploy-dev ## run all tests but those that need a GPU
	$(RUN) -m pytest -m "not gpu"

soak: $(VENV)/.emqdeploy-dev ## read damaged files for MINUTES (10), on from where the last sitting ended
	$(RUN) -m benchmarks.soak --minutes $(or $(MINUTES),10)

lint: $(VENV)/.emqdeploy-dev ## check style, format and types
	$(RUN) -m ruff check .
	$(RUN) -m ruff format --check .
	$(RUN) -m mypy

format: $(VENV)/.emqdeploy-dev ## bring the code into shape
	$(RUN) -m ruff check --fix .
	$(RUN) -m ruff format .

clean: ## remove caches and builds (neither the environment nor runs/)
	rm -rf build dist .mypy_cache .pytest_cache .ruff_cache .hypothesis *.egg-info
	find emqdeploy tests -name __pycache__ -type d -prune -exec rm -rf {} +

# Stamps: a second call installs nothing, a changed pyproject.toml installs again.
$(VENV)/.emqdeploy-all: pyproject.toml | $(RUN)
	$(call install,all)

$(VENV)/.emqdeploy-dev: pyproject.toml | $(RUN)
	$(call install,all$(comma)dev)
	@touch $(VENV)/.emqdeploy-all

$(RUN):
	$(PYTHON) -m venv $(VENV)
