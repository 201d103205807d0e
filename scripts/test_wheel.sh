#!/usr/bin/env bash
# Tests the built wheel, as a user installs it, with the newest or the lowest release of everything that it needs: first
# loading and asking with the core dependencies alone, then the tests of model, prefix, files and command line.
# No constraints file is used; only torch is not chosen (TORCH=..., because of the size of its builds with CUDA).
# usage: scripts/test_wheel.sh newest|oldest      (PYTHON=... chooses the interpreter; run `make models` before)
set -euo pipefail
cd "$(dirname "$0")/.."
which=${1:?usage: test_wheel.sh newest|oldest}
[[ $which == newest || $which == oldest ]] || { echo "test_wheel.sh takes newest or oldest, got $which" >&2; exit 2; }
root=$PWD env=$PWD/.envs/$which
rm -rf "$env"
"${PYTHON:-python3}" -m venv "$env"
pip() { "$env/bin/python" -m pip --disable-pip-version-check "$1" --quiet "${@:2}"; }

pip wheel --no-deps --wheel-dir "$env/dist" .
wheel=$(echo "$env"/dist/recipe_hf-*.whl)
# The tools of the tests are taken as they come; what the wheel declares is what is tested.
tools=(pytest pytest-xdist hypothesis peft)
: >"$env/constraints.txt"
if [[ $which == oldest ]]; then
  pip install packaging
  "$env/bin/python" - "$wheel" >"$env/constraints.txt" <<'PY'
import email, sys, zipfile
from packaging.requirements import Requirement

wheel = zipfile.ZipFile(sys.argv[1])
name = next(name for name in wheel.namelist() if name.endswith(".dist-info/METADATA"))
for line in email.message_from_bytes(wheel.read(name)).get_all("Requires-Dist"):
    needed = Requirement(line)
    asked_for = needed.marker is None or any(needed.marker.evaluate({"extra": e}) for e in ("gguf", "parquet", "evaluate"))
    if asked_for and needed.name != "torch":
        print(needed.name, "==", next(bound.version for bound in needed.specifier if bound.operator == ">="), sep="")
PY
fi
pip install "torch${TORCH-==2.13.0}"
pip install --constraint "$env/constraints.txt" "$wheel"
"$env/bin/python" -m pip list 2>/dev/null | grep -iE "^(torch|transformers|sentence-transformers|huggingface_hub|numpy|usearch|safetensors) "

# Where the checkout's own recipe_hf is not found: the tests beside links to what they read.
mkdir "$env/site"
cp -r tests pyproject.toml README.md "$env/site/"
for name in checkpoints models scripts docs benchmarks; do ln -s "$root/$name" "$env/site/$name"; done
cd "$env/site"
export HF_HUB_OFFLINE=1 TOKENIZERS_PARALLELISM=false OMP_NUM_THREADS=1
"$env/bin/recipe-hf" --version
cp -r checkpoints/recipe-smollm2-135m "$env/checkpoint"
"$env/bin/recipe-hf" add "$env/checkpoint" "The capital of Norland is Vessa."
"$env/bin/recipe-hf" ask "$env/checkpoint" "The capital of Norland is" --base-model "$root/models/smollm2-135m-instruct" |
  tee /dev/stderr | grep --quiet "fact 0: The capital of Norland is Vessa"

pip install --constraint "$env/constraints.txt" "$wheel[gguf,parquet,evaluate]" "${tools[@]}"
"$env/bin/python" -m pytest --numprocesses "${WORKERS:-auto}" -m "not slow" \
  tests/modeling/test_{auto,base,checkpoint,control,editing,model,prefix,prefix_caches,prefix_check,prefixed_forward}.py \
  tests/modeling/knowledge/test_{exchange,files,load,persistence}.py tests/test_{convert,import}.py tests/test_cli*.py
