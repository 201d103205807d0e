"""Invents facts about properties that the data sets lack, to train a retriever that is asked about anything.

Who leads a company, what a product costs, who someone is married to: properties, wordings and names are those of
recipe_hf/training/properties, further names those of CounterFact's training file; half of the names of people and
companies are put together anew. Nothing here is true, or needs to be.

    python scripts/invented_facts.py data/counterfact-train.json data/invented.jsonl --num-facts 20000
"""

from __future__ import annotations

import calendar
import json
import random
from pathlib import Path
from typing import Annotated, Any

import typer

from recipe_hf.datasets import EditExample, load_examples
from recipe_hf.training.wordings import load_properties, template

MONTHS = list(calendar.month_name)[1:]
UNRELATED_QUESTIONS = 3


def pools(
    groups: list[dict[str, Any]], names: dict[str, list[str]], examples: list[EditExample]
) -> dict[str, list[str]]:
    """Names of each kind: the table's, and those of the facts whose prompts are in the groups that say so."""
    found: dict[str, set[str]] = {kind: set(values) for kind, values in names.items()}
    by_prompt = {prompt: group for group in groups if "rephrasings" in group for prompt in group["prompts"]}
    for example in examples:
        group = by_prompt.get(template(example.prompt, example.subject), {})
        if "subjects" in group:
            found.setdefault(group["subjects"], set()).add(example.subject)
        if "answers" in group:
            found.setdefault(group["answers"], set()).update({example.answer, example.ground_truth} - {""})
    return {name: sorted(values) for name, values in found.items()}


def subject_of(kind: str, known: dict[str, list[str]], rng: random.Random) -> str:
    """A subject; a person or company may have a name put together of two others."""
    first = rng.choice(known[kind])
    if kind in ("person", "company") and rng.random() < 0.5:
        first_words, second_words = first.split(), rng.choice(known[kind]).split()
        return f"{first_words[0]} {second_words[-1]}"
    return first


def resembling(subject: str, kind: str, known: dict[str, list[str]], rng: random.Random) -> str:
    """Another subject with most of the name of this one: a word of another's in it, or another's ending."""
    words, other = subject.split(), subject_of(kind, known, rng).split()
    if len(words) > 1:
        place = rng.choice([0, -1])
        words[place] = other[place]
        return " ".join(words)
    return subject[: len(subject) // 2 + 1] + other[-1][len(other[-1]) // 2 :]


def answer_of(kind: str, known: dict[str, list[str]], rng: random.Random) -> str:
    """An answer of a kind that a pool holds, or that is made here."""
    day, month, year = rng.randint(1, 28), rng.choice(MONTHS), rng.randint(1780, 2026)
    if kind == "year":
        return str(year)
    if kind == "date":
        return rng.choice(
            [f"{day} {month} {year}", f"{month} {day}, {year}", f"{year}-{MONTHS.index(month) + 1:02}-{day:02}"]
        )
    if kind == "number":
        number = rng.randint(1, 10 ** rng.randint(1, 7))
        return rng.choice(
            [f"{number:,}", f"{rng.uniform(0.1, 99):.1f} million", f"${number:,}", f"{rng.uniform(1, 20):.1f}"]
        )
    if kind == "university":
        return rng.choice(["University of {}", "{} University", "{} Institute of Technology"]).format(
            rng.choice(known["city"])
        )
    if kind == "club":
        return rng.choice(["FC {}", "{} United", "{} Rovers", "{} Tigers"]).format(rng.choice(known["city"]))
    return subject_of(kind, known, rng)


def invent(groups: list[dict[str, Any]], known: dict[str, list[str]], rng: random.Random) -> dict[str, Any]:
    """One fact, asked for in all its wordings, with questions that ask for something else."""
    group = rng.choice([g for g in groups if "answers" in g and "rephrasings" not in g])
    kind = group["subjects"]
    subject = subject_of(kind, known, rng)
    wordings = [*group["prompts"], *group["questions"]]
    prompt = rng.choice(group["prompts"] if rng.random() < 0.75 else group["questions"])
    others = rng.sample([g for g in groups if g.get("subjects") == kind and g is not group], UNRELATED_QUESTIONS)
    unrelated = [rng.choice(g["prompts"] + g["questions"]).replace("{}", subject) for g in others]
    while len(unrelated) < 2 * UNRELATED_QUESTIONS:
        other = resembling(subject, kind, known, rng) if rng.random() < 0.5 else subject_of(kind, known, rng)
        if other != subject:
            unrelated.append(rng.choice(wordings).replace("{}", other))
    return {
        "prompt": prompt.replace("{}", subject),
        "answer": answer_of(group["answers"], known, rng),
        "subject": subject,
        "rephrasings": [w.replace("{}", subject) for w in wordings if w != prompt],
        "unrelated": unrelated,
    }


def main(
    train_file: Path,
    output: Path,
    num_facts: Annotated[int, typer.Option(min=1)] = 20_000,
    seed: Annotated[int, typer.Option()] = 0,
) -> None:
    """Writes facts in the layout of your own facts, one to a line."""
    groups, names = load_properties()
    rng = random.Random(seed)
    known = pools(groups, names, load_examples(train_file))
    facts: dict[str, dict[str, Any]] = {}
    while len(facts) < num_facts:
        fact = invent(groups, known, rng)
        facts.setdefault(fact["prompt"], fact)
    output.write_text(
        "".join(f"{json.dumps(fact, ensure_ascii=False)}\n" for fact in facts.values()), encoding="utf-8"
    )
    print(f"{output} holds {len(facts)} facts.")


if __name__ == "__main__":
    typer.run(main)
