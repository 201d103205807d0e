# Each target alone does everything on a machine that has Python 3.11 and PyPI: it makes .venv, installs under the pins
# of constraints.txt, fetches the two small models (190 MB; 700 MB on disk), then does its job. A second run skips what
# is done.
PYTHON ?= $(shell command -v python3.11 || command -v python3)
BIN := .venv/bin
MODELS := models

# All that the targets load lies on disk: without this, a machine that cannot reach the Hub waits for time-outs.
export HF_HUB_OFFLINE ?= 1
export TOKENIZERS_PARALLELISM ?= false

.PHONY: demo test test-newest test-oldest test-vllm lint models train-release train-verifier results clean

demo: .venv/.installed models
	$(BIN)/recipe-hf demo

# In parallel, with one thread each: WORKERS=0 runs them one after the other.
WORKERS ?= auto

test: .venv/.installed models
	OMP_NUM_THREADS=1 $(BIN)/pytest --numprocesses $(WORKERS)

# The wheel in an environment of its own, with the newest or the lowest of all that it needs.
test-newest test-oldest: test-%: models
	PYTHON=$(PYTHON) WORKERS=$(WORKERS) scripts/test_wheel.sh $*

# vLLM for CPUs in an environment of its own, 4 GB, and its server with facts against the model whole. Not in CI: with
# downloads it takes a quarter of an hour on two idle cores.
VLLM := .envs/vllm

test-vllm: $(VLLM)/.installed models
	$(VLLM)/bin/python -m pytest tests/serving/vllm

$(VLLM)/.installed: scripts/vllm_cpu.sh
	PYTHON=$(PYTHON) scripts/vllm_cpu.sh $(VLLM)
	touch $@

lint: .venv/.installed
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy

# Trains a checkpoint like the released one from scratch into runs/release (docs/training.md says how long it takes).
# The data are not in the repository: put counterfact-train.json, as EasyEdit and the RECIPE authors publish it, and
# KnowEdit's files, as knowedit-zsre.json, knowedit-wiki-recent.json and knowedit-wiki-counterfact.json, into data/,
# and for its verifier answerability.jsonl and paraphrases.jsonl. runs/verifier-families/best is the whole.
BASE := $(MODELS)/smollm2-135m-instruct
KNOWEDIT := data/knowedit-zsre.json data/knowedit-wiki-recent.json data/knowedit-wiki-counterfact.json
TRAIN := $(BIN)/accelerate launch --num_processes 1 --num_machines 1 --mixed_precision no --dynamo_backend no \
	training/train.py --config training/configs/smollm2-135m

VERIFIER := $(BIN)/recipe-hf train-verifier --config training/configs/verifier

VERIFIED := data/invented.jsonl data/answerability.jsonl data/paraphrases.jsonl

train-release: .venv/.installed models data/counterfact-train.json $(KNOWEDIT) data/general.jsonl $(VERIFIED)
	$(TRAIN)-counterfact.yaml
	$(TRAIN)-retrieval.yaml
	$(TRAIN)-wordings.yaml
	$(TRAIN)-queries.yaml
	$(BIN)/python scripts/release.py average runs/smollm2-135m-wordings/best runs/smollm2-135m-queries/best \
		--share 0.3 --share 0.7 --output runs/smollm2-135m-queries/averaged
	$(TRAIN)-known-answers.yaml
	$(BIN)/python scripts/release.py weights runs/smollm2-135m-known-answers runs/release --base-model $(BASE)
	$(VERIFIER).yaml --checkpoint runs/release
	$(VERIFIER)-families.yaml --checkpoint runs/release

# Trains a verifier for the released checkpoint into runs/verifier-families, two hours or so on two cores. Besides, data/
# needs answerability.jsonl and paraphrases.jsonl: rows as docs/training.md describes them under "The verifier".
train-verifier: .venv/.installed models data/counterfact-train.json $(KNOWEDIT) $(VERIFIED)
	$(VERIFIER).yaml
	$(VERIFIER)-families.yaml

# Measures the released checkpoint and rebuilds docs/results.md and the figures of README.md and the card. The steps
# that are finished are not run again; `make results STEPS="zsre probes"` runs these. It also needs
# counterfact-edit.json, paraphrases.jsonl and general-mmlu.jsonl, general-piqa.jsonl and general-rte.jsonl in data/.
STEPS :=

results: .venv/.installed models
	$(BIN)/python scripts/results.py run $(STEPS)
	$(BIN)/python scripts/results.py summary
	$(BIN)/python scripts/results.py page

data/general.jsonl: | .venv/.installed models
	$(BIN)/python scripts/general_texts.py $(BASE) $@ --num-texts 1408

data/invented.jsonl: data/counterfact-train.json | .venv/.installed
	$(BIN)/python scripts/invented_facts.py $< $@

# The base as safetensors, which load at once; GGUF files are read anew each time. Some tests are of the file itself.
models: $(MODELS)/smollm2-135m-instruct

$(MODELS)/smollm2-135m-instruct: $(MODELS)/.fetched | .venv/.installed
	$(BIN)/recipe-hf convert $(MODELS)/smollm2/SmolLM2-135M-Instruct.Q4_1.gguf $@

# Modules are compiled when they are first imported: most never are, and compiling all takes a minute.
.venv/.installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --no-compile --constraint constraints.txt --editable ".[gguf,harness,parquet,qdrant,serve,dev]"
	touch $@

$(MODELS)/.fetched: scripts/fetch_models.sh
	PYTHON=$(PYTHON) scripts/fetch_models.sh $(MODELS)
	touch $@

clean:
	rm -rf .venv $(MODELS)
