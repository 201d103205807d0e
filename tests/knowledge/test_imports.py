"""Facts are listed and exported without the libraries that models need, which take seconds to import."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import torch

import recipe_hf
from recipe_hf.knowledge import KnowledgeBase

# The package stands without its own `__init__`, which is not of these modules.
_USE = """
import sys, types
package, directory = sys.argv[1:]
sys.modules["recipe_hf"] = types.ModuleType("recipe_hf")
sys.modules["recipe_hf"].__path__ = [package]

from recipe_hf.knowledge import KnowledgeBase
from recipe_hf.knowledge.exchange import read_facts
from recipe_hf.knowledge.sqlite.salvage import salvage

with KnowledgeBase.open(f"{directory}/facts.db") as base:
    base.remove(0)
    base.restore(0)
    base.export(f"{directory}/facts.jsonl", include_history=True)
    base.save(f"{directory}/saved")
    base.copy_to(f"{directory}/copy.db").close()
salvage(f"{directory}/facts.db", f"{directory}/new.db")
with KnowledgeBase.open(f"{directory}/new.db", read_only=True) as base:
    print([fact.statement for fact in base], len(base.history("a")), len(read_facts(f"{directory}/facts.jsonl")))
print(len(KnowledgeBase.load(f"{directory}/saved").snapshot()))
heavy = "torch transformers huggingface_hub usearch faiss numkong qdrant_client pyarrow pandas"
print(sorted(sys.modules.keys() & heavy.split()))
"""


def test_facts_are_read_and_written_without_torch(tmp_path: Path):
    with KnowledgeBase.open(tmp_path / "facts.db", 8) as base:
        base.add([("a", "1"), "b"], torch.ones(2, 8))
    command = [sys.executable, "-c", _USE, str(Path(recipe_hf.__file__).parent), str(tmp_path)]
    said = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    assert said.splitlines() == ["['b', 'a 1'] 1 2", "2", "[]"]
