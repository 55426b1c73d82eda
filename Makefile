# make demo   integrate a simulated data set: table, figure, .h5ad in demo/
# make test   the tests
# make lint   style and types
# make tables the tables in README.md and docs/, from the rows in benchmarks/results/
# make docs   the documentation site, in docs/_build/html
# Each makes .venv and installs what it needs; a second call is quick.
#
# PYTHON=python3.13   with that Python, in .venv-3.13
# NEWEST=1            without constraints.txt: the newest releases of the day on which .venv-newest or .venv-3.13-newest
#                     is made (on Linux torch then comes with CUDA's libraries, 5 GB)
# TESTS="..."         more for pytest, such as TESTS="-m 'not slow'"

PYTHON ?= python3
NEWEST ?=
TESTS ?=

FOUND := $(shell .ci/interpreter $(PYTHON))
OTHER := $(if $(filter-out python3,$(PYTHON)),-$(if $(FOUND),$(shell $(FOUND) -c 'import sys; print("%d.%d" % sys.version_info[:2])')))
VENV := .venv$(OTHER)$(if $(NEWEST),-newest)
BIN := $(VENV)/bin
INSTALL := $(BIN)/python -m pip install --quiet --disable-pip-version-check
# The pinned torch is installed first, so that no other requirement draws in a larger build of it.
TORCH := $(if $(NEWEST),torch,$(shell grep '^torch==' constraints.txt))
PINS := $(if $(NEWEST),,--constraint constraints.txt)

.PHONY: demo test lint docs tables tutorials environment clean

demo: $(VENV)/demo
	$(BIN)/python -m sccvae demo demo

# Two processes of one thread each: threads that wait for each other help small tests little.
test: $(VENV)/test
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest --numprocesses 2 --dist loadfile $(TESTS)

lint: $(VENV)/lint
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy

tables: $(VENV)/demo
	$(BIN)/python benchmarks/tables.py

# A warning is an error; --keep-going shows all of them.
docs: $(VENV)/docs
	rm -rf docs/api/generated
	OMP_NUM_THREADS=1 $(BIN)/python -m sphinx --builder html --fail-on-warning --keep-going --quiet docs docs/_build/html

tutorials: $(VENV)/tutorials
	$(BIN)/python -m pytest --nbmake --nbmake-timeout=600 --durations=0 tutorials

# What `test` needs, and no more.
environment: $(VENV)/test

$(VENV)/base:
	$(or $(FOUND),$(error There is no $(PYTHON) that runs)) -m venv $(VENV)
	$(INSTALL) --upgrade 'pip>=25.1'
	$(INSTALL) '$(TORCH)'
	touch $@

$(VENV)/demo: $(VENV)/base pyproject.toml constraints.txt
	$(INSTALL) $(PINS) --editable .
	touch $@

$(VENV)/test $(VENV)/lint $(VENV)/docs $(VENV)/tutorials: $(VENV)/%: $(VENV)/demo
	$(INSTALL) $(PINS) --group $*
	touch $@

clean:
	rm -rf .venv .venv-* demo docs/_build docs/api/generated docs/benchmarks docs/project docs/tutorials .pytest_cache .ruff_cache .mypy_cache
