PYTHON ?= python3
BIN := .venv/bin
STAMP := .venv/.installed

.PHONY: quickstart test test-all test-browser test-wheel test-lowest test-cluster coverage mutants bench docs docs-serve lint types check setup

quickstart: setup
	$(BIN)/robustill quickstart --run runs/quickstart

test: setup
	$(BIN)/pytest -q -n 2

test-all: setup
	$(BIN)/pytest -q -n 2 -m "not browser"

test-browser: setup
	$(BIN)/pytest -q -m browser

# The wheel, and the commands in a fresh environment with nothing else.
test-wheel: setup
	$(BIN)/pytest -q -m slow tests/test_wheel.py

# With the lowest versions of the dependencies, in an environment of its own; tools of the tests alone need newer ones.
LOWEST := .venv-lowest
ROOMS ?= tests
test-lowest: $(LOWEST)/.installed
	$(LOWEST)/bin/pytest -q -n 2 -W default::DeprecationWarning $(ROOMS) \
		--ignore tests/test_architecture.py --ignore tests/docs/test_site.py

$(LOWEST)/.installed: pyproject.toml constraints.txt constraints-lowest.txt
	$(PYTHON) -m venv $(LOWEST)
	$(LOWEST)/bin/pip install --quiet --disable-pip-version-check -c constraints.txt -c constraints-lowest.txt -e '.[test]'
	touch $@

# Studies on Ray and by submitit, which `make setup` leaves out, in an environment of its own.
CLUSTER := .venv-cluster
test-cluster: $(CLUSTER)/.installed
	$(CLUSTER)/bin/pytest -q -m cluster tests/studies/test_clusters.py

$(CLUSTER)/.installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(CLUSTER)
	$(CLUSTER)/bin/pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[test,cluster]'
	touch $@

coverage: setup
	$(BIN)/coverage run -m pytest -q -n 0
	$(BIN)/coverage combine -q
	$(BIN)/coverage report

# Small changes of the code that no test notices; those that survive are listed in runs/mutants.jsonl. Some hours on one core.
MUTANTS := $(BIN)/python benchmarks/tools/mutants.py
mutants: setup
	$(MUTANTS) src/robustill/losses.py src/robustill/threat.py --tests tests/test_losses.py tests/test_threat.py tests/test_doctests.py
	$(MUTANTS) src/robustill/methods/*.py --tests tests/methods tests/test_doctests.py --budget 4
	$(MUTANTS) src/robustill/attacks/*.py src/robustill/acceleration/*.py --tests tests/attacks tests/acceleration \
		tests/test_doctests.py --sample 80 --budget 10

# Ratios to what scripts do, beside the recorded ones, on one thread; in processor time, so that other work counts little.
bench: setup
	$(BIN)/python benchmarks/speed/bench.py

# The documentation as a site, in seconds: site/index.html. A link that leads nowhere is an error.
docs: setup
	$(BIN)/python docs/make_reference.py
	$(BIN)/zensical build --strict --clean

docs-serve: setup
	$(BIN)/zensical serve

lint: setup
	$(BIN)/ruff check --no-cache . && $(BIN)/ruff format --check .
	$(BIN)/lint-imports --no-cache

types: setup
	$(BIN)/mypy

check: lint types test

setup: $(STAMP)

$(STAMP): pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	touch $(STAMP)
