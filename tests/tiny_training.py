"""A tiny training run for tests: invented facts, a base and an encoder in directories, a schedule of every stage."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from recipe_hf.datasets import EditExample
from recipe_hf.training.config import StageConfig, TrainingConfig
from recipe_hf.training.yaml_config import field_names
from tests.tiny_recipe import base_tokenizer, encoder_tokenizer, tiny_base, tiny_encoder

_SUBJECTS = [
    f"{first} {last}" for first in ("Ann", "Bo", "Cy", "Dee", "Eli") for last in ("Lee", "Ray", "Orr", "Fox", "Ito")
]
_ANSWERS = ["Oslo", "Rome", "New York", "Lima", "Paris", "Rio"]
_THINGS = ["Snow", "Grass", "Coal", "Blood"]
_COLOURS = ["white", "green", "black", "dark red"]

EXAMPLES = [
    EditExample(
        prompt=f"{subject} lives in",
        answer=_ANSWERS[number % 6],
        subject=subject,
        rephrasings=(f"The home of {subject} is",),
        unrelated=((f"{_THINGS[number % 4]} number {number} is", _COLOURS[number % 4]),),
    )
    for number, subject in enumerate(_SUBJECTS)
]

STAGES = [
    StageConfig(
        name="warm start",
        steps=2,
        prompts="answer",
        editing_batch_size=3,
        learning_rate=0.01,
        loss_weights={"locality": 0.0, "continuation": 0.0},
    ),
    StageConfig(name="heads", steps=3, contrastive_batch_size=6, learning_rate=0.001, answer_variants=2),
    StageConfig(name="encoder", steps=2, contrastive_batch_size=6, learning_rate=0.001, encoder_learning_rate=0.001),
    StageConfig(
        name="joint",
        steps=3,
        contrastive_batch_size=6,
        editing_batch_size=3,
        learning_rate=0.0005,
        sentinel_learning_rate=0.002,
        prompt_learning_rate=0.0001,
        encoder_learning_rate=0.001,
    ),
]


def write_counterfact(path: Path, examples: list[EditExample] = EXAMPLES) -> Path:
    """Writes examples as a CounterFact file."""
    rows = [
        {
            "prompt": e.prompt,
            "target_new": e.answer,
            "subject": e.subject,
            "rephrase_prompt": e.rephrase_prompt,
            "locality_prompt": e.locality_prompt,
            "locality_ground_truth": e.locality_answer,
        }
        for e in examples
    ]
    path.write_text(json.dumps(rows))
    return path


def write_parts(directory: Path) -> Path:
    """Writes `base`, `encoder` and `train.json` into a directory."""
    tiny_base().save_pretrained(directory / "base")
    base_tokenizer().save_pretrained(directory / "base")
    tiny_encoder().save_pretrained(directory / "encoder")
    encoder_tokenizer().save_pretrained(directory / "encoder")
    write_counterfact(directory / "train.json")
    return directory


def grouped(**fields: Any) -> dict[str, Any]:
    """Fields by their own names, each in its group."""
    values: dict[str, Any] = {}
    for name in field_names(TrainingConfig):
        *groups, field = name.split(".")
        if field in fields and "N" not in groups:
            group = values
            for part in groups:
                group = group.setdefault(part, {})
            group[field] = fields.pop(field)
    return values | fields


def tiny_config(parts: Path, output_dir: Path, **changes: Any) -> TrainingConfig:
    """A run of ten steps over `parts`, with a checkpoint and a log line at each."""
    values: dict[str, Any] = {
        "base_model": str(parts / "base"),
        "encoder": str(parts / "encoder"),
        "train_file": str(parts / "train.json"),
        "output_dir": str(output_dir),
        "stages": STAGES,
        "knowledge_dim": 64,
        "num_sentinel_tokens": 4,
        "num_eval_examples": 6,
        "num_eval_questions": 4,
        "eval_steps": 4,
        "save_steps": 1,
        "logging_steps": 1,
        "answer_resampling": 0.7,
        "subject_share": 0.3,
        "key_memory": 10,
    }
    return TrainingConfig(**grouped(**values | changes))
