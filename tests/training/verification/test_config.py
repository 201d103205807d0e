from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from torch import nn

from recipe_hf.training.verification.config import SourceConfig, VerifierConfig
from recipe_hf.training.verification.rows import VerificationData
from recipe_hf.training.verification.start import run_inputs

CONFIG = Path(__file__).parents[3] / "recipe_hf" / "training" / "configs" / "verifier.yaml"
VALUES: dict[str, Any] = {
    "checkpoint": "runs/release",
    "output_dir": "runs/verifier",
    "steps": 10,
    "sources": [{"kind": "statements", "share": 1}, {"kind": "chat", "path": "chat.jsonl", "share": 0.1}],
}


def read(directory: Path, **changes: Any) -> VerifierConfig:
    path = directory / "verifier.yaml"
    path.write_text(yaml.safe_dump(VALUES | changes))
    return VerifierConfig.from_yaml(path)


def test_released_configuration_is_valid():
    config = VerifierConfig.from_yaml(CONFIG, {"output_dir": "elsewhere"})
    assert config.output_dir == "elsewhere" and config.checkpoint == "checkpoints/recipe-smollm2-135m"
    assert sum(source.share for source in config.sources if source.kind != "chat") == pytest.approx(1.1)
    assert config.sources[0].name == "statements" and "squad2" in {source.name for source in config.sources}


def source(**changes: Any) -> dict[str, Any]:
    return {"sources": [VALUES["sources"][0], {"kind": "pairs", "path": "p.jsonl", "share": 1} | changes]}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"stepz": 1}, "unknown field stepz; the nearest is steps."),
        ({"batch_size": 7}, "batch_size must be a multiple of 2, got 7."),
        ({"steps": 0}, "steps must be greater than 0, got 0."),
        ({"learning_rate": -1}, "learning_rate must be greater than or equal to 0, got -1."),
        ({"mined_share": 1.5}, "mined_share must be less than or equal to 1, got 1.5."),
        ({"mixed_precision": "fp16"}, "mixed_precision must be 'no' or 'bf16', got 'fp16'."),
        ({"sources": VALUES["sources"][1:]}, "sources must be at least one with statements, got ['chat']."),
        ({"sources": {}}, "sources must be a valid list, got {}."),
        (source(path="statements.jsonl"), "names of sources must be all different, got ['statements', 'statements']."),
        (source(share=0), "sources.1.share must be greater than 0, got 0."),
        (
            source(kind="pair"),
            "sources.1.kind must be 'statements', 'families', 'updates', 'pairs', 'edits' or 'chat', got 'pair'.",
        ),
        (source(path=None), "sources.1.path must be a path with kind: pairs, got None."),
        (source(kind="statements"), "sources.1.path must be null with kind: statements, got 'p.jsonl'."),
        (source(half="train"), "sources.1.half must be null but with kind: edits, got 'train'."),
        (
            source(kind="edits", source="x"),
            "sources.1.source must be null but with kind: pairs or chat, got 'x'",
        ),
        (source(max_rows=0), "sources.1.max_rows must be greater than 0, got 0."),
        (source(rows=3), "unknown field sources.1.rows; the nearest is sources.1.max_rows."),
    ],
)
def test_bad_values_are_named(tmp_path: Path, changes: dict[str, Any], message: str):
    with pytest.raises(ValueError) as caught:
        read(tmp_path, **changes)
    assert message in str(caught.value)


def test_name_is_the_source_or_the_file():
    assert SourceConfig(kind="pairs", share=1.0, path="data/p.jsonl", source="squad2").name == "squad2"
    assert SourceConfig(kind="edits", share=1.0, path="data/knowedit-zsre.json").name == "knowedit-zsre"


def test_what_tells_the_runs_of_families_apart_stays():
    """A run of it is resumed by later versions: none of these fields may get another name, value or type."""
    nothing = VerificationData(*([] for _ in VerificationData._fields))
    layer = nn.Linear(1, 1)
    inputs = run_inputs(VerifierConfig.from_yaml(CONFIG.with_stem("verifier-families")), nothing, layer, layer)
    sources = inputs.pop("sources")
    assert (len(sources), sources[0], sources[3]) == (
        22,
        {"name": "families", "share": 0.34},
        {"name": "counterfact-train", "share": 0.15},
    )
    assert inputs.pop("data").keys() == {"statements", "chat"} and inputs.pop("start").keys() == {
        "retriever",
        "verifier",
    }
    assert json.dumps(inputs) == (
        '{"steps": 3000, "num_verified_facts": 6, "verifier_margin": 1.5, "verifier_gap": 0.8, "batch_size": 32, '
        '"mined_share": 0.28, "learning_rate": 0.00012, "head_learning_rate": 0.0005, "warmup_steps": 100, '
        '"weight_decay": 0.01, "superseded_share": 0.01, "label_smoothing": 0.02, "pair_weight": 0.3, '
        '"answer_weight": 0.15, "max_grad_norm": 1.0, "mixed_precision": "bf16", "num_eval_pairs": 900, "seed": 0}'
    )
