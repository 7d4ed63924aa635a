# `make quickstart` and `make test` set everything up first; a second time that does nothing.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed

.PHONY: quickstart test tests test-documents test-distributed test-fast coverage lint types install bench results bench-gpu bench-strangers estimator bench-teachers bench-tenth soak soak-ray crash-points fuzz docs clean

quickstart: $(INSTALLED)
	$(BIN)/gapssg quickstart --overwrite

# Checks code and types while the tests run.
test: $(INSTALLED)
	$(MAKE) --jobs lint types tests

# One process a core: threads of their own would wait for each other.
tests: $(INSTALLED)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest --numprocesses auto --dist worksteal -m "not distributed and not documents"

# The tests that build the documentation site, and run its guides and the notebook.
test-documents: $(INSTALLED)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest --numprocesses auto --dist worksteal -m documents

# The tests that start the processes of torchrun or a Ray cluster, which would wait for other tests.
test-distributed: $(INSTALLED)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m distributed

# Without the tests that are marked slow: about a minute.
test-fast: $(INSTALLED)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest --numprocesses auto --dist worksteal -m "not slow and not distributed"

coverage: $(INSTALLED)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest --numprocesses auto --dist worksteal -m "not slow and not distributed" --cov --cov-report=term

lint: $(INSTALLED)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(INSTALLED)
	$(BIN)/mypy

bench: $(INSTALLED)
	$(BIN)/python -m benchmarks.quickstart --seeds 3
	$(BIN)/python -m benchmarks.steps
	$(BIN)/python -m benchmarks.growth
	$(BIN)/python -m benchmarks.landscape
	$(BIN)/python -m benchmarks.seeds
	$(BIN)/python -m benchmarks.scaling

# benchmarks/RESULTS.md, from benchmarks/RESULTS.md.jinja and what the benchmarks wrote to benchmarks/results/.
results: $(INSTALLED)
	$(BIN)/python -m benchmarks.results_page

# On a machine with a GPU; DATA is a folder with train/ and test/ of CIFAR-10 images.
bench-gpu: $(INSTALLED)
	$(BIN)/python -m benchmarks.gpu $(if $(DATA),--data $(DATA))

# CIFAR10 is a folder with train/ and test/ of CIFAR-10 images; hours on two cores, resumable cell by cell.
bench-strangers: $(INSTALLED)
	$(BIN)/python -m benchmarks.strangers $(if $(CIFAR10),--cifar10 $(CIFAR10))

# The predictor of `gapssg estimate`, from the students that bench-strangers made.
estimator: $(INSTALLED)
	$(BIN)/python -m benchmarks.estimator $(if $(CIFAR10),--cifar10 $(CIFAR10))

# Kinds of teachers, imported and distilled; needs transformers, too.
bench-teachers: $(INSTALLED)
	$(BIN)/python -m benchmarks.teachers $(if $(JOBS),--jobs $(JOBS))

bench-tenth: $(INSTALLED)
	$(BIN)/python -m benchmarks.tenth --data $(if $(DATA),$(DATA),cifar10)

soak: $(INSTALLED)
	$(BIN)/python -m benchmarks.soak

soak-ray: $(INSTALLED)
	OMP_NUM_THREADS=1 $(BIN)/python -m benchmarks.soak_ray

crash-points: $(INSTALLED)
	OMP_NUM_THREADS=1 $(BIN)/python -m benchmarks.crash_points --output benchmarks/results/crash-points.csv

fuzz: $(INSTALLED)
	$(BIN)/python -m benchmarks.fuzz --cases 10000 --seed 0 --output benchmarks/results/fuzz.csv

# build/site/index.html; warnings are errors. With NOTEBOOKS=force the notebooks are executed, and their outputs shown.
docs: $(INSTALLED)
	$(BIN)/python -m sphinx -W --keep-going --quiet -c docs -d build/doctrees . build/site

install: $(INSTALLED)

$(INSTALLED): pyproject.toml
	$(PYTHON) -c 'import sys; sys.exit(0 if (3, 11) <= sys.version_info[:2] <= (3, 13) else "Python 3.11 to 3.13 is needed: make PYTHON=python3.12")'
	$(PYTHON) -m venv $(VENV)
	@echo "installing into $(VENV); torch is several gigabytes, which takes a few minutes"
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[dev]'
	@touch $@

clean:
	rm -rf $(VENV) build dist .mypy_cache .pytest_cache .ruff_cache .hypothesis .coverage*
