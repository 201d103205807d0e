"""A million realistic facts made of real prompts, subjects and answers, with their keys by a trained checkpoint.

The edits of CounterFact and KnowEdit come first, word for word. The others are made of these: a prompt with its
subject taken out is a template, kept if 20 subjects or more have it; a template is about people, works or other
things; it is filled with each subject that the data ask such things about, and one of the answers that the data give
in this template. So the same subject has tens of facts and the same template thousands, which is what makes search
hard. Only half of a statement may be true.

    python benchmarks/real_facts.py             # keys in runs/real-facts; goes on where it stopped
    python benchmarks/real_facts.py --reverse   # beside it, from the other end
"""

from __future__ import annotations

import json
import random
import re
import time
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
import typer
from numpy.typing import NDArray
from safetensors.torch import load_file
from transformers import AutoTokenizer

from recipe_hf import RecipeConfig
from recipe_hf.knowledge.facts import compose_statement
from recipe_hf.modeling.loading import ENCODER_DIRECTORY, prepare_encoder_tokenizer
from recipe_hf.modeling.retriever import Retriever

FILES = (
    "counterfact-train.json",
    "knowedit-zsre.json",
    "knowedit-wiki-recent.json",
    "knowedit-wiki-counterfact.json",
)
CHECKPOINT = Path("checkpoints/recipe-smollm2-135m")
KEYS = Path("runs/real-facts")
SHARD = 10_000
MIN_SUBJECTS = 20

# What a template asks about: the first pattern that fits decides, and "thing" (a place, an organisation) if none does.
_KINDS = {
    "person": re.compile(
        r"spe?[ao]k|mother|native|writes|play|citizen|born|works? |worked|employ|occupation|profession|perform|died|"
        r"life|passed away|expired|succumbed|religion|position|title|expert|specializ|domain|field|area|used by|"
        r"gender|sex|birth|father|sibling|spouse|child|alma mater|award|given name|burial|alive|death|league|genre"
    ),
    "work": re.compile(
        r"created|develop|produc|debut|aired|released|premiere|original language|language of \{\} (is|was)|written|"
        r"own(ed|er)|author|director|composer|cast|manufactured"
    ),
}


@dataclass(frozen=True)
class RealFact:
    """A prompt with its answer, and what asks for it in other words."""

    prompt: str
    answer: str
    rephrasing: str | None = None
    unrelated: str | None = None


def real_facts(data: Path, num_facts: int) -> list[RealFact]:
    """The first `num_facts` of the facts; always the same, whatever their number."""
    rows = [row for name in FILES for row in json.loads((data / name).read_text(encoding="utf-8"))]
    answers, subjects = _templates(rows)
    facts: dict[str, RealFact] = {}
    for row in rows:
        prompt, answer, unrelated = row["prompt"], _first(row["target_new"]), row.get("locality_prompt")
        if answer:
            facts.setdefault(prompt, RealFact(prompt, answer, row.get("rephrase_prompt"), unrelated))
    draw = random.Random(0)
    made = [(template, subject) for template in answers for subject in subjects[_kind(template)]]
    draw.shuffle(made)
    for template, subject in made:
        prompt = template.replace("{}", subject)
        facts.setdefault(prompt, RealFact(prompt, draw.choice(answers[template])))
        if len(facts) >= num_facts:
            break
    return list(facts.values())[:num_facts]


