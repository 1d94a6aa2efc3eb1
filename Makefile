PYTHON ?= python3
BIN := .venv/bin
STAMP := .venv/.installed

.PHONY: quickstart test test-all test-browser lint types check setup

quickstart: setup
	$(BIN)/robustill quickstart --run runs/quickstart

test: setup
	$(BIN)/pytest -q -n 2

test-all: setup
	$(BIN)/pytest -q -n 2 -m "not browser"

test-browser: setup
	$(BIN)/pytest -q -m browser

lint: setup
	$(BIN)/ruff check . && $(BIN)/ruff format --check .

types: setup
	$(BIN)/mypy

check: lint types test

setup: $(STAMP)

$(STAMP): pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	touch $(STAMP)
