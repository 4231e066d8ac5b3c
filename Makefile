# make demo    set up, then run the whole road on rendered heads, offline
# make test    set up, then lint, types and tests
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
CONFIG ?= conf/demo.yaml
ARGS ?=

export RAY_AUTH_MODE ?= disabled
export RAY_USAGE_STATS_ENABLED := 0
export NO_ALBUMENTATIONS_UPDATE := 1

.PHONY: demo test setup lint types seeds benchmark doctor slow clean

demo: setup
	$(BIN)/python workflows/full_pipeline.py -c $(CONFIG) $(ARGS)

test: setup lint types
	$(BIN)/python -m pytest -m "not slow and not gpu" $(ARGS)

setup: $(VENV)/.ready

$(VENV)/.ready: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(0 if sys.version_info >= (3, 11) else "Python 3.11 or newer is needed, this is " + sys.version.split()[0] + "; try make PYTHON=python3.11")'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install -q --disable-pip-version-check -c constraints.txt -e '.[workflows,dev]'
	@touch $@

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: setup
	$(BIN)/mypy

seeds: setup
	$(BIN)/python workflows/compare_seeds.py -c $(CONFIG) $(ARGS)

benchmark: setup
	$(BIN)/python workflows/benchmark.py $(ARGS)

doctor: setup
	$(BIN)/python workflows/doctor.py -c $(CONFIG) $(ARGS)

slow: setup
	$(BIN)/python -m pytest -m slow $(ARGS)

clean:
	rm -rf $(VENV) build *.egg-info .mypy_cache .ruff_cache .pytest_cache
