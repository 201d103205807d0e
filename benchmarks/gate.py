"""Whether the fact asked for is used, and none where none answers: a checkpoint without its verifier and with it.

The facts of each set are held at once, and no others. None of these texts was trained on:

- `unseen_wordings` and `unseen_wordings_near`: 30 and 60 facts written by hand, apart from all data sets, told as
  prompt and answer, with unrelated questions: another property of the subject, and the same property of another
  subject. The 60 were written by someone who knew neither the training data nor its wordings, with questions that come
  near ("was born in" for "lives in") and rephrasings that go far ("breaks out in hives if she touches" for "is
  allergic to").
- `statements`: whole statements. Asks should find their own, also as people type them; misses of several kinds none.
- `families`: statements that resemble one another. Each ask should find its own among them.
- `updates`: old statements, and newer ones, each added alone with `on_conflict="supersede"`. Those that take the place
  of an old one are `retires`, those that leave it `stays`; `unrelated` is each old one told again, which retires no
  other.
- `chat`: what people ask assistants for, with the facts of CounterFact held, none of which answers it. It needs the
  files that `--counterfact` and `--chat` name.

`calibration` is how far the probability that retrievals give can be relied on.

    python benchmarks/gate.py checkpoints/recipe-smollm2-135m --counterfact data/counterfact-edit.json \
        --chat data/paraphrases.jsonl --output results/gate.json
"""

from __future__ import annotations

import json
import random
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import typer

from recipe_hf import KnowledgeBase, RecipeForCausalLM, Retrieval
from recipe_hf.datasets import load_examples, read_rows
from recipe_hf.evaluation.measuring.calibration import reliability_diagram
from recipe_hf.evaluation.reporting.tables import markdown_rows
from recipe_hf.modeling.verifier import as_update
from recipe_hf.training.verification.sampling import mistyped
from recipe_hf.training.verification.written import Statement, load_families, load_statements, load_updates, number_of

FOLDER = Path(__file__).parent
WORDINGS = ("unseen_wordings", "unseen_wordings_near")
CHAT = ("clinc150", "clinc150-oos")
CALIBRATED = ("statements", "families")
MAX_DRAWN, MAX_WRONG = 300, 100
#: What somebody may have said before.
STORIES = (
    "Hello! I hope you can help me with this one.",
    "good morning, sorry, me again.",
    "My sister and I have been arguing about it all through dinner, and neither of us would give in.",
    "Thanks, that worked. Something else:",
)


class Asked(NamedTuple):
    """A text of some kind, and the place of the fact that should be used for it, if any should."""

    kind: str
    text: str
    place: int | None = None


class FactSet(NamedTuple):
    """Facts to hold at once, and what to ask."""

    name: str
    facts: list[Any]
    asked: list[Asked]


class Judged(NamedTuple):
    """A text of some kind, and whether it came out as it should."""

    kind: str
    text: str
    is_right: bool


def fact_sets(counterfact: Path | None, chat: Path | None) -> Iterator[FactSet]:
    """The sets that are looked up."""
    for name in WORDINGS:
        examples = load_examples(FOLDER / f"{name}.jsonl")
        asked = [Asked("prompts", fact.prompt, place) for place, fact in enumerate(examples)]
        reworded = [(text, place) for place, fact in enumerate(examples) for text in fact.rephrasings]
        asked += [Asked("rephrasings", *each) for each in reworded]
        asked += [Asked("other properties", fact.unrelated[0][0]) for fact in examples]
        asked += [Asked("other subjects", fact.unrelated[1][0]) for fact in examples]
        yield FactSet(name, [(fact.prompt, fact.answer) for fact in examples], asked)
    rows = exam(load_statements())
    misses = [Asked(f"misses, {kind}", text) for row in rows for text, kind in row.misses]
    yield FactSet("statements", [row.text for row in rows], [*asks(rows), *as_typed(asks(rows)), *misses])
    rows = exam(load_families())
    yield FactSet("families", [row.text for row in rows], asks(rows))
    if counterfact is not None and chat is not None:
        facts = [(example.prompt, example.answer) for example in load_examples(counterfact)]
        texts = [(row.get("source"), text) for row in read_rows(chat) for text in row.texts("texts")]
        asked = [Asked(kind, text) for kind, text in texts if kind in CHAT and number_of(text) % 2 == 0]
        yield FactSet("chat", facts, asked)


def updates() -> FactSet:
    """Old statements, with newer ones that were written for them: those of families are made up."""
    of_families = {row.text for row in load_families()}
    rows = [row for row in exam(load_updates()) if row.asks and row.answer is None and row.text not in of_families]
    mark = as_update("")
    newer: dict[str, list[tuple[str, int]]] = {
        "retires": [(text, place) for place, row in enumerate(rows) for text in row.asks],
        "stays": [(text, place) for place, row in enumerate(rows) for text, _ in row.misses],
        "unrelated": [(row.text, place) for place, row in enumerate(rows)],
    }
    drawn = [
        Asked(kind, text.removeprefix(mark), place)
        for kind, texts in newer.items()
        for text, place in random.Random(0).sample(texts, min(MAX_DRAWN, len(texts)))
    ]
    return FactSet("updates", [row.text for row in rows], drawn)


def exam(rows: Iterable[Statement]) -> list[Statement]:
    """The statements that no training read."""
    return [row for row in rows if row.part == "exam"]


def asks(rows: Sequence[Statement]) -> list[Asked]:
    """What statements answer."""
    return [Asked("asks", text, place) for place, row in enumerate(rows) for text in row.asks]


