"""A tiny run that trains a verifier for tests: a checkpoint, questions about invented people, chat."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from transformers import BertConfig, BertModel

from recipe_hf import RecipeForCausalLM
from recipe_hf.training.verification.config import SourceConfig, VerifierConfig
from tests.tiny_recipe import base_tokenizer, encoder_tokenizer, tiny_base
from tests.tiny_training import EXAMPLES, write_counterfact

PEOPLE = [
    f"{first} {last}" for first in ("Ann", "Bo", "Cy", "Dee", "Eli", "Flo") for last in ("Lee", "Ray", "Fox", "Ito")
]
CHAT = [f"please play song {number} for me" for number in range(12)]


def write_rows(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def pair_rows(people: list[str] = PEOPLE) -> list[dict[str, Any]]:
    return [
        {
            "statement": f"{person} lives in town {number}.",
            "asks": [f"Where does {person} live?"],
            "misses": [f"When was {person} born?", f"Who taught {person}?"],
            "source": "people",
        }
        for number, person in enumerate(people)
    ]


def write_parts(directory: Path) -> Path:
    """Writes `checkpoint`, `pairs.jsonl`, `edits.json` and `chat.jsonl` into a directory."""
    torch.manual_seed(0)
    encoder = BertModel(
        BertConfig(
            vocab_size=len(encoder_tokenizer()),
            hidden_size=32,
            num_hidden_layers=2,
            num_attention_heads=2,
            intermediate_size=64,
            max_position_embeddings=256,
            initializer_range=0.1,
        )
    )
    model = RecipeForCausalLM.from_base_pretrained(
        tiny_base(),
        encoder,
        tokenizer=base_tokenizer(),
        encoder_tokenizer=encoder_tokenizer(),
        knowledge_dim=64,
        num_sentinel_tokens=4,
    )
    model.add_knowledge(["Zork was written by Infocom."])
    model.save_pretrained(directory / "checkpoint")
    encoder.save_pretrained(directory / "encoder")
    encoder_tokenizer().save_pretrained(directory / "encoder")
    write_rows(directory / "pairs.jsonl", pair_rows())
    write_counterfact(directory / "edits.json", EXAMPLES[:12])
    write_rows(directory / "chat.jsonl", [{"texts": [text], "near": [], "source": "songs"} for text in CHAT])
    return directory


def sources(parts: Path) -> list[SourceConfig]:
    return [
        SourceConfig(
            kind="pairs", share=0.7, path=str(parts / "pairs.jsonl"), source="people", num_eval_rows=6, license="MIT"
        ),
        SourceConfig(kind="edits", share=0.2, path=str(parts / "edits.json"), num_eval_rows=3),
        SourceConfig(kind="chat", share=0.1, path=str(parts / "chat.jsonl"), source="songs", num_eval_rows=2),
    ]


def tiny_config(parts: Path, output_dir: Path, **changes: Any) -> VerifierConfig:
    values: dict[str, Any] = {
        "checkpoint": str(parts / "checkpoint"),
        "sources": sources(parts),
        "output_dir": str(output_dir),
        "steps": 6,
        "batch_size": 8,
        "learning_rate": 0.003,
        "head_learning_rate": 0.003,
        "warmup_steps": 2,
        "eval_steps": 3,
        "save_steps": 2,
        "logging_steps": 1,
    }
    return VerifierConfig(**values | changes)
