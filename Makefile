# make demo    compress the bundled model in every way and compare (a few minutes)
# make test    the default test suite (no GPU, no network needed by the tests themselves)
# Both set up .venv by themselves; a second run uses it as it is.

PYTHON ?= python3
VENV   := .venv
READY  := $(VENV)/.ready
BIN    := $(VENV)/bin

.PHONY: demo test test-gpu check format bench clean help

help:
	@sed -n 's/^# \(make .*\)/\1/p' Makefile

$(READY): pyproject.toml constraints.txt setup.py
	$(PYTHON) -m venv $(VENV) || { echo "python3 -m venv failed: on Debian, apt install python3-venv"; exit 1; }
	$(BIN)/python -m pip install --quiet -c constraints.txt torch setuptools
	$(BIN)/python -m pip install --quiet -c constraints.txt --no-build-isolation -e ".[dev]"
	@touch $(READY)

demo: $(READY)
	$(BIN)/secateur demo --output demo

test: $(READY)
	$(BIN)/python -m pytest

# make test-gpu  the tests that need an NVIDIA GPU
test-gpu: $(READY)
	$(BIN)/python -m pytest -m gpu

# make check   lint, format, types, and whether the README shows the recorded figures
check: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/python -m bench.readme --check

# make format  let ruff mend what it can
format: $(READY)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

# make bench   CPU benchmarks; results go to bench/results
bench: $(READY)
	$(BIN)/python -m bench.masks
	$(BIN)/python -m bench.compression
	$(BIN)/python -m bench.quality
	$(BIN)/python -m pytest bench --benchmark-only

clean:
	rm -rf build dist *.egg-info demo .pytest_cache .mypy_cache .ruff_cache .hypothesis
