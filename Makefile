# Two commands do everything on a fresh machine: `make quickstart` and `make test`.
PYTHON ?= python3
VENV ?= .venv
# where a virtual environment keeps what it runs
ifeq ($(OS),Windows_NT)
BIN = $(VENV)/Scripts
else
BIN = $(VENV)/bin
endif
PIP = $(BIN)/python -m pip --disable-pip-version-check
# processes that tests start find our modules compiled
PYTEST = OMP_NUM_THREADS=1 PYTHONDONTWRITEBYTECODE= $(BIN)/python -m pytest
INSTALL = $(PIP) install --constraint constraints.txt --editable

.PHONY: quickstart test thorough lint slow timed coverage comparison bench clean

quickstart: $(VENV)/.installed
	$(BIN)/mobifleet fetch
	$(BIN)/mobifleet run quickstart

test: $(VENV)/.installed-for-tests lint
	$(BIN)/mobifleet fetch
	$(PYTEST) -n 2 --dist worksteal --durations 15

# Every method, setting, architecture and command of the README; CI runs it after `make test`.
thorough: $(VENV)/.installed-for-tests
	$(BIN)/mobifleet fetch
	$(PYTEST) -n 2 --dist worksteal --durations 15 -m thorough

lint: $(VENV)/.installed-for-tests
	$(BIN)/ruff check --quiet .
	$(BIN)/ruff format --check --quiet .
	$(BIN)/lint-imports > /dev/null
	$(BIN)/mypy --no-error-summary

slow: $(VENV)/.installed-for-tests
	$(PYTEST) -m slow

# Leave the machine alone meanwhile: these tests assert how long things take.
timed: $(VENV)/.installed-for-tests
	$(PYTEST) -m timed

# Which lines the fast tests run, also in the processes that they start.
coverage: $(VENV)/.installed-for-tests
	$(BIN)/mobifleet fetch
	$(PYTEST) -n 2 --dist worksteal --cov --cov-report html
	@echo "the fast tests run $$($(BIN)/coverage report --format total) % of the lines; coverage/index.html says which"

# docs/comparison.md, from the committed results of comparisons
comparison: $(VENV)/.installed-for-tests
	$(BIN)/python benchmarks/comparison.py

bench: $(VENV)/.installed
	$(BIN)/python benchmarks/fair_link.py

$(VENV)/.installed: pyproject.toml constraints.txt | $(VENV)/pyvenv.cfg
	@echo "installing mobifleet into $(VENV) (a minute or two) ..."
	$(INSTALL) .
	@touch $@

$(VENV)/.installed-for-tests: pyproject.toml constraints.txt | $(VENV)/pyvenv.cfg
	@echo "installing mobifleet with what its tests need into $(VENV) (a minute or two) ..."
	$(INSTALL) '.[test]'
	@touch $@ $(VENV)/.installed

$(VENV)/pyvenv.cfg:
	$(PYTHON) -m venv $(VENV)

clean:
	rm -rf $(VENV) runs figures coverage .coverage .mypy_cache
