# make demo | test | test-all | test-webui | quality. The environment is made in .venv on first use; nothing is installed elsewhere.
#
#   PYTHON=python3.12        the interpreter to make it with
#   TORCH="torch==2.9.1"     what pip installs as torch, with any options of pip's ("torch --index-url URL")
#   SD_WEBUI_DIR=/path       the WebUI that test-webui starts
#   WORKERS=2                how many test files it runs at a time, each with two servers of one core each

PYTHON ?= python3
VENV   ?= .venv
WORKERS ?= 2

MINOR := $(shell $(PYTHON) -c "import sys; print(sys.version_info[1])")
ifeq ($(MINOR),10)  # the WebUI's Python: tested with the WebUI's torch
TORCH  ?= torch==2.1.2
CONSTRAINTS := -c tests/constraints-webui.txt
else
TORCH  ?= torch==2.13.0
endif

ifeq ($(OS),Windows_NT)
BIN := $(VENV)/Scripts
else
BIN := $(VENV)/bin
endif
READY := $(VENV)/ready

.PHONY: demo test test-all test-webui quality

demo: $(READY)
	$(BIN)/python -m sdxl_optim demo --out demo-out

# a process a core, each with tests of its own while any are left
test: $(READY)
	$(BIN)/python -m pytest -n auto --dist worksteal -m "not webui and not gpu and not slow"

test-all: $(READY)
	$(BIN)/python -m pytest -n auto --dist worksteal

test-webui: $(READY)
	$(BIN)/python -m pip install -q playwright
	$(BIN)/python -m pytest -m webui -n $(WORKERS) --dist loadfile tests/webui

quality: $(READY)
	$(BIN)/python -m ruff check .
	$(BIN)/python -m ruff format --check .
	$(BIN)/python -m mypy

# torch first and by itself: whatever asks for torch afterwards is then satisfied with this build.
$(READY): pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install $(CONSTRAINTS) $(TORCH)
	$(BIN)/python -m pip install $(CONSTRAINTS) -e ".[standalone,bench,dev]"
	$(BIN)/python -c "open('$(READY)', 'w').close()"
