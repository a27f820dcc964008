# make demo: an ablation study in minutes. make test: the fast tests. make docs: the site. Each creates .venv if needed.
PYTHON ?= python3
# The Python of make test-lowest: a version that uv finds or downloads, or a path.
LOWEST_PYTHON ?= 3.10
# The tests of make test-lowest: by default all fast tests.
LOWEST_TESTS ?= tests
PYTEST := -m pytest -n auto --maxprocesses 8 --dist worksteal
BIN := .venv/bin

.PHONY: demo docs test test-all test-lowest bench lint clean

demo: .venv/.demo
	$(BIN)/se-lab sweep sweeps/demo.yaml --store runs --workers 2
	$(BIN)/se-lab table sweeps/demo.yaml --store runs
	$(BIN)/se-lab plot sweeps/demo.yaml --store runs --kind tradeoff differences --cost params -o demo
	$(BIN)/se-lab excitations --sweep sweeps/demo.yaml --store runs -o demo \
	    --where seed=0 model.se.insertion=standard model.se.reduction=4 > demo/written.txt
	grep '^runs.*figure_6.png' demo/written.txt | xargs -I{} cp {} demo/

test: .venv/.dev
	$(BIN)/python $(PYTEST) -m "not slow"

test-all: test
	$(BIN)/python $(PYTEST) -m slow

# Run the fast tests with the oldest Python and the lowest versions that pyproject.toml allows.
test-lowest: .venv/.lowest
	.venv/lowest/bin/python $(PYTEST) -m "not slow" $(LOWEST_TESTS)

# Build the site into site/. After make demo, docs/make_demo.py updates its numbers and figures.
docs: .venv/.dev
	$(BIN)/mkdocs build --strict

bench: .venv/.dev
	$(BIN)/python benchmarks/run.py

lint: .venv/.dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

.venv/bin/python:
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10) and "SE-Lab needs Python 3.10 or newer; use make PYTHON=...")'
	$(PYTHON) -m venv .venv

.venv/.demo: .venv/bin/python pyproject.toml
	$(BIN)/python -m pip install --quiet -e .
	touch $@

.venv/.dev: .venv/.demo
	$(BIN)/python -m pip install --quiet -e '.[all,dev]'
	touch $@

# uv alone is needed here, not the 7 GB of .venv/.dev
.venv/.lowest: .venv/bin/python pyproject.toml
	$(BIN)/python -m pip install --quiet 'uv>=0.8'
	$(BIN)/uv venv --quiet --clear --python $(LOWEST_PYTHON) .venv/lowest
	$(BIN)/uv pip install --quiet --python .venv/lowest --resolution lowest-direct -e '.[all,dev]'
	touch $@

clean:
	rm -rf .venv build site *.egg-info