def _templates(rows: list[dict[str, Any]]) -> tuple[dict[str, list[str]], dict[str, list[str]]]:
    """Answers of each template, and subjects of each kind, in a fixed order."""
    subjects_of, answers_of = defaultdict(set), defaultdict(set)
    for row in rows:
        asked = [(row["prompt"], row["target_new"]), (row["prompt"], row.get("ground_truth"))]
        for group in ("locality", "portability"):
            for questions in row.get(group, {}).values():
                asked += [(question["prompt"], question["ground_truth"]) for question in questions]
        for prompt, answer in asked:
            if row["subject"] in prompt:
                template = prompt.replace(row["subject"], "{}")
                subjects_of[template].add(row["subject"])
                answers_of[template] |= {_first(answer)} - {None, ""}
    kept = sorted(template for template, found in subjects_of.items() if len(found) >= MIN_SUBJECTS)
    # CounterFact's unrelated prompts ask about other subjects, which it does not name apart.
    patterns = [
        (template, re.compile(re.escape(template).replace(re.escape("{}"), "(.+)")))
        for template in sorted(kept, key=len, reverse=True)
    ]
    for row in rows:
        matches = ((template, pattern.fullmatch(row.get("locality_prompt", ""))) for template, pattern in patterns)
        template, match = next(((template, match) for template, match in matches if match), ("", None))
        if match:
            subjects_of[template].add(match[1])
            answers_of[template].add(row["locality_ground_truth"])
    subjects = defaultdict(set)
    for template in kept:
        subjects[_kind(template)] |= subjects_of[template]
    return (
        {template: sorted(answers_of[template]) for template in kept if answers_of[template]},
        {kind: sorted(found) for kind, found in subjects.items()},
    )


def _kind(template: str) -> str:
    return next((kind for kind, pattern in _KINDS.items() if pattern.search(template)), "thing")


def _first(answer: Any) -> str | None:
    while isinstance(answer, list):
        answer = answer[0] if answer else None
    return answer


def load_retriever(checkpoint: Path = CHECKPOINT) -> Retriever:
    """The retriever of a checkpoint, without its base model."""
    retriever = Retriever(RecipeConfig.from_pretrained(checkpoint))
    tensors = load_file(checkpoint / "model.safetensors")
    prefix = "retriever."
    retriever.load_state_dict({n.removeprefix(prefix): t for n, t in tensors.items() if n.startswith(prefix)})
    retriever.tokenizer = prepare_encoder_tokenizer(AutoTokenizer.from_pretrained(checkpoint / ENCODER_DIRECTORY))
    return retriever.eval()


def shards(directory: Path = KEYS) -> list[Path]:
    """The files of keys there are, up to the first that is missing."""
    paths = []
    while (path := directory / f"{len(paths):03d}.npy").exists():
        paths.append(path)
    return paths


def load_keys(num_facts: int, directory: Path = KEYS) -> NDArray[np.float32]:
    """The keys of the first `num_facts` facts, or of as many as are there: `[n, dim]`."""
    keys = [np.load(path, mmap_mode="r") for path in shards(directory)[: -(-num_facts // SHARD)]]
    n, filled = min(num_facts, sum(map(len, keys))), 0
    whole = np.empty((n, keys[0].shape[1]), np.float32)
    for part in keys:
        part = part[: n - filled]
        whole[filled : filled + len(part)] = part
        filled += len(part)
    return whole


def main(
    data: Annotated[Path, typer.Option()] = Path("data"),
    num_facts: Annotated[int, typer.Option()] = 1_000_000,
    output: Annotated[Path, typer.Option()] = KEYS,
    batch_size: Annotated[int, typer.Option()] = 256,
    reverse: Annotated[
        bool, typer.Option("--reverse", help="Begin at the end, as the second of two processes.")
    ] = False,
) -> None:
    """Encodes the facts that have no keys yet."""
    facts, retriever = real_facts(data, num_facts), load_retriever()
    if len(facts) < num_facts:
        raise typer.BadParameter(f"the data make {len(facts):,} facts, fewer than --num-facts {num_facts:,}.")
    output.mkdir(parents=True, exist_ok=True)
    numbers = range(-(-num_facts // SHARD))
    for number in reversed(numbers) if reverse else numbers:
        path = output / f"{number:03d}.npy"
        if path.exists():
            continue
        started = time.perf_counter()
        chosen = facts[number * SHARD : (number + 1) * SHARD]
        statements = [compose_statement(fact.prompt, fact.answer) for fact in chosen]
        with torch.inference_mode():
            keys = retriever.encode_statements(statements, batch_size).numpy()
        part = path.with_suffix(".part.npy")
        np.save(part, keys)
        part.rename(path)
        rate = len(chosen) / (time.perf_counter() - started)
        print(f"{number * SHARD + len(chosen):,} of {num_facts:,} keys, {rate:.0f} a second", flush=True)


if __name__ == "__main__":
    typer.run(main)
