# The two commands: `make demo` trains, evaluates and draws; `make test` runs the tests. Both install into .venv first.
PYTHON ?= python3
BIN := .venv/bin

.PHONY: install demo test

install: .venv/ready

.venv/ready: requirements.txt pyproject.toml
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --editable '.[test]'
	touch $@

demo: .venv/ready
	$(BIN)/python -m mrcnn_jax train demo

test: .venv/ready
	$(BIN)/python -m pytest
