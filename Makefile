# `make help` says what there is. Needed: make and Python 3.11 to 3.13 (the demo takes newer ones too); everything else is
# installed into .venv.

SHELL := /bin/sh
.DEFAULT_GOAL := help
.NOTPARALLEL:
.PHONY: help demo test cover lint format bench env demo-env servers clean

VENV := .venv
DEMO_VENV := .venv-demo
BIN := $(VENV)/bin
DEMO := $(DEMO_VENV)/bin/broker-fl demo
BENCH := $(BIN)/python -m benchmarks
ARGS ?=
# Test processes, each with a RabbitMQ and a Redis of its own; 0: all tests in one, as it must be where servers are given by URL.
JOBS ?= $(if $(BROKER_FL_TEST_AMQP_URL)$(BROKER_FL_TEST_REDIS_URL),0,2)

TORCH := $(shell sed -n 's/^torch==//p' constraints.txt)
PIP_INSTALL := -m pip install -qq --disable-pip-version-check

# The first of these that is new enough, not too new for what is installed, and able to make a virtual environment.
PYTHONS := $(if $(PYTHON),$(PYTHON),python3 python3.14 python3.13 python3.12 python3.11)
find_python = \
	for python in $(PYTHONS); do \
		"$$python" -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] < (3, $(1)))' 2>/dev/null || continue; \
		found="$$python"; break; \
	done; \
	if [ -z "$$found" ]; then \
		echo "Python $(2) is needed; none among: $(PYTHONS)." >&2; \
		echo "Install one (Debian, Ubuntu: sudo apt-get install python3 python3-venv), or: make PYTHON=/path/to/python" >&2; \
		exit 1; \
	fi; \
	if ! "$$found" -c 'import ensurepip, venv' 2>/dev/null; then \
		echo "$$found cannot make a virtual environment: its venv or ensurepip is missing." >&2; \
		echo "Debian, Ubuntu: sudo apt-get install python3-venv; or: make PYTHON=/path/to/another/python" >&2; \
		exit 1; \
	fi

help:  ## Say what there is
	@sed -n 's/^\([a-z-]*\):.*##  *\(.*\)/\1|\2/p' $(MAKEFILE_LIST) | while IFS='|' read -r name what; do \
		printf '  make %-10s %s\n' "$$name" "$$what"; done

demo: demo-env  ## Train on handwritten digits with 10 learners, in one process (about a minute)
	@$(DEMO) $(ARGS)

test: env servers  ## Every test, on a real RabbitMQ and Redis, then lint; ARGS=... goes to pytest
	@$(BIN)/python -m pytest -n $(JOBS) --dist loadscope $(ARGS)
	@$(MAKE) --no-print-directory lint

cover: env servers  ## Every test, and which lines they reach; takes much longer
	@$(BIN)/python -m pytest -n $(JOBS) --dist loadscope --cov --cov-report=term $(ARGS)

lint: env  ## Check style, types and the direction of imports
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy
	@$(BIN)/lint-imports --no-logo

format: env  ## Put the code into its format
	@$(BIN)/ruff check --fix .
	@$(BIN)/ruff format .

bench: env servers  ## Measure against other systems (hours), write docs/benchmarks.md; ARGS=... goes to the benchmarks
	@$(BENCH) $(ARGS)

env: $(VENV)/.made  ## Make .venv with every extra, in the versions of constraints.txt

demo-env: $(DEMO_VENV)/.made  ## Make .venv-demo with the core, the report and the examples

servers:  ## Install RabbitMQ and Redis if they are not installed, and it may
	@tests/servers/provide.sh

# The CPU build of torch is a tenth of the one with CUDA. Linux gets it from wherever pip is set up to look, or from
# PyTorch's own index; if neither has it, the torch of the package index will do.
$(VENV)/.made: pyproject.toml constraints.txt
	@$(call find_python,14,3.11 to 3.13 (TensorFlow takes no newer one)); echo "Making $(VENV) with $$found: every extra, so some minutes"; "$$found" -m venv $(VENV)
	@if [ "$$(uname -s)" = Linux ] && ! $(BIN)/python -c 'import torch; assert torch.__version__.startswith("$(TORCH)")' 2>/dev/null; then \
		$(BIN)/python $(PIP_INSTALL) -c constraints.txt 'torch==$(TORCH)+cpu' 2>/dev/null \
		|| $(BIN)/python $(PIP_INSTALL) --retries 0 --timeout 10 -c constraints.txt 'torch==$(TORCH)+cpu' \
			--extra-index-url https://download.pytorch.org/whl/cpu 2>/dev/null \
		|| echo "No CPU build of torch $(TORCH) found: taking the large one."; \
	fi
	@$(BIN)/python $(PIP_INSTALL) -c constraints.txt -e '.[torch,tensorflow,sklearn,jax,xgboost,he,dev]'
	@touch $@

$(DEMO_VENV)/.made: pyproject.toml constraints.txt
	@$(call find_python,1000,3.11 or newer); echo "Making $(DEMO_VENV) with $$found"; "$$found" -m venv $(DEMO_VENV)
	@$(DEMO_VENV)/bin/python $(PIP_INSTALL) -c constraints.txt -e '.[report,examples]'
	@touch $@

clean:  ## Remove the environments, caches and builds (runs/ stays)
	@rm -rf $(VENV) $(DEMO_VENV) build dist *.egg-info .coverage .coverage.* htmlcov
	@rm -rf .hypothesis .import_linter_cache .mypy_cache .pytest_cache .ruff_cache
	@find . -name __pycache__ -type d -prune -exec rm -rf {} +
