# make demo         integrate a simulated data set: table, figure, .h5ad in demo/
# make test         the tests
# make lint         style and types; make types: the types alone
# make pre-commit   the hooks of .pre-commit-config.yaml on all files
# make coverage     the tests with the lines they run; fails below 95 %
# make build        wheel and sdist in dist/, checked
# make smoke        build, install each into an empty environment, and train, save and load there
# make tag          whether the tag $TAG is that of a release: version and CHANGELOG.md
# make tables       the tables in README.md and docs/, from the rows in benchmarks/results/
# make docs         the documentation site, in docs/_build/html
# Each makes .venv and installs what it needs; a second call is quick.
#
# PYTHON=python3.13   with that Python, in .venv-3.13
# NEWEST=1            without constraints.txt: the newest releases of the day on which .venv-newest or .venv-3.13-newest
#                     is made (on Linux torch then comes with CUDA's libraries, 5 GB)
# PRE=1               the same with pre-releases, in .venv-pre
# OLDEST=1            with constraints-oldest.txt, the oldest releases that pyproject.toml allows, in .venv-oldest
# TORCH=torch==2.13.0 with that torch
# TESTS="..."         more for pytest, such as TESTS="-m 'not slow'"

PYTHON ?= python3
NEWEST ?=
PRE ?=
OLDEST ?=
TESTS ?=

FOUND := $(shell .ci/interpreter $(PYTHON))
OTHER := $(if $(filter-out python3,$(PYTHON)),-$(if $(FOUND),$(shell $(FOUND) -c 'import sys; print("%d.%d" % sys.version_info[:2])')))
VENV := .venv$(OTHER)$(if $(NEWEST),-newest)$(if $(PRE),-pre)$(if $(OLDEST),-oldest)
BIN := $(VENV)/bin
QUIET := --quiet --disable-pip-version-check
INSTALL := $(BIN)/python -m pip install $(QUIET)
CONSTRAINTS := constraints$(if $(OLDEST),-oldest).txt
# The pinned torch is installed first, so that no other requirement draws in a larger build of it.
TORCH := $(if $(NEWEST)$(PRE),torch,$(shell grep '^torch==' $(CONSTRAINTS)))
PINS := $(if $(NEWEST)$(PRE),$(if $(PRE),--pre),--constraint $(VENV)/constraints.txt)

.PHONY: demo test lint types pre-commit coverage build smoke tag docs tables tutorials environment clean

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

types: $(VENV)/lint
	$(BIN)/mypy

pre-commit: $(VENV)/pre-commit
	$(BIN)/pre-commit run --all-files --show-diff-on-failure

COVERED = $(BIN)/python -m pytest --numprocesses 2 --cov --cov-report= --cov-fail-under=0

# All tests, with an empty cache of numba, so that its compiler runs; then those of numba's loops with the loops as Python.
coverage: $(VENV)/coverage
	rm -rf .coverage .coverage.* $(VENV)/numba
	OMP_NUM_THREADS=1 NUMBA_CACHE_DIR=$(CURDIR)/$(VENV)/numba $(COVERED) --dist loadfile $(TESTS)
	OMP_NUM_THREADS=1 NUMBA_DISABLE_JIT=1 $(COVERED) --cov-append -m loops -W ignore::RuntimeWarning
	$(BIN)/python -m coverage report

build: $(VENV)/build
	rm -rf dist
	$(BIN)/python -m build --outdir dist
	$(BIN)/python -m twine check --strict dist/*

# From a folder without the source, which Python would import in place of what is installed.
smoke: build $(addprefix $(VENV)-smoke-,whl tar.gz)
	rm -rf $(VENV)-smoke-*

$(VENV)-smoke-%: build
	$(FOUND) -m venv --clear $@
	$@/bin/python -m pip install $(QUIET) --upgrade 'pip>=25.1'
	$@/bin/python -m pip install $(QUIET) '$(TORCH)'
	$@/bin/python -m pip install $(QUIET) $(PINS) dist/sccvae-*.$*
	cp tests/smoke.py $@/smoke.py
	cd $@ && bin/python -I smoke.py

tag:
	test "$$TAG" = "v$$(sed -n 's/^__version__ = "\([^"]*\)".*/\1/p' sccvae/__init__.py)"
	grep --fixed-strings "## [$${TAG#v}]" CHANGELOG.md

tutorials: $(VENV)/tutorials
	$(BIN)/python -m pytest --nbmake --nbmake-timeout=600 --durations=0 tutorials

# What `test` needs, and no more.
environment: $(VENV)/test

$(VENV)/base:
	$(or $(FOUND),$(error There is no $(PYTHON) that runs)) -m venv $(VENV)
	$(INSTALL) --upgrade 'pip>=25.1'
	$(INSTALL) '$(TORCH)'
	touch $@

$(VENV)/constraints.txt: $(VENV)/base $(CONSTRAINTS)
	grep -v '^torch==' $(CONSTRAINTS) > $@
	echo '$(TORCH)' >> $@

$(VENV)/demo: $(VENV)/constraints.txt pyproject.toml
	$(INSTALL) $(PINS) --editable .
	touch $@

$(VENV)/test $(VENV)/lint $(VENV)/docs $(VENV)/tutorials $(VENV)/coverage $(VENV)/pre-commit: $(VENV)/%: $(VENV)/demo
	$(INSTALL) $(PINS) --group $*
	touch $@

# Needs nothing of the package.
$(VENV)/build: $(VENV)/constraints.txt pyproject.toml
	$(INSTALL) $(PINS) --group build
	touch $@

clean:
	rm -rf .venv .venv-* demo dist docs/_build docs/api/generated docs/benchmarks docs/project docs/tutorials
	rm -rf .coverage .coverage.* .pytest_cache .ruff_cache .mypy_cache
