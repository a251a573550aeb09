# make setup   install everything, pinned and checked by hash, into .venv
# make check   lint, types, generated files
# make test    every test, against real Kafka, Redis and Milvus, and of training
# make test-serving   all but those of training; files in the order of their names, which has the longest first
# make test-train     those of training, in an environment of their own: PyTorch is several GB
# make test-backends  adapters against real model servers and Feast, each in an environment of its own, likewise of several GB
# make demo    the whole thing live on real data
PYTHON ?= python3
BIN := .venv/bin
STAMP := .venv/.installed

TRAIN_BIN := .venv-train/bin
TRAIN_STAMP := .venv-train/.installed

# Most of what a command takes is to import: compiling it anew each time would make it three times as long.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: setup check test test-serving test-train test-backends demo

setup: $(STAMP)

$(STAMP): requirements/dev.txt pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(0 if (3, 11) <= sys.version_info[:2] <= (3, 13) else "Python 3.11 to 3.13 is needed, this is " + sys.version.split()[0] + "; choose another with make PYTHON=...")'
	@echo "installing pinned packages into .venv (about 1.1 GB on disk, a minute at first)"
	@$(BIN)/python -m pip --version >/dev/null 2>&1 || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip --quiet install --require-hashes -r requirements/tools.txt
	$(BIN)/uv --quiet pip sync --python $(BIN)/python --require-hashes requirements/dev.txt
	$(BIN)/uv --quiet pip install --python $(BIN)/python --no-deps --no-build-isolation --editable .
	@touch $(STAMP)

check: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/python -m schemas.generate --check

test: test-serving test-train

test-serving: setup
	$(BIN)/python -m pytest --numprocesses 2 --dist loadfile --no-loadscope-reorder

$(TRAIN_STAMP): requirements/train.txt pyproject.toml $(STAMP)
	@echo "installing PyTorch into .venv-train (about 5.5 GB on disk)"
	@test -x $(TRAIN_BIN)/python || $(BIN)/python -m venv .venv-train
	$(BIN)/uv --quiet pip sync --python $(TRAIN_BIN)/python --require-hashes requirements/train.txt
	$(BIN)/uv --quiet pip install --python $(TRAIN_BIN)/python --no-deps --no-build-isolation --editable .
	@touch $(TRAIN_STAMP)

test-train: $(TRAIN_STAMP)
	$(TRAIN_BIN)/python -m pytest tests/train --override-ini norecursedirs='.*'

test-backends: setup
	$(BIN)/python -m tests.backends

demo: setup
	$(BIN)/recall demo
