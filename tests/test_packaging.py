from __future__ import annotations

import re
import subprocess
import sys
import zipfile
from importlib.util import find_spec
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> zipfile.ZipFile:
    if find_spec("hatchling") is None:
        pytest.skip("hatchling, of the dev extra, is not installed")
    target = tmp_path_factory.mktemp("dist")
    command = [sys.executable, "-m", "hatchling", "build", "--target", "wheel", "--directory", str(target)]
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True)
    return zipfile.ZipFile(next(target.glob("*.whl")))


def test_wheel_holds_one_package(wheel: zipfile.ZipFile):
    tops = {name.split("/")[0] for name in wheel.namelist()}
    assert {top for top in tops if not top.endswith(".dist-info")} == {"recipe_hf"}


def test_wheel_holds_every_module_and_data_file(wheel: zipfile.ZipFile):
    files = {
        str(path.relative_to(ROOT))
        for pattern in (
            "*.py",
            "cards/*.md",
            "training/configs/*.yaml",
            "training/statements/**/*",
            "evaluation/tasks/*.yaml",
        )
        for path in (ROOT / "recipe_hf").rglob(pattern)
        if path.is_file()
    }
    files.add("recipe_hf/py.typed")
    assert "recipe_hf/cards/model_card_template.md" in files
    assert files <= set(wheel.namelist())


def test_wheel_metadata(wheel: zipfile.ZipFile):
    info = next(name for name in wheel.namelist() if name.endswith(".dist-info/METADATA")).rsplit("/", 1)[0]
    metadata = wheel.read(f"{info}/METADATA").decode()
    assert "\nLicense-Expression: Apache-2.0\n" in metadata
    assert "\nRequires-Python: >=3.11\n" in metadata
    assert "recipe-hf = recipe_hf.cli:app" in wheel.read(f"{info}/entry_points.txt").decode()
    assert f"{info}/licenses/LICENSE" in wheel.namelist()


def test_links_lead_into_the_package():
    for name in ("modeling", "training", "cards"):
        assert (ROOT / name).resolve() == ROOT / "recipe_hf" / name


def test_constraints_pin_every_direct_dependency():
    lines = [line for line in (ROOT / "constraints.txt").read_text().splitlines() if not line.startswith("#")]
    assert all(re.fullmatch(r"[\w.-]+==[\w.]+", line) for line in lines)
    pinned = {_normalise(line.split("==")[0]) for line in lines}
    pyproject = (ROOT / "pyproject.toml").read_text()
    lists = re.findall(
        r"^(?:dependencies|gguf|harness|parquet|qdrant|dev) = \[(.*?)\]", pyproject, flags=re.DOTALL | re.MULTILINE
    )
    needed = {_normalise(name) for text in lists for name in re.findall(r'"([\w-]+)[^"]*"', text)}
    assert len(lists) == 6 and needed <= pinned
    assert "torch==2.13.0" in lines


def _normalise(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()
