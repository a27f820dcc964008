# make demo: a real ablation study in minutes. make test: the whole suite. Both make .venv first if it is missing.
PYTHON ?= python3
BIN := .venv/bin

.PHONY: demo test test-all bench lint clean

demo: .venv/.demo
	$(BIN)/se-lab sweep sweeps/demo.yaml --workers 2
	$(BIN)/se-lab table sweeps/demo.yaml
	$(BIN)/se-lab plot sweeps/demo.yaml --kind tradeoff --cost params -o docs
	$(BIN)/se-lab excitations --sweep sweeps/demo.yaml --where seed=0 model.se.reduction=4 -o runs/excitations
	cp runs/*/excitations/figure_6.png docs/

test: .venv/.dev
	$(BIN)/python -m pytest -m "not slow" -n auto --maxprocesses 8 --dist worksteal

test-all: test
	$(BIN)/python -m pytest -m slow -n auto --maxprocesses 8 --dist worksteal

bench: .venv/.dev
	$(BIN)/python benchmarks/run.py

lint: .venv/.dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

.venv/bin/python:
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10) and "SE-Lab needs Python 3.10 or newer; make PYTHON=... names one")'
	$(PYTHON) -m venv .venv

.venv/.demo: .venv/bin/python pyproject.toml
	$(BIN)/python -m pip install --quiet -e .
	touch $@

.venv/.dev: .venv/.demo
	$(BIN)/python -m pip install --quiet -e '.[all,dev]'
	touch $@

clean:
	rm -rf .venv build *.egg-info
