# Verbs that people and the continuous integration call. Nothing is installed twice: a second `make` is instant.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
FRAMES ?= 128
STEPS ?= 4
DEVICE ?= cpu
ARGS ?=
WORKERS ?= 2
SOURCES := sanawm_env policies datasets kernels configs examples tests

.PHONY: help setup demo lint format types test test-gpu bench train-rooms eval examples clean

help:
	@echo "setup     a virtual environment in $(VENV) with the package and its tools"
	@echo "demo      step the shipped world along a tour; writes outputs/demo   (FRAMES=$(FRAMES) DEVICE=$(DEVICE))"
	@echo "lint      ruff: rules and format             format    let ruff rewrite the files"
	@echo "types     mypy                               test      all tests that need no GPU (WORKERS=$(WORKERS) processes)"
	@echo "test-gpu  the tests marked gpu               bench     frames a second, latency, memory (DEVICE=$(DEVICE))"
	@echo "eval      fidelity on held-out scenes        examples  every example with STEPS=$(STEPS)"
	@echo "train-rooms  autoencoder, then denoiser, then the bundle (ARGS='minutes=6 ...'); CUDA if there is one"

setup: $(READY)

# torch comes first and alone, so that a build which is already in the environment (the CPU one, a vendor's own) is
# kept: what is there by then, torch and the triton it may bring, is left out of the constraints of the rest. pip
# compiles the modules it has unpacked one by one; here all cores do, but for thousands of which hardly one is imported,
# and say which they cannot (torch has one for a later Python), which stops nothing.
SELDOM := /(OpenGL|transformers/models|diffusers/(modular_)?pipelines)/
$(READY): pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -c "import torch" 2>/dev/null || $(BIN)/python -m pip install --no-compile $$(grep '^torch==' constraints.txt)
	@kept='torch'; ! $(BIN)/python -c "import triton" 2>/dev/null || kept='torch|triton'; \
	grep -v -E "^($$kept)==" constraints.txt > $(VENV)/constraints.txt
	$(BIN)/python -m pip install --no-compile -c $(VENV)/constraints.txt -e '.[dev]'
	-$(BIN)/python -m compileall -q -j 0 -x '$(SELDOM)' $(VENV)/lib
	touch $(READY)

demo: $(READY)
	$(BIN)/sanawm demo --frames $(FRAMES) --device $(DEVICE) $(ARGS)

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

format: $(READY)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

types: $(READY)
	$(BIN)/mypy

test: $(READY)
	$(BIN)/python -m pytest -m "not gpu" -n $(WORKERS) --dist loadfile --no-loadscope-reorder $(ARGS)

test-gpu: $(READY)
	$(BIN)/python -m pytest -m gpu $(ARGS)

bench: $(READY)
	$(BIN)/sanawm bench rooms --device $(DEVICE) $(ARGS)

train-rooms: $(READY)
	$(BIN)/sanawm train rooms-autoencoder $(ARGS)
	$(BIN)/sanawm train rooms-denoiser $(ARGS)

eval: $(READY)
	$(BIN)/sanawm eval rooms --device $(DEVICE) $(ARGS)

examples: $(READY)
	@set -e; for file in examples/[0-9]*.py; do echo "== $$file"; $(BIN)/python $$file --steps $(STEPS) --device $(DEVICE); done

clean:
	rm -rf build dist outputs .mypy_cache .ruff_cache .pytest_cache .hypothesis *.egg-info
