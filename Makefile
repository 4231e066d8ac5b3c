# make demo        set up, then run the whole road on rendered heads, offline
# make test        set up, then lint, types, all laws and one small run that is killed and goes on
# make test-all    the second tier: whole runs, recipes, servers, an installed wheel
# make sbom        what is installed, as CycloneDX JSON (build/sbom.json)
# make audit       asks the registry's list of advisories about it: needs the network
# make mutants     how many changes of the code the tests notice (on demand, a quarter of an hour)
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
TOOLS := build/tools
CONFIG ?= demo
ARGS ?=
# Two processes; one that dies ends as a failed test, where xdist would kill the next by the same test for ever.
BESIDE = $(BIN)/python -m pytest -n 2 --max-worker-restart=0 --no-loadscope-reorder

export RAY_AUTH_MODE ?= disabled
# Compiled modules are kept. Else each process would compile torch and timm anew: 10 s of processor time, not 4.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: sbom audit demo test setup lint types seeds benchmark doctor test-all slow mutants clean

demo: setup
	$(BIN)/hpe run -c $(CONFIG) $(ARGS)

test: setup lint types
	$(BESIDE) -m "not longer and not slow" $(ARGS)

test-all: setup
	$(BESIDE) -m "longer and not slow" $(ARGS)

setup: $(VENV)/.ready

$(VENV)/.ready: pyproject.toml setup.py constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(0 if sys.version_info >= (3, 11) else "Python 3.11 or newer is needed, this is " + sys.version.split()[0] + "; try make PYTHON=python3.11")'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install -q --no-compile --disable-pip-version-check -c constraints.txt -e '.[workflows,dev]'
	@touch $@

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: setup
	$(BIN)/mypy

seeds: setup
	$(BIN)/hpe compare-seeds -c $(CONFIG) $(ARGS)

benchmark: setup
	$(BIN)/hpe benchmark $(ARGS)

doctor: setup
	$(BIN)/hpe doctor -c $(CONFIG) $(ARGS)

mutants: setup
	$(BIN)/python tests/mutants.py $(ARGS)

$(TOOLS):
	$(PYTHON) -m venv $(TOOLS)
	$(TOOLS)/bin/python -m pip install -q --disable-pip-version-check 'pip-audit>=2.10,<3' 'cyclonedx-bom>=7.5,<8'

sbom: setup $(TOOLS)
	$(TOOLS)/bin/cyclonedx-py environment $(VENV) --of JSON -o build/sbom.json
	@echo build/sbom.json

audit: setup $(TOOLS)
	$(TOOLS)/bin/pip-audit --no-deps --disable-pip -r constraints.txt

slow: setup
	$(BIN)/python -m pytest -m slow $(ARGS)

clean:
	rm -rf $(VENV) build *.egg-info mutants .mypy_cache .ruff_cache .pytest_cache
