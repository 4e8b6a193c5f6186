# make quickstart   the whole road on the embedded data     make test    all tests
# make check        format, lint, types                     make bench   the benchmark scripts
# Each sets up .venv first. On a GPU machine:
#   make TORCH=torch==2.13.0 EXTRAS=scenes,train,export,serve,demo,dev CONSTRAINTS= quickstart

PYTHON ?= python3
VENV ?= .venv
EXTRAS ?= scenes,train,export,serve-cpu,demo,dev
CONSTRAINTS ?= -c constraints.txt
TORCH ?= torch==2.13.0+cpu
CPU_INDEX ?= https://download.pytorch.org/whl/cpu
WORKERS ?= 2
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed

.PHONY: install quickstart test check bench clean

install: $(STAMP)

# torch comes first, in PyTorch's CPU build, from its own index where the usual ones have none: PyPI's brings several
# gigabytes of CUDA packages, and vLLM's CPU build does not take it.
$(STAMP): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check $(TORCH) uv || \
		$(BIN)/pip install --quiet --disable-pip-version-check --extra-index-url $(CPU_INDEX) $(TORCH) uv
	VIRTUAL_ENV=$(abspath $(VENV)) $(BIN)/uv pip install --quiet $(CONSTRAINTS) -e '.[$(EXTRAS)]'
	touch $(STAMP)

quickstart: $(STAMP)
	$(BIN)/imod quickstart

test: $(STAMP)
	$(BIN)/python -m pytest -n $(WORKERS) --dist loadgroup --no-loadscope-reorder

check: $(STAMP)
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

bench: $(STAMP)
	for script in train_step merge onnx_decode serve load first_paint; do $(BIN)/python benchmarks/$$script.py || exit; done

clean:
	rm -rf $(VENV) build dist .pytest_cache .mypy_cache .ruff_cache
