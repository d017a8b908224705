# Everything a developer types. `make demo` and `make test` set up .venv by themselves.

PYTHON ?= python3
BIN := .venv/bin
READY := .venv/.ready
WORKERS ?= 2

.PHONY: demo setup test test-slow lint types contracts format bench clean

$(READY): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "d4c needs Python 3.11 or newer: make PYTHON=python3.11 ...")'
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev,eval,plots,onnx,openvino,ray]'
	@touch $@

setup: $(READY)

demo: $(READY) ## a quantized CLIP, the images it was calibrated with, and what it cost
	$(BIN)/d4c quantize tiny --recipe w4a8 --set synthesize.images=32 --out demo/tiny-w4a8 --fresh

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(READY)
	$(BIN)/mypy

contracts: $(READY)
	$(BIN)/lint-imports

test: lint types contracts ## what .ci/run calls
	OMP_NUM_THREADS=1 $(BIN)/pytest -n $(WORKERS) --dist worksteal -m 'not slow and not gpu and not network'

test-slow: $(READY)
	OMP_NUM_THREADS=1 $(BIN)/pytest -m 'slow and not network'

format: $(READY)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bench: $(READY)
	$(BIN)/python benchmarks/range_search.py

clean:
	rm -rf .venv demo build dist
