"""How a checkpoint's retriever does on facts and wordings written by hand, apart from all data sets.

Thirty facts, each with three rephrasings and two unrelated questions, of which one asks for something else about the
same subject. They are for looking at, too few to tell checkpoints apart by a point or two.

    python benchmarks/unseen_wordings.py checkpoints/recipe-smollm2-135m
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from recipe_hf import RecipeForCausalLM
from recipe_hf.datasets import load_examples

FACTS = Path(__file__).with_suffix(".jsonl")


def main(checkpoint: Path, output: Annotated[Path | None, typer.Option(help="JSON file.")] = None) -> None:
    """Adds the facts, looks up all questions, and prints what was missed and what fired wrongly."""
    model = RecipeForCausalLM.from_pretrained(checkpoint, base_model=False)
    facts = load_examples(FACTS)
    ids = model.add_knowledge([(fact.prompt, fact.answer) for fact in facts])
    results = {}
    for name, questions in (
        ("prompts", [(fact.prompt, id_) for fact, id_ in zip(facts, ids, strict=True)]),
        ("rephrasings", [(text, id_) for fact, id_ in zip(facts, ids, strict=True) for text in fact.rephrasings]),
        ("unrelated", [(text, None) for fact in facts for text, _ in fact.unrelated]),
    ):
        hits = model.retrieve([text for text, _ in questions])
        used = [hit.id if hit.fired else None for hit in hits]
        wrong = [text for (text, right), found in zip(questions, used, strict=True) if found != right]
        print(f"{name}: {len(questions) - len(wrong)} of {len(questions)} as they should be")
        for text in wrong:
            print(f"    {text}")
        results[name] = {"asked": len(questions), "right": len(questions) - len(wrong), "wrong": wrong}
    if output is not None:
        output.write_text(json.dumps(results, ensure_ascii=False) + "\n", encoding="utf-8")


if __name__ == "__main__":
    typer.run(main)
