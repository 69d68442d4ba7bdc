# Verbs for people and CI. Each creates what it needs in $(VENV): given make and Python >= 3.11 with venv, nothing
# else has to be typed first.

PYTHON ?= python3
VENV ?= .venv
# Where torch comes from. On a machine without a GPU, the CPU build saves gigabytes:
#   make demo TORCH_INDEX=https://download.pytorch.org/whl/cpu
TORCH_INDEX ?=
OUT ?= demo-out
# How many processes run the tests side by side.
WORKERS ?= 4
# The image: what builds it, and what runs it in image-test. ENGINE may also be a program that is called as
# SCRIPT CONTEXT TAG [build options].
ENGINE ?= docker
RUNNER ?= $(ENGINE)
TARGET ?= cpu
TAG ?= jest-selector:$(TARGET)
SOURCE ?=
IMAGE_FLAGS ?=
# Where `make lock` finds torch's CPU build, whose requirements are fewer.
LOCK_CPU ?= --index https://download.pytorch.org/whl/cpu --index-strategy unsafe-best-match

BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt
LOCK = $(BIN)/uv pip compile --quiet --constraint constraints.txt --generate-hashes \
  --python-version 3.11 --python-platform x86_64-manylinux_2_28 --custom-compile-command 'make lock'
IMAGE_OPTIONS = --target $(TARGET) --label org.opencontainers.image.version=$(VERSION) \
  --label org.opencontainers.image.revision=$(REVISION) $(if $(SOURCE),--label org.opencontainers.image.source=$(SOURCE) )\
  $(IMAGE_FLAGS)
VERSION = $(shell sed -n 's/^__version__ = "\(.*\)"$$/\1/p' proto/selector_proto/__init__.py)
REVISION = $(shell git describe --always --abbrev=40 --dirty 2>/dev/null || echo unknown)
# Only Docker's format has health checks.
BUILD_BY_ENGINE = $(ENGINE) build $(if $(filter docker,$(notdir $(ENGINE))),,--format docker )--tag $(TAG) $(IMAGE_OPTIONS) .
BUILD_BY_SCRIPT = $(ENGINE) . $(TAG) $(IMAGE_OPTIONS)
CODE := proto/selector_proto client/selector_client selector_server tools

.PHONY: help demo data test test-integration monitoring-test deploy-test check audit format proto manifests bench results fuzz mutants lock bundles image image-test clean
.DEFAULT_GOAL := help

help: ## list the verbs
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | awk -F':.*## ' '{printf "  make %-17s %s\n", $$1, $$2}'

demo: $(VENV)/.demo ## train with and without selection, write $(OUT)/index.html (about 3 minutes)
	$(BIN)/selector demo --out $(OUT) $(DEMO_FLAGS)

data: $(VENV)/.data ## make the large data set of icons, for studies; npm fetches 104 MB (about 5 minutes on two cores)
	$(BIN)/selector data iconify $(DATA_FLAGS)

# A file's tests stay together, for they share what they start; files come in the order of tests/support/order.py.
# Many tests wait, so that there are more workers than cores; each of them computes in one thread.
test: $(VENV)/.dev ## every test but those of the verbs below (about 8 minutes on two cores)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(WORKERS) --dist loadfile --no-loadscope-reorder \
	  --ignore tests/integration $(TEST_FLAGS)

test-integration: $(VENV)/.integration ## the loader, pools and examples with the libraries of others, Ray, a local S3, a browser (5 minutes)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest tests/integration $(TEST_FLAGS)

monitoring-test: $(VENV)/.dev ## a real Prometheus scrapes the real thing; every query and alert is tried (3 to 5 minutes)
	MONITORING_TEST=1 $(BIN)/python -m pytest tests/monitoring --show-capture=no $(TEST_FLAGS)

deploy-test: $(VENV)/.deploy ## chart and kustomize; with IMAGE=… ENGINE=podman the pods run too (about 2 minutes)
	IMAGE=$(IMAGE) ENGINE=$(or $(ENGINE),podman) $(BIN)/python -m pytest tests/deploy/kubernetes $(TEST_FLAGS)

check: $(VENV)/.dev ## format, lint, types, contract, fast tests
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	cd proto && $(abspath $(BIN))/buf lint
	$(BIN)/python -m pytest -q tests/sampling tests/proto tests/test_imports.py tests/datasets tests/study tests/demo --ignore tests/demo/test_run.py \
	  --ignore tests/study/test_study_run.py --ignore tests/study/test_own_data.py

audit: $(VENV)/.dev $(VENV)/audit/bin/pip-audit ## pins, licences and known vulnerabilities of all dependencies
	$(BIN)/python tools/audit.py $(VENV)/audit/bin/pip-audit

format: $(VENV)/.dev ## rewrite the code in the house's format
	$(BIN)/ruff check --fix-only .
	$(BIN)/ruff format .

proto: $(VENV)/.dev ## regenerate the stubs from proto/selector/v1
	PATH="$(abspath $(BIN)):$$PATH" $(BIN)/python tools/generate_stubs.py

