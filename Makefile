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
.PHONY: help demo test test-all sanitize arm soak architectures docs lint format clean

help: ## list the targets
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/  \1\t\2/p' Makefile | expand -t 16

demo: $(VENV)/.emqdeploy-all $(VENV)/.emqdeploy-native ## install and run the demo: train, export, switch precision, report
	$(RUN) -m emqdeploy demo

# Tests of one file stay in one process, which builds what they share once; torch's threads would only wait for each other.
SIDE_BY_SIDE := OMP_NUM_THREADS=1 $(RUN) -m pytest -n auto --maxprocesses 8 --dist loadfile

test: $(VENV)/.emqdeploy-dev $(VENV)/.emqdeploy-native ## run the quick tests
	$(SIDE_BY_SIDE) -m "not slow and not gpu"

test-all: $(VENV)/.emqdeploy-dev $(VENV)/.emqdeploy-native ## run all tests but those that need a GPU
	$(SIDE_BY_SIDE) -m "not gpu"

soak: $(VENV)/.emqdeploy-dev ## damage, kill and switch for MINUTES (10), or COUNT of each KIND, on from the last sitting
	OMP_NUM_THREADS=1 $(RUN) -m benchmarks.soak $(addprefix --kind ,$(KIND)) \
		$(if $(COUNT),--count $(COUNT),--minutes $(or $(MINUTES),10))

architectures: $(VENV)/.emqdeploy-dev ## try every architecture of benchmarks/zoo.py and write docs/architectures.md (40 minutes)
	$(RUN) -m benchmarks.architectures

# A sanitizer ends the process where memory ends, so the test of that is not among these.
SANITIZERS = $(foreach name,libasan.so libubsan.so,$(shell c++ -print-file-name=$(name)))
SANITIZED = LD_PRELOAD="$(SANITIZERS)" ASAN_OPTIONS=detect_leaks=0 PYTHONPATH=build/sanitized OMP_NUM_THREADS=1 $(RUN)
sanitize: $(VENV)/.emqdeploy-dev ## run the native tests and COUNT damaged files under address and undefined-behaviour sanitizers
	$(PIP) install --upgrade --target build/sanitized --config-settings=cmake.define.EMQ_SANITIZE=ON ./native
	$(SANITIZED) -m pytest tests/runtimes/adapters/test_native.py tests/runtimes/test_native_file.py -k "not little_memory"
	$(SANITIZED) -m benchmarks.soak --kind opened --count $(or $(COUNT),5000) --state build/sanitized/soak.json

arm: $(VENV)/.emqdeploy-dev $(VENV)/.emqdeploy-native ## build the native kernels for 64-bit ARM, compare them with the reference in an emulator
	cmake -S native -B build/arm --toolchain $(CURDIR)/native/cmake/aarch64.cmake -DBUILD_SHARED_LIBS=OFF -DEMQ_REPLAY=ON
	cmake --build build/arm --parallel $$(nproc)
	$(RUN) -m pytest tests/runtimes/adapters/test_native_replay.py

lint: $(VENV)/.emqdeploy-dev ## check style, format and types
	$(RUN) -m ruff check .
	$(RUN) -m ruff format --check .
	$(RUN) -m mypy

docs: $(VENV)/.emqdeploy-docs ## build the pages and the API reference into build/site
	$(VENV)/bin/mkdocs build --strict

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

$(VENV)/.emqdeploy-docs: pyproject.toml $(VENV)/.emqdeploy-all
	$(call install,docs)

# The compiled part is built here; where that is not possible everything else works, and this says what is lost.
NATIVE := $(wildcard native/*.txt native/*.toml native/include/* native/src/* native/src/kernels/*)
$(VENV)/.emqdeploy-native: $(NATIVE) | $(RUN)
	@if command -v c++ >/dev/null; then echo "building native/ (a minute the first time)" && $(PIP) install ./native; \
	else echo "no C++ compiler here: runtime 'native' is left out"; fi
	@touch $@

$(RUN):
	$(PYTHON) -m venv $(VENV)
