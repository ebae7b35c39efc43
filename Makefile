# Each target does its own set-up: system packages if they are missing, a virtual environment, the pinned packages.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
RESULTS := benchmarks/results/throughput.json
export PYTHON

.PHONY: demo examples test lint bench gpu docs wheels clean

demo: $(VENV)/.demo  ## train on handwritten digits, with and without CropMix, and plot the crops
	$(BIN)/python examples/demo.py

examples: $(VENV)/.examples  ## each example at toy size, on the same digits
	PATH="$(BIN):$$PATH" sh examples/run_all.sh

test: $(VENV)/.dev
	$(BIN)/python -m pytest -n 2 --dist worksteal

lint: $(VENV)/.dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

# PHOTOS: a folder of images, written in all ways; or BETON: files. By default scikit-learn's. DESCRIPTION: of the images.
bench: $(VENV)/.bench  ## measure against FFCV and others, and rewrite tables and plot
	$(BIN)/python benchmarks/throughput.py $(if $(BETON),--beton $(BETON)) $(if $(PHOTOS),--data_dir "$(PHOTOS)") $(if $(DESCRIPTION),--description "$(DESCRIPTION)") --json $(RESULTS)
	$(BIN)/python benchmarks/report.py $(RESULTS)

gpu: $(VENV)/.dev  ## tests and benchmark that need a GPU; without one, say what they would run
	$(BIN)/python -m pytest -m gpu -rs tests/gpu
	$(BIN)/python benchmarks/gpu.py --json benchmarks/results/gpu.json

docs: $(VENV)/.docs  ## build the documentation site in build/site; a broken link is an error
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

wheels:  ## build wheels for machines without a compiler, OpenCV or root; ALL=1 adds those of all that they need
	scripts/build_wheels.sh wheels

# A stamp tells which extra is installed, from which versions.
$(VENV)/.%: pyproject.toml constraints.txt | $(VENV)/bin/python
	sh scripts/system_packages.sh
	$(BIN)/python -m pip install --quiet --use-pep517 --constraint constraints.txt --editable ".[$*]"
	touch $@

$(VENV)/bin/python:
	sh scripts/system_packages.sh
	$(PYTHON) -m venv $(VENV)

clean:
	rm -rf $(VENV) demo build wheels *.egg-info
