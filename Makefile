# Commands of the project; each installs what it needs into .venv first.
#   make demo         trains, evaluates and draws
#   make test         runs the fast tests; make test-slow runs the slow ones
#   make lint         checks style and types
#   make docs         builds the documentation into build/site
#   make coverage     runs the fast tests and reports the lines that they do not reach
#   make durations    runs all tests and records the seconds of each file (tests/durations.json)
#   make package      builds the wheel and the sdist into dist/
PYTHON ?= python3
BIN := .venv/bin

.PHONY: install demo lint test test-slow docs coverage durations package

VERSION := import sys; print("%d.%d" % sys.version_info[:2])
SAME_PYTHON = [ "$$($(BIN)/python -c '$(VERSION)' 2>/dev/null)" = "$$($(PYTHON) -c '$(VERSION)')" ]

# an environment of another Python is replaced: its packages are of the wrong version
install:
	@$(SAME_PYTHON) || rm -f .venv/ready
	@$(MAKE) --no-print-directory .venv/test
	@echo "Installed into .venv: . .venv/bin/activate, then mrcnn --help"

.venv/ready: requirements.txt pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "mrcnn_jax needs Python 3.11 \
	or newer, not $$($(PYTHON) -c '$(VERSION)'): make install PYTHON=python3.12 names another one" >&2; exit 1; }
	@$(SAME_PYTHON) || { echo "Making .venv"; rm -rf .venv/bin .venv/lib .venv/lib64 .venv/pyvenv.cfg; $(PYTHON) -m venv .venv; }
	@echo "Installing packages into .venv, about 1 GB"
	$(BIN)/python -m pip install --no-compile --editable .
	touch $@

.venv/test: .venv/ready
	$(BIN)/python -m pip install --editable '.[test]'
	touch $@

.venv/docs: .venv/ready
	$(BIN)/python -m pip install --quiet --editable '.[docs]'
	touch $@

demo: .venv/ready
	$(BIN)/python -m mrcnn_jax train demo

lint: .venv/test
	$(BIN)/ruff check
	$(BIN)/ty check --python .venv

test: .venv/test
	$(BIN)/python -m pytest -m "not slow"

test-slow: .venv/test
	$(BIN)/python -m pytest -m slow

docs: .venv/docs
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict

coverage: .venv/test
	$(BIN)/python -m pytest -m "not slow" --cov --cov-report=term

durations: .venv/test
	$(BIN)/python -m pytest --update-durations

package: .venv/test
	$(BIN)/python -m build
	$(BIN)/python -m twine check --strict dist/*