manifests: $(VENV)/.deploy ## regenerate the chart's schema of settings and the objects of deploy/kustomize
	$(BIN)/python tools/generate_manifests.py

bench: $(VENV)/.dev ## sampler, chunks, shards, low resolution, serving, cache, prefilter, inspector, weights, transport, loader, load (about an hour)
	$(BIN)/selector bench sampler
	$(BIN)/selector bench chunks
	$(BIN)/selector bench sharded
	$(BIN)/selector bench resolution
	$(BIN)/selector bench serve
	$(BIN)/selector bench cache
	$(BIN)/selector bench prefilter
	$(BIN)/selector bench inspect
	$(BIN)/selector bench weights --soak 1000
	$(BIN)/selector bench transport
	$(BIN)/selector bench loader
	$(BIN)/selector bench load

results: $(VENV)/.demo ## regenerate docs/results.md and its plots from benchmarks/results/training-*.json
	$(BIN)/python -m selector_tools.study.results

lock: $(VENV)/.torch ## rewrite the image's hash-locked requirements after a change of pins
	$(PIP) uv
	$(LOCK) pyproject.toml --extra server --extra traces --no-emit-package torch $(LOCK_CPU) \
	  --output-file deploy/image/requirements-cpu.txt
	$(LOCK) pyproject.toml --extra server-gpu --extra traces --no-emit-package torch \
	  --output-file deploy/image/requirements-gpu.txt
	sed -n 's/^requires = \["\(.*\)"\]$$/\1/p' pyproject.toml | \
	  $(LOCK) - --output-file deploy/image/requirements-build.txt

bundles: bundles/reference/manifest.json ## the example's learner and reference, in bundles/

bundles/reference/manifest.json: | $(VENV)/.export
	$(BIN)/python examples/make_bundles.py two-tower --out bundles

image: ## build an image: ENGINE=docker|podman|buildah|SCRIPT TARGET=cpu|gpu TAG=… IMAGE_FLAGS=…
	$(if $(filter docker podman buildah,$(notdir $(ENGINE))),$(BUILD_BY_ENGINE),$(BUILD_BY_SCRIPT))

image-test: $(VENV)/.dev image ## build TARGET=cpu, run it for real with RUNNER=docker|podman, follow docs/deploy.md
	SELECTOR_TEST_IMAGE=$(TAG) SELECTOR_TEST_RUNNER=$(RUNNER) $(BIN)/python -m pytest tests/deploy/test_image.py $(TEST_FLAGS)

FUZZ_FLAGS ?= --inputs 50000 --seed 2026
fuzz: $(VENV)/.dev ## hostile bytes for every decoder: 10^6 inputs (about 5 minutes)
	PYTHONPATH=tests $(BIN)/python -m fuzz --json benchmarks/results/fuzz.json $(FUZZ_FLAGS)

MUTANTS_FLAGS ?=
mutants: $(VENV)/.mutants ## does a test notice when the code is changed? A sample for docs/mutants.md (about 25 minutes)
	$(BIN)/python tools/mutants.py $(MUTANTS_FLAGS)

clean: ## remove the virtual environment, caches and the demo's report
	rm -rf $(VENV) demo-out dist .mypy_cache .ruff_cache .pytest_cache .hypothesis

$(VENV)/.torch: constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(PIP) $(if $(TORCH_INDEX),--index-url $(TORCH_INDEX) )torch
	@touch $@

$(VENV)/.demo: $(VENV)/.torch pyproject.toml
	$(PIP) --editable '.[demo]'
	@touch $@

$(VENV)/.data: $(VENV)/.torch pyproject.toml
	$(PIP) --editable '.[data]'
	@touch $@

$(VENV)/.export: $(VENV)/.torch pyproject.toml
	$(PIP) --editable '.[server,export]'
	@touch $@

$(VENV)/.dev: $(VENV)/.torch pyproject.toml
	$(PIP) --editable '.[dev]'
	@touch $@ $(VENV)/.data $(VENV)/.demo $(VENV)/.export

# Streams that the loader resumes over. What they demand of numpy, transformers and python-dateutil contradicts our pins,
# and what else they demand is for clouds, so they come without it.
STREAMS = litdata mosaicml-streaming boto3 botocore s3transfer jmespath tifffile obstore brotli zstd python-snappy cramjam catalogue

$(VENV)/.integration: $(VENV)/.dev
	$(PIP) --editable '.[integration]'
	$(PIP) --no-deps $(STREAMS)
	@touch $@

$(VENV)/.mutants: $(VENV)/.dev
	$(PIP) --editable '.[mutants]'
	@touch $@

$(VENV)/.deploy: $(VENV)/.dev
	$(PIP) --editable '.[deploy-test]'
	@touch $@

# In an environment of its own: nothing else needs what it brings.
$(VENV)/audit/bin/pip-audit:
	$(PYTHON) -m venv $(VENV)/audit
	$(VENV)/audit/bin/python -m pip install --quiet --disable-pip-version-check 'pip-audit==2.10.1'
