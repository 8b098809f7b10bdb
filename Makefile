# Two commands do everything on a fresh machine: `make quickstart` and `make test`.
PYTHON ?= python3
VENV ?= .venv
PIP = $(VENV)/bin/python -m pip --disable-pip-version-check
# processes that tests start find our modules compiled
PYTEST = OMP_NUM_THREADS=1 PYTHONDONTWRITEBYTECODE= $(VENV)/bin/python -m pytest
INSTALL = $(PIP) install --constraint constraints.txt --editable

.PHONY: quickstart test thorough lint slow timed bench clean

quickstart: $(VENV)/.installed
	$(VENV)/bin/mobifleet fetch
	$(VENV)/bin/mobifleet run quickstart

test: $(VENV)/.installed-for-tests lint
	$(VENV)/bin/mobifleet fetch
	$(PYTEST) -n 2 --dist worksteal --durations 15

# Every method, setting, architecture and command of the README; CI runs it after `make test`.
thorough: $(VENV)/.installed-for-tests
	$(VENV)/bin/mobifleet fetch
	$(PYTEST) -n 2 --dist worksteal --durations 15 -m thorough

lint: $(VENV)/.installed-for-tests
	$(VENV)/bin/ruff check --quiet .
	$(VENV)/bin/ruff format --check --quiet .
	$(VENV)/bin/lint-imports > /dev/null

slow: $(VENV)/.installed-for-tests
	$(PYTEST) -m slow

# Leave the machine alone meanwhile: these tests assert how long things take.
timed: $(VENV)/.installed-for-tests
	$(PYTEST) -m timed

bench: $(VENV)/.installed
	$(VENV)/bin/python benchmarks/fair_link.py

$(VENV)/.installed: pyproject.toml constraints.txt | $(VENV)/bin/python
	@echo "installing mobifleet into $(VENV) (a minute or two) ..."
	$(INSTALL) .
	@touch $@

$(VENV)/.installed-for-tests: pyproject.toml constraints.txt | $(VENV)/bin/python
	@echo "installing mobifleet with what its tests need into $(VENV) (a minute or two) ..."
	$(INSTALL) '.[test]'
	@touch $@ $(VENV)/.installed

$(VENV)/bin/python:
	$(PYTHON) -m venv $(VENV)

clean:
	rm -rf $(VENV) runs figures
