# Every target but help and clean sets up .venv first (Python 3.11 or 3.12; name another with PYTHON=...).
.DEFAULT_GOAL := help
BIN := .venv/bin
RUN_NAME := oprl_sokoban
FIGURE := runs/$(RUN_NAME)/default/learning_curve.png
export PYTHON

.PHONY: help setup run test slow lint study docs clean

help: ## list the targets
	@grep -E '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed -E 's/^([a-z]+):.*## (.*)/make \1\t\2/' | expand -t 14

setup: ## make .venv with the pinned packages
	@.ci/setup

run: setup ## train oprl_sokoban, print its results and draw its learning curve (a few minutes on 2 cores)
	$(BIN)/sagax run $(RUN_NAME) --figure=$(FIGURE)

# Two processes, file by file: most of a test is compiling, which keeps one core busy.
PYTEST := $(BIN)/python -m pytest -q -n 2 --dist loadfile --no-loadscope-reorder --durations=10

test: lint ## lint, types and every test but the slow ones and the studies
	$(PYTEST) -m "not slow and not study and not optional"

slow: setup ## the slow tests: whole programs whose parts have smaller tests
	$(PYTEST) -m "slow and not study and not optional"

lint: setup ## ruff (rules and format) and mypy
	$(BIN)/python -m ruff check .
	$(BIN)/python -m ruff format --check .
	$(BIN)/python -m mypy

study: setup ## the long learning studies
	$(BIN)/python -m pytest -q -m study

docs: setup ## build the documentation with the API reference into build/site
	$(BIN)/python -m pip install -qq --disable-pip-version-check --constraint constraints.txt --no-build-isolation --editable '.[docs]'
	$(BIN)/python -m mkdocs build --quiet

clean: ## delete .venv, build products and caches; runs/ and results/ stay
	rm -rf .venv build dist .pytest_cache .mypy_cache .ruff_cache .hypothesis
	rm -rf ./*.egg-info
	find . -name __pycache__ -type d -not -path './.git/*' -prune -exec rm -rf {} +