def as_typed(asked: Sequence[Asked]) -> Iterator[Asked]:
    """Some of these in lower case, with typing errors, and after something else."""
    rng = random.Random(0)
    for _, text, place in rng.sample(asked, min(MAX_DRAWN, len(asked))):
        yield Asked("asks in lower case", text.lower(), place)
        yield Asked("asks mistyped", mistyped(text, rng), place)
        yield Asked("asks after a story", f"{rng.choice(STORIES)} {text}", place)


def judged(asked: Sequence[Asked], ids: Sequence[int], hits: Sequence[Retrieval]) -> Iterator[Judged]:
    """Judges look-ups: the right fact is used, or none where none should be."""
    for (kind, text, place), hit in zip(asked, hits, strict=True):
        used = hit.id if hit.fired else None
        yield Judged(kind, text, used == (None if place is None else ids[place]))
        if kind == "asks":
            yield Judged("asks, another used", text, used in (None, ids[place or 0]))
        if kind.startswith("misses, "):
            yield Judged("misses", text, used is None)


def updated(model: RecipeForCausalLM, old: FactSet) -> Iterator[Judged]:
    """Judges which old statements newer ones retire, one at a time."""
    model.knowledge.clear()
    ids = model.add_knowledge(old.facts)
    held = model.knowledge
    for kind, text, place in old.asked:
        gone = retired(model, held, text)
        others = gone - {ids[place or 0]}
        if kind == "unrelated":
            yield Judged(kind, text, not others)
        else:
            yield Judged(kind, text, (gone != others) == (kind == "retires"))
            yield Judged(f"{kind}, another retired", text, not others)
    model.knowledge = held


def retired(model: RecipeForCausalLM, held: KnowledgeBase, text: str) -> set[int]:
    """Ids of the facts held whose place a new statement takes; it is added to a copy."""
    model.knowledge = held.snapshot()
    model.add_knowledge([text], on_conflict="supersede")
    return {fact.id for fact in held} - {fact.id for fact in model.knowledge}


def counts(rows: Iterable[Judged]) -> dict[str, dict[str, Any]]:
    """For each kind how many texts there are, for how many it came out as it should, and some of the others."""
    found: dict[str, dict[str, Any]] = {}
    for kind, text, is_right in rows:
        count = found.setdefault(kind, {"asked": 0, "right": 0, "wrong": []})
        count["asked"] += 1
        count["right"] += is_right
        if not is_right and len(count["wrong"]) < MAX_WRONG:
            count["wrong"].append(text)
    return found


def calibration(asked: Sequence[Asked], ids: Sequence[int], hits: Sequence[Retrieval]) -> dict[str, Any]:
    """How often retrievals that fired are right, where they are sure and where not, and the error of all estimates."""
    rights = [place is not None and hit.id == ids[place] for (*_, place), hit in zip(asked, hits, strict=True)]
    rows = list(zip(hits, rights, strict=True))
    found = {
        "at least 0.9": [is_right for hit, is_right in rows if hit.fired and hit.probability >= 0.9],
        "0.5 to 0.9": [is_right for hit, is_right in rows if hit.fired and hit.probability < 0.9],
    }
    error = reliability_diagram([(hit.probability, is_right) for hit, is_right in rows])["error"]
    return {name: {"fired": len(fired), "right": sum(fired)} for name, fired in found.items()} | {"error": error}


def measure(model: RecipeForCausalLM, sets: Iterable[FactSet], old: FactSet) -> dict[str, Any]:
    """For "without" and, if there is a verifier, "with", the counts of each set, and the calibration."""
    forms = {"without": None} | ({} if model.verifier is None else {"with": model.verifier})
    record: dict[str, Any] = {form: {"sets": {}, "calibration": {}} for form in forms}
    for name, facts, asked in sets:
        model.knowledge.clear()
        ids = model.add_knowledge(facts)
        model.query_cache_size = len(asked)  # Both forms encode the same queries.
        for form, model.verifier in forms.items():
            hits = model.retrieve([text for _, text, _ in asked])
            record[form]["sets"][name] = counts(judged(asked, ids, hits))
            if name in CALIBRATED:
                record[form]["calibration"][name] = calibration(asked, ids, hits)
    if model.verifier is not None and model.config.supersede_threshold is not None:
        record["with"]["sets"][old.name] = counts(updated(model, old))
    return record


def table(record: dict[str, Any]) -> str:
    """How many came out as they should, in Markdown."""
    rows = [["facts", "asked", *record]]
    for name, kinds in record[list(record)[-1]]["sets"].items():
        for kind in kinds:
            found = [form["sets"].get(name, {}).get(kind) for form in record.values()]
            rows.append([name, kind, *(f"{one['right']:,} of {one['asked']:,}" if one else "–" for one in found)])
    return markdown_rows(rows, first="---")


def main(
    checkpoint: Path,
    counterfact: Annotated[Path | None, typer.Option(help="Facts that are held for the chat.")] = None,
    chat: Annotated[Path | None, typer.Option(help="JSON lines with the chat: texts and source.")] = None,
    output: Annotated[Path | None, typer.Option(help="JSON file.")] = None,
) -> None:
    """Measures a checkpoint without its verifier and with it, and prints how many texts came out as they should."""
    model = RecipeForCausalLM.from_pretrained(checkpoint, base_model=False)
    record = measure(model, fact_sets(counterfact, chat), updates())
    print(table(record))
    for form, found in record.items():
        for name, of in found["calibration"].items():
            print(f"{name}, {form} the verifier: {json.dumps(of)}")
    if output is not None:
        output.write_text(json.dumps(record, ensure_ascii=False) + "\n", encoding="utf-8")


if __name__ == "__main__":
    typer.run(main)
