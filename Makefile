# make demo   sets up everything and runs the main job: three optimizers compared, one report
# make test   sets up everything and runs the tests
# Both can be repeated; they need Python 3.11 or newer, make and pip, and nothing else.

PYTHON ?= $(shell command -v python3.11 || command -v python3)
VENV ?= .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
DEMO ?= runs/demo

.PHONY: demo test slow lint types clean

demo: $(READY)
	$(BIN)/kobai compare --data digits --model mlp --optimizers sgd,adam,kfac --seeds 3 \
	    --out $(DEMO) --fresh

test: $(READY)
	$(BIN)/python -m pytest -n auto $(PYTEST)

slow: $(READY)
	$(BIN)/python -m pytest -n auto --slow $(PYTEST)

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(READY)
	$(BIN)/pyright

$(READY): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit("kobai needs Python 3.11 or newer, got %s" % sys.version.split()[0] if sys.version_info < (3, 11) else 0)'
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[dev]'
	touch $@

clean:
	rm -rf $(VENV) runs .pytest_cache .ruff_cache
