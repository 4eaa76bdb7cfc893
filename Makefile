# Two commands: `make demo` and `make test`. Both set up .venv first, and again whenever a source has changed.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
export OMP_NUM_THREADS := 1
export PIP_DISABLE_PIP_VERSION_CHECK := 1

SOURCES := pyproject.toml setup.py constraints.txt $(wildcard README.md) $(shell find spikedeploy exporters runtime -type f ! -name "*.pyc" ! -name "*.so" ! -name "_core*.c" ! -name "*.o")

.PHONY: demo test test-triton lint types clean

demo: $(VENV)/.demo
	$(BIN)/python examples/digits.py --out out/demo

test: lint types
	$(BIN)/pytest -n auto

# Triton is a gigabyte and wanted for GPUs only: its kernels are tested on request, in its interpreter, on any machine.
test-triton: $(VENV)/.test
	$(BIN)/python -m pip install --quiet --constraint constraints.txt "triton>=3.4"
	$(BIN)/pytest tests/test_nn_leaky_triton.py tests/test_nn_associative_triton.py tests/test_nn_triton_compiles.py

lint: $(VENV)/.test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(VENV)/.test
	PYTHON=$(CURDIR)/$(BIN)/python tools/typecheck

# A regular install, not an editable one: what is tested is what users get. Leftovers of an older build would be packed again.
$(VENV)/.%: $(SOURCES)
	@$(PYTHON) -c "import sys; sys.exit(sys.version_info < (3, 11) and 'Python 3.11 or later is needed: make PYTHON=...')"
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	rm -rf build
	$(BIN)/python -m pip install --quiet --constraint constraints.txt ".[$*]"
	@touch $@

clean:
	rm -rf $(VENV) build out .pytest_cache .mypy_cache .ruff_cache .hypothesis *.egg-info
