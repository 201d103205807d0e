"""The examples of the documentation run, from the first to the last."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.tiny_evaluation import EXAMPLES
from tests.tiny_recipe import tiny_recipe

ROOT = Path(__file__).parent.parent
DOCS = ROOT / "docs"


@pytest.mark.parametrize("page", [*ROOT.glob("*.md"), *DOCS.glob("*.md")], ids=lambda page: page.name)
def test_links_of_a_page_lead_to_files_that_are_there(page: Path):
    links = re.findall(r"\]\((?!https?:)([^)#\s]+)", page.read_text(encoding="utf-8"))
    assert [link for link in links if not (page.parent / link).exists()] == []


def test_the_examples_of_knowledge_md(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture):
    pytest.importorskip("qdrant_client", reason="qdrant-client is not installed: pip install 'recipe-hf[qdrant]'")
    monkeypatch.chdir(tmp_path)
    blocks = re.findall(r"```python\n(.*?)```", (DOCS / "knowledge.md").read_text(encoding="utf-8"), flags=re.DOTALL)
    assert len(blocks) > 10
    names = {"model": tiny_recipe()}
    for block in blocks:
        exec(compile(block, "docs/knowledge.md", "exec"), names)
    said = capsys.readouterr().out
    assert "It is being written by process" in said and "Castle Orrenfeld is in Portugal." in said
    assert "\nFinnish replaced 20" in said and "\nFinnish\n['Estonian']\n1 ['', 'acme'] [None]\n" in said
    assert "Who owns Skerry Air?\n  threshold " in said and said.endswith("Kvaløy is painted green.\n")
    names["model"].knowledge.close()


def test_the_editor_of_editors_md_is_measured(capsys: pytest.CaptureFixture):
    (block,) = re.findall(r"```python\n(.*?)```", (DOCS / "editors.md").read_text(encoding="utf-8"), flags=re.DOTALL)
    lines = block[block.index("class ") : block.index("(report,)")].strip().splitlines()
    assert len(lines) <= 40
    names = {"model": tiny_recipe(), "examples": EXAMPLES}
    exec(compile(block, "docs/editors.md", "exec"), names)
    assert capsys.readouterr().out.startswith("{'reliability': ")
    report = names["report"]
    # Each prompt is told its own fact, and an unrelated one that names no subject is answered as by the base.
    assert report.metrics["reliability_right_fact"] == 100
    unnamed = [o for o in report.outcomes if o.kind == "locality" and o.retrieved_id is None]
    assert unnamed and all(outcome.accuracy == 1 for outcome in unnamed)
