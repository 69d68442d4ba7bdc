# Verbs for people and CI. Each creates what it needs in $(VENV): given make and Python >= 3.11 with venv, nothing
# else has to be typed first.

PYTHON ?= python3
VENV ?= .venv
# Where torch comes from. On a machine without a GPU, the CPU build saves gigabytes:
#   make demo TORCH_INDEX=https://download.pytorch.org/whl/cpu
TORCH_INDEX ?=
OUT ?= demo-out

BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt
CODE := proto/selector_proto client/selector_client selector_server tools

.PHONY: help demo test check format proto bench fuzz clean
.DEFAULT_GOAL := help

help: ## list the verbs
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | awk -F':.*## ' '{printf "  make %-8s %s\n", $$1, $$2}'

demo: $(VENV)/.demo ## train with and without selection, write $(OUT)/index.html (about 3 minutes)
	$(BIN)/selector demo --out $(OUT) $(DEMO_FLAGS)

test: $(VENV)/.dev ## every test (10 to 15 minutes)
	$(BIN)/python -m pytest $(TEST_FLAGS)

check: $(VENV)/.dev ## format, lint, types, contract, fast tests
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	cd proto && $(abspath $(BIN))/buf lint
	$(BIN)/python -m pytest -q tests/sampling tests/proto tests/test_imports.py tests/demo

format: $(VENV)/.dev ## rewrite the code in the house's format
	$(BIN)/ruff check --fix-only .
	$(BIN)/ruff format .

proto: $(VENV)/.dev ## regenerate the stubs from proto/selector/v1
	PATH="$(abspath $(BIN)):$$PATH" $(BIN)/python tools/generate_stubs.py

bench: $(VENV)/.dev ## sampler, chunks, shards, low resolution, serving, cache, weights, transport, loader (about 30 minutes)
	$(BIN)/selector bench sampler
	$(BIN)/selector bench chunks
	$(BIN)/selector bench sharded
	$(BIN)/selector bench resolution
	$(BIN)/selector bench serve
	$(BIN)/selector bench cache
	$(BIN)/selector bench weights --soak 1000
	$(BIN)/selector bench transport
	$(BIN)/selector bench loader

FUZZ_FLAGS ?= --inputs 50000 --seed 2026
fuzz: $(VENV)/.dev ## hostile bytes for every decoder: 10^6 inputs (about 5 minutes)
	PYTHONPATH=tests $(BIN)/python -m fuzz --json benchmarks/results/fuzz.json $(FUZZ_FLAGS)

clean: ## remove the virtual environment, caches and the demo's report
	rm -rf $(VENV) demo-out dist .mypy_cache .ruff_cache .pytest_cache .hypothesis

$(VENV)/.torch: constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(PIP) $(if $(TORCH_INDEX),--index-url $(TORCH_INDEX) )torch
	@touch $@

$(VENV)/.demo: $(VENV)/.torch pyproject.toml
	$(PIP) --editable '.[demo]'
	@touch $@

$(VENV)/.dev: $(VENV)/.torch pyproject.toml
	$(PIP) --editable '.[dev]'
	@touch $@ $(VENV)/.demo
