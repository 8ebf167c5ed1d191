# Two commands: `make figures` and `make test`.  Both create .venv if there is none.
PYTHON ?= python3
VENV ?= .venv
export JOBS ?= 2
BIN = $(VENV)/bin
export OMP_NUM_THREADS ?= 1
export OMP_WAIT_POLICY ?= passive

.PHONY: figures test test-fast test-other soak bench env store clean

figures: $(BIN)/.installed  ## run every notebook's quick profile, write figures, claims, report
	$(BIN)/nclib run --jobs $(JOBS)
	$(BIN)/nclib report

test: $(BIN)/.installed  ## unit, property, notebook and end-to-end tests
	$(BIN)/python -m tests.run $@

test-fast: $(BIN)/.installed  ## those that are not slow
	$(BIN)/python -m tests.run $@

test-other: $(BIN)/.installed  ## as on other processors, and with the oldest allowed versions
	$(BIN)/python -m tests.run $@

soak: $(BIN)/.installed  ## kill -9 at random moments, 25 times on local processes, 25 on Dask
	NCLIB_SOAK_KILLS=25 $(BIN)/python -m pytest -s tests/test_soak.py

bench: $(BIN)/.installed  ## speed and memory against plain code; best on a quiet machine
	$(BIN)/python -m tests.benchmarks

env: $(BIN)/.installed

$(BIN)/.installed: pyproject.toml
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet -e '.[test,cluster]'
	touch $@

store: $(BIN)/.installed  ## execute the notebooks and keep their outputs
	$(BIN)/nclib store

environment.yml: pyproject.toml $(BIN)/.installed
	$(BIN)/nclib environment > $@.new && mv $@.new $@

clean:  ## forget runs and checkpoints; figures stay
	rm -rf runs
