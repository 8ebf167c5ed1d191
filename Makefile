# Two commands: `make figures` and `make test`.  Both create .venv if there is none.
PYTHON ?= python3
VENV ?= .venv
JOBS ?= 2
BIN = $(VENV)/bin
export OMP_NUM_THREADS ?= 1
export OMP_WAIT_POLICY ?= passive

.PHONY: figures test lint env bench store clean

figures: $(BIN)/.installed  ## run every notebook's quick profile, write figures, claims, report
	$(BIN)/nclib run --jobs $(JOBS)
	$(BIN)/nclib report

test: $(BIN)/.installed  ## unit, property, notebook and end-to-end tests
	$(BIN)/ruff check .
	$(BIN)/python -m pytest -n $(JOBS) --dist loadfile

env: $(BIN)/.installed

$(BIN)/.installed: pyproject.toml
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet -e '.[test,cluster]'
	touch $@

store: $(BIN)/.installed  ## execute the notebooks and keep their outputs
	$(BIN)/nclib store

environment.yml: pyproject.toml $(BIN)/.installed
	$(BIN)/python -m nclib.environment

clean:  ## forget runs and checkpoints; figures stay
	rm -rf runs
