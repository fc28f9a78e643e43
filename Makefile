# Everything a fresh machine with Python 3.11 and a C++ compiler needs is set up by the target asked for.
PYTHON ?= $(shell command -v python3.11 || command -v python3)
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready

# What each process gets, and in which order, is in tests/conftest.py.
PYTEST := $(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder

.PHONY: setup demo test test-slow test-faults test-gpu lint bench clean

setup: $(READY)

# sam2 asks for torch in its build environment (3 GB more); without isolation it builds in seconds. In the mode
# "compat" `import stmi` also works in the folder that holds the clone, which has a folder of that name.
$(READY): pyproject.toml cluster/constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit("Python 3.11 or newer is needed; set PYTHON=/path/to/python3.11" if sys.version_info < (3, 11) else 0)'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --constraint cluster/constraints.txt setuptools wheel
	SAM2_BUILD_CUDA=0 $(BIN)/python -m pip install --quiet --no-build-isolation --constraint cluster/constraints.txt \
		--config-settings editable_mode=compat --editable '.[dev]'
	touch $(READY)

demo: $(READY)
	$(BIN)/python experiments/demo.py $(DEMO_OPTIONS)

test: $(READY)
	$(PYTEST) -m "not slow" $(TEST_OPTIONS)

# Runs, studies and clusters from end to end. TEST_OPTIONS="--splits 4 --group 2" runs the second quarter of them,
# by the seconds in tests/slow_durations.json, which TEST_OPTIONS=--store-durations measures.
test-slow: $(READY)
	$(PYTEST) -m slow $(TEST_OPTIONS)

# One test for each fault of experiments/chaos.py.
test-faults: $(READY)
	$(PYTEST) -m fault $(TEST_OPTIONS)

# On a machine with a GPU; without one, all of them are skipped.
test-gpu: $(READY)
	$(BIN)/python -m pytest -rs tests/gpu

lint: $(READY)
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports

bench: $(READY)
	$(BIN)/python experiments/benchmark.py all

# Data, runs and the environment stay: they are expensive to make. `rm -r runs .venv` removes them.
clean:
	rm -rf build *.egg-info .pytest_cache .mypy_cache .ruff_cache .import_linter_cache
