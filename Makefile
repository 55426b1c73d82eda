# make demo   integrate a simulated data set: table, figure, .h5ad in demo/
# make test   the tests
# make lint   style and types
# Each makes .venv and installs what it needs; a second call is quick.

PYTHON ?= python3
BIN := .venv/bin
INSTALL := $(BIN)/python -m pip install --quiet --disable-pip-version-check
# The pinned torch is installed first, so that no other requirement draws in a larger build of it.
TORCH := $(shell grep '^torch==' constraints.txt)

.PHONY: demo test lint tutorials clean

demo: .venv/demo
	$(BIN)/python -m sccvae demo demo

# Two processes of one thread each: threads that wait for each other help small tests little.
test: .venv/test
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest --numprocesses 2 --dist loadfile

lint: .venv/lint
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy

tutorials: .venv/tutorials
	$(BIN)/python -m pytest --nbmake --nbmake-timeout=600 --durations=0 tutorials

.venv/base:
	$(PYTHON) -m venv .venv
	$(INSTALL) --upgrade 'pip>=25.1'
	$(INSTALL) '$(TORCH)'
	touch $@

.venv/demo: .venv/base pyproject.toml constraints.txt
	$(INSTALL) --constraint constraints.txt --editable .
	touch $@

.venv/test .venv/lint .venv/tutorials: .venv/%: .venv/demo
	$(INSTALL) --constraint constraints.txt --group $*
	touch $@

clean:
	rm -rf .venv demo .pytest_cache .ruff_cache .mypy_cache
