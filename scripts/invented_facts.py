"""Invents facts about properties that the data sets lack, to train a retriever that is asked about anything.

Who leads a company, what a product costs, who someone is married to: subjects and answers are those of CounterFact's
training file, with the names of people and companies half of the time put together anew; wordings are those of
recipe_hf/training/wordings.yaml. Nothing here is true, or needs to be.

    python scripts/invented_facts.py data/counterfact-train.json data/invented.jsonl --num-facts 6000
"""

from __future__ import annotations

import calendar
import json
import random
from pathlib import Path
from typing import Annotated, Any

import typer
import yaml

from recipe_hf.datasets import EditExample, load_examples
from recipe_hf.training.wordings import WORDINGS_FILE, template

ANSWERS = {
    "award": (
        "Nobel Prize in Physics, Nobel Prize in Literature, Pulitzer Prize, Booker Prize, Fields Medal, Turing "
        "Award, Academy Award, Grammy Award, Golden Globe, Palme d'Or, Order of Merit, Legion of Honour, Purple "
        "Heart, Kyoto Prize, Wolf Prize, Abel Prize, Emmy Award, Tony Award, Bambi, Goethe Prize, Guggenheim "
        "Fellowship, Order of Lenin, Knight's Cross, Copley Medal, Royal Medal"
    ),
    "disease": (
        "pneumonia, lung cancer, a heart attack, tuberculosis, a stroke, malaria, leukemia, diabetes, drowning, a "
        "car accident, cholera, influenza, kidney failure, typhoid fever, a plane crash, sepsis"
    ),
    "war": (
        "World War I, World War II, Vietnam War, Korean War, American Civil War, Gulf War, Crimean War, Spanish "
        "Civil War, Napoleonic Wars, Boer War, Falklands War, Thirty Years' War, Winter War, Iraq War"
    ),
    "gender": ("male, female, non-binary, transgender woman, intersex"),
    "party": (
        "Labour Party, Conservative Party, Democratic Party, Republican Party, Green Party, Liberal Party, Social "
        "Democratic Party, Communist Party, Christian Democratic Union, Socialist Party, Liberal Democrats, "
        "Centre Party"
    ),
    "color": ("red, blue, green, yellow, purple, orange, black, white, turquoise, pink, brown, grey"),
    "food": (
        "pizza, sushi, goulash, couscous, paella, kimchi, ramen, fish and chips, lasagne, borscht, tacos, "
        "dumplings, pierogi, fondue, curry, falafel, moussaka, ceviche"
    ),
    "currency": (
        "euro, dollar, yen, pound, krone, franc, peso, rupee, real, won, yuan, lira, zloty, ruble, dinar, "
        "shilling, baht, forint"
    ),
    "license": (
        "MIT License, GNU General Public License, Apache License, BSD licenses, Mozilla Public License, Creative "
        "Commons, proprietary license, public domain, Eclipse Public License"
    ),
}
MONTHS = list(calendar.month_name)[1:]
UNRELATED_QUESTIONS = 3


def pools(groups: list[dict[str, Any]], examples: list[EditExample]) -> dict[str, list[str]]:
    """Names and values of each kind, from the facts whose prompts are in the groups that say so."""
    found: dict[str, set[str]] = {name: set(values.split(", ")) for name, values in ANSWERS.items()}
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
        other = subject_of(kind, known, rng)
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
    num_facts: Annotated[int, typer.Option(min=1)] = 6000,
    seed: Annotated[int, typer.Option()] = 0,
) -> None:
    """Writes facts in the layout of your own facts, one to a line."""
    groups = yaml.safe_load(WORDINGS_FILE.read_text(encoding="utf-8"))
    rng = random.Random(seed)
    known = pools(groups, load_examples(train_file))
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
