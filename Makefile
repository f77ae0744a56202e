# Two commands are all a newcomer needs: `make demo` and `make test`.
PYTHON ?= python3
BIN := .venv/bin
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt
export HF_HUB_OFFLINE ?= 1

.PHONY: help demo test slow check cards clean

help:  ## List the commands
	@grep -E '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 10

demo: .venv/demo  ## Install into .venv and run the whole job on the bundled data
	@echo "Running the main job: lmmixup run recipes/quickstart.yaml"
	@$(BIN)/lmmixup run recipes/quickstart.yaml

test: .venv/dev  ## Install what tests need into .venv, then check the code and run the tests
	@echo "Checking the code (ruff, mypy), then running the tests without network"
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy
	@$(BIN)/python -m pytest -n auto --maxprocesses 4 --dist loadfile

slow: .venv/eval  ## Run the tests that take minutes
	@$(BIN)/python -m pytest -m slow

check: .venv/dev  ## Lint, format check and types only
	@$(BIN)/ruff check . && $(BIN)/ruff format --check . && $(BIN)/mypy

cards: .venv/dev  ## Render the committed model cards again; RUN=runs/quickstart takes the facts of a run
	@$(BIN)/python -m model_cards.render $(RUN)

clean:  ## Remove the virtual environment and everything that runs left
	rm -rf .venv build dist runs models .pytest_cache .mypy_cache .ruff_cache .hypothesis

.venv/bin/python:
	@echo "Creating .venv"
	@$(PYTHON) -m venv .venv

.venv/demo: pyproject.toml constraints.txt | .venv/bin/python
	@echo "Installing hf_lmmixup with the extras offline, train and report (a few minutes the first time)"
	@$(PIP) -e ".[offline,train,report]"
	@touch $@

.venv/eval: pyproject.toml constraints.txt | .venv/dev
	@echo "Adding lm-eval and Ray, which the slow tests need"
	@$(PIP) -e ".[dev,eval,ray]"
	@touch $@

.venv/dev: pyproject.toml constraints.txt | .venv/bin/python
	@echo "Installing hf_lmmixup with what the tests need (a few minutes the first time)"
	@$(PIP) -e ".[dev]"
	@touch $@
