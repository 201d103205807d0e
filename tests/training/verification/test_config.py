from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from recipe_hf.training.verification.config import SourceConfig, VerifierConfig

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
    config = VerifierConfig.from_yaml(CONFIG, output_dir="elsewhere", checkpoint=None)
    assert config.output_dir == "elsewhere" and config.checkpoint == "checkpoints/recipe-smollm2-135m"
    assert sum(source.share for source in config.sources if source.kind != "chat") == pytest.approx(1.1)
    assert config.sources[0].name == "statements" and "squad2" in {source.name for source in config.sources}


def source(**changes: Any) -> dict[str, Any]:
    return {"sources": [VALUES["sources"][0], {"kind": "pairs", "path": "p.jsonl", "share": 1} | changes]}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"stepz": 1}, "unknown keys stepz; allowed are checkpoint"),
        ({"batch_size": 7}, "batch_size must be an even number of at least 2, got 7."),
        ({"steps": 0}, "steps must be an integer of at least 1, got 0."),
        ({"learning_rate": -1}, "learning_rate must be a number of at least 0, got -1."),
        ({"mined_share": 1.5}, "mined_share must be between 0 and 1, got 1.5."),
        ({"mixed_precision": "fp16"}, "mixed_precision must be one of no, bf16, got 'fp16'."),
        ({"sources": VALUES["sources"][1:]}, "sources must be at least one with statements, got ['chat']."),
        ({"sources": {}}, "must be a mapping with a list of sources."),
        (source(path="statements.jsonl"), "names of sources must be all different, got ['statements', 'statements']."),
        (source(share=0), "share of the source 'p' must be above 0, got 0."),
        (
            source(kind="pair"),
            "kind of the source 'p' must be one of statements, families, updates, pairs, edits, chat, got 'pair'.",
        ),
        (source(path=None), "path of the source 'pairs' must be a path with kind: pairs, got None."),
        (source(kind="statements"), "path of the source 'p' must be null with kind: statements, got 'p.jsonl'."),
        (source(half="train"), "half of the source 'p' must be null but with kind: edits, got 'train'."),
        (
            source(kind="edits", source="x"),
            "source of the source 'x' must be null but with kind: pairs or chat, got 'x'",
        ),
        (source(max_rows=0), "max_rows of the source 'p' must be an integer of at least 1, got 0."),
        (source(rows=3), "sources: unknown keys rows; allowed are kind"),
    ],
)
def test_bad_values_are_named(tmp_path: Path, changes: dict[str, Any], message: str):
    with pytest.raises(ValueError) as caught:
        read(tmp_path, **changes)
    assert message in str(caught.value)


def test_name_is_the_source_or_the_file():
    assert SourceConfig("pairs", 1.0, "data/p.jsonl", "squad2").name == "squad2"
    assert SourceConfig("edits", 1.0, "data/knowedit-zsre.json").name == "knowedit-zsre"
