# make help lists the targets.
PYTHON ?= python3
BIN := .venv/bin
DAGSTER_HOME ?= $(CURDIR)/.dagster
export DAGSTER_HOME
export PYTHONPATH := $(CURDIR)
CUDA ?=
PORT ?= 3000
# Processes of tests: one of them often waits for a server or a launched program.
JOBS ?= 3
# A folder's tests stay in one process, so its servers and trainings start once.
PYTEST := -m pytest -n $(JOBS) --dist loadfile --no-loadscope-reorder

.DEFAULT_GOAL := help
.PHONY: help install coqui doctor demo ui codec-demo base gpu-proof test test-fast test-coverage lint lint-fix docs version clean

help: ## list the targets
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 18

install: ## create .venv and install the locked packages; CUDA=13.0 for GPU machines
	@$(PYTHON) scripts/install.py --cuda "$(CUDA)"

coqui: ## create .venv-coqui, the environment of VITS, XTTS and Tortoise; CUDA=13.0 for GPU machines
	@$(PYTHON) scripts/install.py --coqui --cuda "$(CUDA)"

doctor: ## check this machine: what is missing, and how to install it
	@if [ -x $(BIN)/python ]; then $(BIN)/tts-assets doctor; else $(PYTHON) -m tts_assets.doctor; fi

demo: install ## train a small voice end to end and print the paths of its reports (18 to 27 minutes)
	@$(BIN)/python -m jobs.demo

ui: install ## the Dagster UI on http://127.0.0.1:3000 (PORT=…), and the files of the storage at 3001
	@$(BIN)/tts-assets ui --port $(PORT)

codec-demo: install ## train the decoder of the demo's codec on (two hours; needs flite)
	@TTS_PROFILE=codec_demo $(BIN)/python -m jobs.demo codec

base: install ## train a base model that reads English on synthetic speech (hours of two cores)
	@TTS_PROFILE=base $(BIN)/python -m jobs.demo base

gpu-proof: install ## check and time every stage on one GPU with random weights (9 minutes)
	@$(BIN)/python benchmarks/gpu_proof.py --out build

test: install ## all tests, as .ci/run does, in three processes (JOBS=…)
	@$(BIN)/python $(PYTEST)

test-fast: install ## the tests of less than about 4 seconds each
	@$(BIN)/python $(PYTEST) -m "not slow"

test-coverage: install ## all tests, with a coverage report
	@$(BIN)/python -m pytest --cov=tts_assets --cov=resources --cov=sensors --cov=jobs --cov-report=term --cov-report=html

lint: install ## ruff, mypy, and that the definitions load
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy
	@$(BIN)/dg check defs

lint-fix: install ## fix what ruff can fix
	@$(BIN)/ruff check --fix .
	@$(BIN)/ruff format .

docs: install ## build the documentation site into build/site; warnings and broken links fail
	@$(BIN)/python -m pip install --quiet $$($(BIN)/python scripts/extra_packages.py docs)
	@NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

# `make version patch`: words after `version` are arguments, not targets
version: ## print the version, or raise it: make version patch|minor|major
	@$(PYTHON) scripts/version.py $(filter patch minor major,$(MAKECMDGOALS))

ifeq (version,$(firstword $(MAKECMDGOALS)))
.PHONY: patch minor major
patch minor major:
	@:
endif

clean: ## remove the environment, artifacts and Dagster's history
	rm -rf .venv .venv-coqui storage .dagster/history .dagster/storage .dagster/schedules .dagster/logs
