# Two commands do everything on a fresh machine: `make demo` and `make test`.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin

# An index of CPU builds of torch, which pip then prefers to its usual one: make demo TORCH_INDEX=…
INDEX := $(if $(TORCH_INDEX),--extra-index-url $(TORCH_INDEX))

# Spinning OpenMP threads make small steps several times slower on shared cores.
export OMP_WAIT_POLICY := PASSIVE
export TOKENIZERS_PARALLELISM := true

.PHONY: setup demo test test-slow test-gpu test-browser test-extras test-lowest lint bench pecos curvature-rivals docs site release clean

setup: $(VENV)/ready

$(VENV)/ready: pyproject.toml constraints/cpu.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet $(INDEX) --editable '.[dev]' --constraint constraints/cpu.txt
	touch $@

demo: setup ## train on the shipped WordNet: random against NGAME batches, then three queries
	$(BIN)/python examples/demo.py

test: setup ## the suite, on the CPU; outside data is used where SHOAL_DATA names it
	CUDA_VISIBLE_DEVICES= OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -n auto --maxprocesses 8

test-slow: setup ## checks that need outside data or minutes
	$(BIN)/python -m pytest -q -m slow --hypothesis-profile thorough

test-gpu: setup ## checks that need a CUDA device
	$(BIN)/python -m pytest -q -m gpu

test-browser: setup ## the page of shoal serve in a real, headless Chromium
	@command -v chromium >/dev/null && command -v chromedriver >/dev/null || \
	  { echo 'test-browser: expected chromium and chromedriver, got none;' \
	    'apt-get install chromium chromium-driver' >&2; exit 1; }
	$(BIN)/pip install --quiet $(INDEX) --editable '.[dev,browser]' --constraint constraints/cpu.txt
	$(BIN)/python -m pytest -q -m browser

test-extras: ## the suite with every optional package, and the tests that need them all
	$(PYTHON) -m venv .venv-extras
	.venv-extras/bin/pip install --quiet $(INDEX) --editable '.[all,dev]' --constraint constraints/cpu.txt
	CUDA_VISIBLE_DEVICES= OMP_NUM_THREADS=1 .venv-extras/bin/python -m pytest -q -n auto --maxprocesses 8 \
	  -m 'not slow and not gpu and not browser' --hypothesis-profile thorough

test-lowest: ## the suite at every lower bound of pyproject.toml, in an environment of its own
	$(PYTHON) -m venv .venv-lowest
	.venv-lowest/bin/pip install --quiet $(INDEX) --editable '.[test,plot]' --constraint constraints/lowest.txt
	CUDA_VISIBLE_DEVICES= OMP_NUM_THREADS=1 .venv-lowest/bin/python -m pytest -q -n auto --maxprocesses 8

lint: setup
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/pyright

bench: setup ## every benchmark, quickly; SHOAL_DATA names the folder of outside data
	for script in benchmarks/*.py; do $(BIN)/python $$script --quick || exit 1; done

pecos: ## the environment of a rival in benchmarks/rivals.py, which needs older numpy and scipy
	$(PYTHON) -m venv .venv-pecos
	.venv-pecos/bin/pip install --quiet --requirement constraints/pecos.txt

curvature-rivals: ## the environment of the rivals in benchmarks/spectrum.py
	$(PYTHON) -m venv .venv-curvature
	.venv-curvature/bin/pip install --quiet --no-deps --requirement constraints/curvature.txt

docs: setup site ## check the documents' links, commands, names, facts and code; build the site
	$(BIN)/python tools/check_docs.py

site: setup ## the documents and the API as a site in site/, strictly: a warning is an error
	$(BIN)/pip install --quiet $(INDEX) --editable '.[dev,docs]' --constraint constraints/cpu.txt
	$(BIN)/python tools/notebooks.py --check
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs --quiet build --strict

release: setup ## sdist and wheel in dist/, checked, installed elsewhere and tried
	$(BIN)/pip install --quiet $(INDEX) --editable '.[dev,release]' --constraint constraints/cpu.txt
	$(BIN)/python tools/release.py $(INDEX) --constraint constraints/cpu.txt

clean:
	rm -rf $(VENV) .venv-extras .venv-lowest .venv-pecos .venv-curvature build dist site runs
