# Two commands do everything on a fresh machine with Python 3.11 and a C++ compiler:
#   make demo    create .venv, install, run the main job on the data that is shipped
#   make test    create .venv, install, run the tests
PYTHON ?= python3
BIN = .venv/bin

.PHONY: demo test lint types stub clean

# Installed again whenever a source is newer. -P keeps the sources from hiding the installed package.
SOURCES := pyproject.toml constraints.txt README.md $(shell find compressae_index connectors -name '*.py' -o -name '*.?pp' -o -name 'CMakeLists.txt' -o -name '*.pyi')

.venv/installed: $(SOURCES)
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --constraint constraints.txt "scikit-build-core" "nanobind"
	$(BIN)/pip install --quiet --constraint constraints.txt --no-build-isolation --config-settings=cmake.define.COMPRESSAE_WERROR=ON ".[dev]"
	touch $@

demo: .venv/installed
	$(BIN)/compressae-index demo --output demo-output

test: .venv/installed
	$(BIN)/python -P -m pytest

lint: .venv/installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: .venv/installed
	$(BIN)/mypy

# The committed picture of the engine for type checkers; a test compares it with the built module.
# Made from a folder without sources, which stubgen would import instead of the built package.
stub: .venv/installed
	cd .venv && bin/python -P -m nanobind.stubgen -m compressae_index._engine -o ../compressae_index/_engine.pyi
	$(BIN)/ruff format --quiet compressae_index/_engine.pyi

clean:
	rm -rf .venv build demo-output .pytest_cache .mypy_cache .ruff_cache .hypothesis
