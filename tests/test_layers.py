"""Modules import what is below them, never what is above, wherever the import stands in their file."""

from __future__ import annotations

import ast
from collections.abc import Iterable, Iterator
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

import recipe_hf

PACKAGE = Path(recipe_hf.__file__).parent

# From the bottom to the top. Those of one line do not know of each other.
LAYERS = [
    {"errors", "download", "publishing"},
    {"knowledge"},
    {"modeling"},
    {"convert", "datasets", "demo", "teacher_forcing"},
    {"evaluation"},
    {"cards"},
    {"hub"},
    {"training", "serving"},
    {"cli"},
]
# Likewise, of the evaluation.
ROOMS_OF_EVALUATION = ["records", "inputs", "editors", "asking", "measuring", "reporting"]


def _modules() -> dict[str, Path]:
    """The modules of the package but itself, which knows all by name only, by their names in it."""
    paths = {path.relative_to(PACKAGE).with_suffix("").parts: path for path in PACKAGE.rglob("*.py")}
    named = {".".join(parts[:-1] if parts[-1] == "__init__" else parts): path for parts, path in paths.items()}
    return {name: path for name, path in named.items() if name}


def _imported(name: str, path: Path, modules: Iterable[str]) -> Iterator[str]:
    """The modules that a module's import statements name, also those within functions and for type checkers."""
    package = name.split(".")[: None if path.name == "__init__.py" else -1]
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name.removeprefix("recipe_hf.") for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            start = package[: len(package) + 1 - node.level] if node.level else []
            module = ".".join([*start, *filter(None, [node.module])]).removeprefix("recipe_hf.")
            for alias in node.names:
                submodule = f"{module}.{alias.name}".lstrip(".")
                yield submodule if submodule in modules else module


@pytest.fixture(scope="module")
def imports() -> dict[str, set[str]]:
    """What each module imports of the package."""
    modules = _modules()
    return {name: {*_imported(name, path, modules)} & modules.keys() - {name} for name, path in modules.items()}


def test_imports_are_found_wherever_they_stand(imports):
    assert {"knowledge", "modeling.loading", "cards.facts_card"} <= imports["hub"]
    assert {"convert", "demo", "hub"} <= imports["cli.checkpoints"]  # In functions.
    assert {"cli.app", "cli.facts"} <= imports["cli"]  # `from . import facts`.
    assert "knowledge.sqlite.store" in imports["knowledge.sqlite.space"]


def test_nothing_imports_what_is_above_it(imports):
    height = {part: number for number, layer in enumerate(LAYERS) for part in layer}
    assert height.keys() == {name.split(".")[0] for name in imports}
    upwards = {
        (name, other)
        for name, others in imports.items()
        for other in others
        if (part := name.split(".")[0]) != (of_other := other.split(".")[0]) and height[part] <= height[of_other]
    }
    assert not upwards


def test_the_rooms_of_the_evaluation_import_those_below_them(imports):
    height = {room: number for number, room in enumerate(ROOMS_OF_EVALUATION)}
    rooms = {
        (name.split(".")[1], other.split(".")[1])
        for name, others in imports.items()
        for other in others
        if name.startswith("evaluation.") and other.startswith("evaluation.")
    }
    assert {room for pair in rooms for room in pair} == height.keys()
    assert [pair for pair in rooms if height[pair[0]] < height[pair[1]]] == []


def test_no_modules_import_each_other_in_a_circle(imports):
    TopologicalSorter(imports).prepare()
    with pytest.raises(CycleError):
        TopologicalSorter(imports | {"errors": {"hub"}, "download": {"errors"}}).prepare()


def test_search_knows_engines_by_their_protocol_only(imports):
    of_search = {other for name, others in imports.items() if name.startswith("knowledge.search") for other in others}
    assert "knowledge.engine" in of_search
    assert not {other for other in of_search if other.startswith(("knowledge.sqlite", "knowledge.qdrant"))}


def test_no_file_is_long():
    files = PACKAGE.rglob("*.py")
    assert max(len(path.read_text(encoding="utf-8").splitlines()) for path in files) <= 400
