#!/usr/bin/env bash
# Tests the built wheel, as a user installs it, with the newest or the lowest release of everything that it needs.
#   install   into a new environment: first with the core dependencies alone, which must do to edit and look up
#   run       the tests of model, prefix, files and command line, where the checkout's own recipe_hf is not found
# No constraints file is used; only torch is not chosen (TORCH=..., because of the size of its builds with CUDA).
# usage: scripts/test_wheel.sh newest|oldest [install|run]     (PYTHON=... is the interpreter; to run, `make models`)
set -euo pipefail
cd "$(dirname "$0")/.."
which=${1:-} phase=${2:-all}
[[ $which =~ ^(newest|oldest)$ && $phase =~ ^(all|install|run)$ ]] || { sed -n 's/^# usage: //p' "$0" >&2; exit 2; }
root=$PWD env=$PWD/.envs/$which
export HF_HUB_OFFLINE=1 TOKENIZERS_PARALLELISM=false OMP_NUM_THREADS=1

pip() { "$env/bin/python" -m pip --disable-pip-version-check "$1" --quiet "${@:2}"; }
add() { pip install --no-compile --constraint "$env/constraints.txt" "$@"; }

# The lowest release of each requirement of a wheel and of the extras that its tests use.
lowest() {
  "$env/bin/python" - "$1" <<'PY'
import email, sys, zipfile
from packaging.requirements import Requirement

wheel = zipfile.ZipFile(sys.argv[1])
name = next(name for name in wheel.namelist() if name.endswith(".dist-info/METADATA"))
for line in email.message_from_bytes(wheel.read(name)).get_all("Requires-Dist"):
    needed = Requirement(line)
    extras = ("gguf", "parquet", "plots", "evaluate", "train", "serve") if needed.marker else ()
    if needed.name != "torch" and (not extras or any(needed.marker.evaluate({"extra": e}) for e in extras)):
        print(needed.name, "==", next(bound.version for bound in needed.specifier if bound.operator == ">="), sep="")
PY
}

install() {
  rm -rf "$env"
  "${PYTHON:-python3}" -m venv "$env"
  pip wheel --no-deps --wheel-dir "$env/dist" .
  local wheel
  wheel=$(echo "$env"/dist/recipe_hf-*.whl)
  : >"$env/constraints.txt"
  if [[ $which == oldest ]]; then
    add packaging
    lowest "$wheel" >"$env/constraints.txt"
  fi
  add "torch${TORCH-==2.13.0}"
  add "$wheel"
  "$env/bin/python" -m pip list 2>/dev/null | grep -iE "^(torch|transformers|sentence-transformers|huggingface_hub|numpy|usearch) "

  cp -r checkpoints/recipe-smollm2-135m "$env/checkpoint"
  "$env/bin/recipe-hf" add "$env/checkpoint" "The capital of Norland is Vessa."
  "$env/bin/recipe-hf" explain "$env/checkpoint" "The capital of Norland is" | grep "(used)"

  # The tools of the tests are taken as they come.
  add "$wheel[gguf,parquet,plots,evaluate,train,serve]" pytest pytest-xdist hypothesis peft
}

run() {
  rm -rf "$env/site"
  mkdir "$env/site"
  cp -r tests pyproject.toml README.md "$env/site/"
  for name in checkpoints models scripts docs benchmarks; do ln -s "$root/$name" "$env/site/$name"; done
  cd "$env/site"
  "$env/bin/recipe-hf" ask "$env/checkpoint" "The capital of Norland is" --base-model models/smollm2-135m-instruct
  "$env/bin/python" -m pytest --numprocesses "${WORKERS:-auto}" -m "not slow" \
    tests/modeling/test_{auto,frozen_base,checkpoint,control,knowledge_mixin,model,prefix,prefix_caches,prefix_check}.py \
    tests/modeling/test_prefixed_forward.py tests/knowledge/test_{exchange,files,load,persistence}.py \
    tests/test_{convert,import}.py tests/test_cli*.py tests/serving/test_{openai,settings}.py
}

[[ $phase == run ]] || install
[[ $phase == install ]] || run
