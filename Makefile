# `make demo` and `make test` set everything up by themselves: a virtual environment in .venv, then the install. Later calls reuse it.
PYTHON ?= python3
VENV   ?= .venv
BIN    := $(VENV)/bin
STAMP  := $(VENV)/.installed
PYTEST := $(BIN)/python -m pytest

.PHONY: help demo demo-quick test test-all lint format site clean

help:             ## show the targets
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:[^#]*##/\t/' | expand -t 14

# The stamp follows pyproject.toml: an edit of the dependencies installs again, nothing else does.
$(STAMP): pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10) and "groupcam-aug needs Python 3.10 or newer; set PYTHON=/path/to/python3.x")'
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@echo "installing into $(VENV): torch and torchvision are several GB the first time"
	@$(BIN)/python -m pip install --quiet --editable '.[dev]'
	@touch $@

demo: $(STAMP)        ## train with and without Group-CAM, print the tables, write panels.png
	$(BIN)/groupcam-aug demo

demo-quick: $(STAMP)  ## the same in under a minute
	$(BIN)/groupcam-aug demo --quick

test: $(STAMP)        ## the tests that run on every change (offline, CPU, minutes), on all cores
	$(PYTEST) -n auto $(ARGS)

test-all: test        ## the above, then the long ones one by one: matrices with their table, fuzzing, kills, soak
	$(PYTEST) -m slow $(ARGS)

lint: $(STAMP)        ## ruff and mypy
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: $(STAMP)      ## apply ruff's fixes and formatting
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

site: $(STAMP)        ## the documentation as a site, in site/
	$(BIN)/mkdocs build --strict

clean:            ## remove build products; the environment stays (delete .venv yourself)
	rm -rf build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache groupcam_demo lightning_logs site
