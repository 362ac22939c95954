# Each target creates .venv from constraints.txt if it is not there.
VENV := .venv
PYTHON := $(VENV)/bin/python
STAMP := $(VENV)/.installed
ONLY :=

# Python may keep its compiled files: the tests start in 12 s instead of 29.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: quickstart test lint fast bench clean

$(STAMP): constraints.txt pyproject.toml
	test -x $(PYTHON) || python3 -m venv $(VENV)
	$(PYTHON) -m pip install --quiet -c constraints.txt torch==2.13.0
	$(PYTHON) -m pip install --quiet -c constraints.txt -e '.[dev]'
	touch $(STAMP)

quickstart: $(STAMP)
	$(PYTHON) -m treeward quickstart

lint: $(STAMP)
	$(VENV)/bin/ruff check src tests bench examples
	$(VENV)/bin/mypy
	$(VENV)/bin/lint-imports

fast: $(STAMP)
	$(PYTHON) -m pytest -n 2 --dist worksteal -m 'not slow'

test: lint
	$(PYTHON) -m pytest -n 2 --dist worksteal

bench: $(STAMP)
	$(PYTHON) bench/run.py $(if $(ONLY),--only $(ONLY))

clean:
	rm -rf $(VENV) .venv-bench .pytest_cache .mypy_cache .ruff_cache .hypothesis .import_linter_cache
