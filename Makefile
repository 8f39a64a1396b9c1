# A fresh machine needs python3.11 or newer, pip and make. Everything goes into .venv.
PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
# SNN_RULES_RELEASE=1 lets the core name its rules, which the same command then takes, editable, from plugins/
INSTALL := SNN_RULES_RELEASE=1 $(BIN)/python -m pip install --disable-pip-version-check --quiet
RULES   := $(sort $(wildcard plugins/*))
PARTS   := README.md $(wildcard docs/*.md docs/rules/*.md)  # cog writes parts of some
RECIPES := pyproject.toml .ci/hatch_metadata.py $(RULES:=/pyproject.toml)

.PHONY: demo test lint docs build clean

demo: $(VENV)/.demo
	$(BIN)/python examples/demo.py

test: $(VENV)/.dev
	OMP_NUM_THREADS=$${OMP_NUM_THREADS:-1} $(BIN)/python -m pytest --numprocesses 2 $(ARGS)  # the tensors are small: threads would slow it

lint: $(VENV)/.dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/cog --check -I .ci $(PARTS)  # stale: make docs brings them up to date

docs: $(VENV)/.dev
	$(BIN)/cog -r -I .ci $(PARTS)
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --quiet  # strict; into site/

build: $(VENV)/.dev
	rm -rf dist
	for folder in . $(RULES); do SNN_RULES_RELEASE=1 $(BIN)/python -m build --no-isolation --outdir dist $$folder || exit 1; done

clean:
	rm -rf $(VENV) dist site demo .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

$(BIN)/python:
	$(PYTHON) -m venv $(VENV)

# stamps: what is installed is installed again only after one of the recipes has changed
$(VENV)/.demo: $(RECIPES) | $(BIN)/python
	$(INSTALL) --editable . $(RULES:%=--editable %)
	touch $@

$(VENV)/.dev: $(RECIPES) | $(BIN)/python
	$(INSTALL) --editable '.[dev]' $(RULES:%=--editable %)
	touch $@ $(VENV)/.demo
