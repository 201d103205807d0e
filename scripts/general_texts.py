"""Texts of all kinds, sampled from a base LLM: what the gate must leave alone (docs/training.md)."""

from __future__ import annotations

import json
import random
from itertools import cycle, islice
from pathlib import Path
from typing import Annotated

import torch
import typer
from tqdm.auto import tqdm
from transformers import set_seed

from recipe_hf.modeling.frozen_base import load_base, load_tokenizer, prepare_tokenizer

BEGINNINGS = [
    "Question:",
    "Question: Which of the following",
    "Question: What is the",
    "Question: If",
    "Question: How do I",
    "How to",
    "To make a",
    "What happens when you",
    "Why",
    "Who",
    "Where",
    "When",
    "A patient",
    "The court",
    "In economics,",
    "In physics,",
    "In computer science,",
    "The theory of",
    "Find the",
    "The government",
    "The company",
    "The president said",
    "Police",
    "Scientists",
    "On Monday,",
    "In 19",
    "According to",
    "He",
    "She",
    "They",
    "It is",
    "Write a",
    "Can you",
    "Explain",
    "Please",
    "I",
    "The",
    "A",
    "def",
    "Once upon a time",
]


@torch.inference_mode()
def main(
    base_model: Annotated[str, typer.Argument(help="Hub id, directory or GGUF file of the base.")],
    output: Annotated[Path, typer.Argument(help="JSONL file to write, one text to a line.")],
    num_texts: Annotated[int, typer.Option(min=1)] = 4000,
    batch_size: Annotated[int, typer.Option(min=1)] = 64,
    max_new_tokens: Annotated[int, typer.Option(min=8, help="Of the longest texts; the shortest have 8.")] = 72,
    seed: int = 0,
) -> None:
    """Samples texts from a base LLM, as many for each of several beginnings, of all lengths."""
    set_seed(seed)
    base = load_base(base_model, dtype=torch.float32)
    tokenizer = prepare_tokenizer(load_tokenizer(base_model))
    beginnings = list(islice(cycle(BEGINNINGS), num_texts))
    texts: list[str] = []
    lengths = random.Random(seed)
    for start in tqdm(range(0, num_texts, batch_size), unit="batch"):
        inputs = tokenizer(beginnings[start : start + batch_size], return_tensors="pt", padding=True)
        ids = base.generate(**inputs, do_sample=True, top_p=0.95, max_new_tokens=lengths.randint(8, max_new_tokens))
        texts += tokenizer.batch_decode(ids, skip_special_tokens=True)
        output.write_text("".join(json.dumps({"text": text.strip()}) + "\n" for text in texts), encoding="utf-8")


if __name__ == "__main__":
    typer.run(main)
