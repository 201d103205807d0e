"""What a base says of facts: told by continuous prompts, trained for it, and as hidden text, which needs no training.

All facts are held at once, as prompt and answer. Each form is asked the facts' prompts, a rephrasing of each, and an
unrelated question of each. `strict` is the share of answer tokens that are the most likely ones, all before them being
given; `free` that of greedy outputs that begin with the answer. Of unrelated questions it is what stays as the base
alone says it.

    python benchmarks/prompt_forms.py checkpoints/recipe-smollm2-135m --base gemma-3-270m-q4_k_m.gguf \
        --document docs/bases.md
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from statistics import mean
from typing import Annotated, Any

import torch
import typer
from report import publish, table

from recipe_hf import KnowledgeBase, RecipeForCausalLM
from recipe_hf.datasets import EditExample, load_examples
from recipe_hf.evaluation.asking.protocols import normalize_answer
from recipe_hf.teacher_forcing import tokenize_rows

BATCH = 8
EXTRA_TOKENS = 4
KINDS = ("prompts", "rephrasings", "unrelated")
NAMES = {"continuous": "continuous prompts", "text": "hidden text", None: "not told"}


class Said:
    """What a model says to questions.

    Attributes:
        forced: The most likely tokens at the answer's positions, a list for each question.
        written: Greedy output.
        prompt_tokens: How many tokens were prefixed to each.
    """

    def __init__(self, model: RecipeForCausalLM, texts: Sequence[str], answers: Sequence[str]) -> None:
        self.forced: list[list[int]] = []
        self.written: list[str] = []
        self.prompt_tokens: list[int] = []
        tokenizer: Any = model.tokenizer
        rows = tokenize_rows(tokenizer, texts, answers)
        self.answer_ids = [row.answer_ids for row in rows]
        for start in range(0, len(rows), BATCH):
            chosen, asked = rows[start : start + BATCH], list(texts[start : start + BATCH])
            longest = max(len(row.answer_ids) for row in chosen)
            ids = [{"input_ids": row.prompt_ids + row.answer_ids} for row in chosen]
            batch = tokenizer.pad(ids, return_tensors="pt", padding_side="left").to(model.device)
            with torch.no_grad():
                logits = model(**batch, queries=asked, logits_to_keep=longest + 1).logits[:, :-1]
            predicted = logits.argmax(-1).tolist()
            self.forced += [tokens[-len(row.answer_ids) :] for tokens, row in zip(predicted, chosen, strict=True)]
            batch = tokenizer(asked, return_tensors="pt", padding=True, padding_side="left").to(model.device)
            output = model.generate(
                **batch,
                max_new_tokens=longest + EXTRA_TOKENS,
                do_sample=False,
                return_dict_in_generate=True,
            )
            new = output.sequences[:, batch["input_ids"].shape[1] :]
            self.written += [normalize_answer(text) for text in tokenizer.batch_decode(new, skip_special_tokens=True)]
            self.prompt_tokens += [hit.num_prompt_tokens for hit in output.retrievals]

    def answered(self, answers: Sequence[str]) -> tuple[float, float]:
        """The share of answers that are said: forced, and freely."""
        free = [w.startswith(normalize_answer(a)) for w, a in zip(self.written, answers, strict=True)]
        return _share_equal(self.forced, self.answer_ids), mean(free)

    def like(self, other: Said) -> tuple[float, float]:
        """The share of what is said as another one says it: forced, and freely."""
        return _share_equal(self.forced, other.forced), mean(map(str.__eq__, self.written, other.written))


def _share_equal(said: Sequence[Sequence[int]], expected: Sequence[Sequence[int]]) -> float:
    return mean(mean(map(int.__eq__, one, other)) for one, other in zip(said, expected, strict=True))


def measure(model: RecipeForCausalLM, examples: Sequence[EditExample], name: str) -> Iterator[list[str]]:
    """The rows of the table: the base alone, and each form that the model has."""
    questions = {
        "prompts": ([e.prompt for e in examples], [e.answer for e in examples]),
        "rephrasings": ([e.rephrase_prompt for e in examples], [e.answer for e in examples]),
        "unrelated": ([e.locality_prompt for e in examples], [e.locality_answer for e in examples]),
    }
    forms = [None, "text"] if model.prompt_encoder is None else [None, "continuous", "text"]
    alone: dict[str, Said] = {}
    for form in forms:
        model.knowledge = KnowledgeBase(model.config.knowledge_dim)
        if form is not None:
            model.config.prompt_form = form
            model.add_knowledge([(e.prompt, e.answer) for e in examples])
        said = {kind: Said(model, *questions[kind]) for kind in KINDS}
        alone = alone or said
        shares = {kind: said[kind].answered(questions[kind][1]) for kind in KINDS[:2]}
        shares["unrelated"] = said["unrelated"].like(alone["unrelated"])
        counts = [number for number in said["prompts"].prompt_tokens if number]
        tokens = f"{mean(counts):.1f}" if counts else ""
        figures = [f"{100 * shares[kind][way]:.1f}" for way in (0, 1) for kind in KINDS]
        yield [name, NAMES[form], tokens, *figures]


def main(
    checkpoint: Annotated[Path, typer.Argument(help="A checkpoint, with its trained prompts.")],
    data: Annotated[Path, typer.Option(help="The facts, with rephrasings and unrelated questions.")] = Path(
        "data/counterfact-edit.json"
    ),
    facts: Annotated[int, typer.Option(help="How many of them.")] = 100,
    base_model: Annotated[
        str | None, typer.Option(help="The checkpoint's base, where it is not found by name.")
    ] = None,
    base: Annotated[list[str] | None, typer.Option(help="A further base, which is told text alone.")] = None,
    document: Annotated[Path | None, typer.Option(help="A page to put the table on.")] = None,
) -> None:
    """Measures each form on the same facts."""
    examples = load_examples(data)[:facts]
    rows: list[list[str]] = []
    for source in [None, *(base or [])]:
        model = (
            RecipeForCausalLM.from_pretrained(checkpoint, base_model=base_model)
            if source is None
            else RecipeForCausalLM.from_base_pretrained(source, retriever=checkpoint)
        )
        name = Path(source or model.config.base_model_name_or_path or "").name
        for row in measure(model, examples, name):
            rows.append(row)
            print(*row, sep=" | ", flush=True)
    header = ["base", "facts are", "tokens", *(f"{kind}, {way}" for way in ("strict", "free") for kind in KINDS)]
    text = f"{len(examples):,} facts held at once; per cent:\n\n{table(header, rows, num_left=2)}"
    publish("prompt forms", text, document)


if __name__ == "__main__":
    typer.run(main)
