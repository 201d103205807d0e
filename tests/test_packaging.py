from __future__ import annotations

import re
import subprocess
import sys
import tomllib
import zipfile
from importlib.util import find_spec
from pathlib import Path

import pytest
import yaml

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
            "evaluation/**/*.yaml",
        )
        for path in (ROOT / "recipe_hf").rglob(pattern)
        if path.is_file()
    }
    files.add("recipe_hf/py.typed")
    assert {"recipe_hf/cards/model_card_template.md", "recipe_hf/training/statements/families/people.jsonl"} <= files
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
    names = "dependencies|gguf|harness|parquet|qdrant|serve|dev"
    lists = re.findall(rf"^(?:{names}) = \[(.*?)\]", pyproject, flags=re.DOTALL | re.MULTILINE)
    needed = {_normalise(name) for text in lists for name in re.findall(r'"([\w-]+)[^"]*"', text)}
    assert len(lists) == 7 and needed <= pinned
    assert "torch==2.13.0" in lines


def test_citation_is_of_this_project_and_of_the_paper():
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    assert citation["cff-version"] == "1.2.0" and citation["message"]
    assert all("name" in author for author in citation["authors"])
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert (citation["title"], str(citation["version"])) == (project["name"], project["version"])
    assert citation["license"] == project["license"] and citation["abstract"] == project["description"]
    paper = citation["preferred-citation"]
    assert {"type", "title", "authors"} <= paper.keys()
    authors = " and ".join(f"{author['family-names']}, {author['given-names']}" for author in paper["authors"])
    bibtex = re.search(r"```bibtex\n(.*?)```", (ROOT / "README.md").read_text(encoding="utf-8"), flags=re.DOTALL)[1]
    told = dict(re.findall(r'(\w+) = "(.*)"', bibtex.replace("{LLM}", "LLM")))
    assert told == {
        "title": paper["title"],
        "author": authors,
        "booktitle": paper["collection-title"],
        "year": str(paper["year"]),
        "pages": f"{paper['start']}--{paper['end']}",
        "url": paper["url"],
    }


def _normalise(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()
