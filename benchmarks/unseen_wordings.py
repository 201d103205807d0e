"""How a checkpoint's retriever does on facts and wordings written by hand, apart from all data sets.

Each fact has three rephrasings and two unrelated questions: another property of its subject, and the same property of
another subject. `unseen_wordings.jsonl` has 30 facts; `unseen_wordings_near.jsonl` has 60, written by someone who knew
neither the training data nor its wordings, with unrelated questions that come near ("was born in" for "lives in") and
rephrasings that go far ("breaks out in hives if she touches" for "is allergic to"). All facts are held at once.

    python benchmarks/unseen_wordings.py checkpoints/recipe-smollm2-135m
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from recipe_hf import RecipeForCausalLM
from recipe_hf.datasets import EditExample, load_examples

FOLDER = Path(__file__).parent
SETS = ("unseen_wordings", "unseen_wordings_near")


def questions(facts: Sequence[EditExample], ids: Sequence[int]) -> dict[str, list[tuple[str, int | None]]]:
    """Texts by kind, each with the fact that it should find."""
    pairs = list(zip(facts, ids, strict=True))
    return {
        "prompts": [(fact.prompt, id_) for fact, id_ in pairs],
        "rephrasings": [(text, id_) for fact, id_ in pairs for text in fact.rephrasings],
        "other properties": [(fact.unrelated[0][0], None) for fact in facts],
        "other subjects": [(fact.unrelated[1][0], None) for fact in facts],
    }


def main(checkpoint: Path, output: Annotated[Path | None, typer.Option(help="JSON file.")] = None) -> None:
    """Adds the facts, looks up all questions, and prints what was missed and what fired wrongly."""
    model: Any = RecipeForCausalLM.from_pretrained(checkpoint, base_model=False)
    facts = {name: load_examples(FOLDER / f"{name}.jsonl") for name in SETS}
    ids = {
        name: model.add_knowledge([(fact.prompt, fact.answer) for fact in examples])
        for name, examples in facts.items()
    }
    results: dict[str, dict[str, Any]] = {}
    for name, examples in facts.items():
        results[name] = {}
        for kind, asked in questions(examples, ids[name]).items():
            hits = model.retrieve([text for text, _ in asked])
            used = [hit.id if hit.fired else None for hit in hits]
            wrong = [text for (text, right), found in zip(asked, used, strict=True) if found != right]
            print(f"{name}, {kind}: {len(asked) - len(wrong)} of {len(asked)} as they should be")
            for text in wrong:
                print(f"    {text}")
            results[name][kind] = {"asked": len(asked), "right": len(asked) - len(wrong), "wrong": wrong}
    if output is not None:
        output.write_text(json.dumps(results, ensure_ascii=False) + "\n", encoding="utf-8")


if __name__ == "__main__":
    typer.run(main)
