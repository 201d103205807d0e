"""A copy of a checkpoint with a verifier: all else in it stays as it is, bit for bit."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from huggingface_hub import ModelCard

from ...cards.model_card import model_card
from ...evaluation.records import write_record
from ...modeling.loading import load_config, write_checksums
from ...modeling.verifier import Verifier
from ..saving import beside, replace
from .config import SourceConfig, VerifierConfig

RUN_RECORD = "verifier-training.json"
METRICS_LOG = "verifier-metrics.jsonl"
_HEADING = "## Verifier"


def write_checkpoint(
    checkpoint: Path,
    directory: Path,
    verifier: Verifier,
    config: VerifierConfig,
    record: Mapping[str, Any],
    log: Path,
) -> None:
    """Writes a copy of a checkpoint with a verifier, its training record and log, and a card that tells of it.

    Args:
        checkpoint: The checkpoint.
        directory: Where to; an earlier copy there is replaced.
        verifier: The verifier.
        config: The run that trained it.
        record: What is kept of the run.
        log: Its log.
    """
    new, _ = beside(directory)
    shutil.rmtree(new, ignore_errors=True)
    shutil.copytree(checkpoint, new)
    path = new / "config.json"
    fields = json.loads(path.read_text(encoding="utf-8"))
    fields |= {name: getattr(config, name) for name in ("num_verified_facts", "verifier_margin", "verifier_gap")}
    fields["supersede_threshold"] = record["metrics"]["supersede_threshold"]
    path.write_text(json.dumps(fields, indent=2, sort_keys=True) + "\n", encoding="utf-8")
    verifier.save(new)
    write_checksums(new)
    write_record(new / RUN_RECORD, record)
    shutil.copy(log, new / METRICS_LOG)
    _write_section(new, _section(config, record))
    replace(directory)


def _write_section(directory: Path, section: str) -> None:
    """Puts the section into the card, in place of an earlier one or after all others."""
    path = directory / "README.md"
    card = ModelCard.load(path) if path.is_file() else model_card(load_config(directory))
    before, _, rest = card.text.partition(f"\n{_HEADING}\n")
    _, heading, after = rest.partition("\n## ")
    if not heading:
        before, heading, after = before.partition("\n## Limits\n")
    card.text = f"{before.rstrip()}\n\n{_HEADING}\n\n{section}\n{heading}{after}"
    card.save(path)


def _section(config: VerifierConfig, record: Mapping[str, Any]) -> str:
    metrics = record["metrics"]
    before, after = metrics["brier_uncalibrated"], metrics["brier"]
    before_it = "" if config.verifier is None else " and on from a verifier trained before"
    rows = [
        f"| {source} | {found.get('area_under_curve', '')} | {found.get('found', '')} | "
        f"{', '.join(f'{kind} {share}' for kind, share in found['affirmed'].items())} |"
        for source, found in metrics["development"].items()
    ]
    lines = [
        f"Beyond the paper, `verifier.safetensors` holds a cross-encoder that reads a query together with up to "
        f"{config.num_verified_facts} of the facts nearest to it, and says how likely the fact answers it. "
        f"`from_pretrained(..., verifier=False)` leaves it out.",
        "",
        f"It was trained for {record['step']:,} steps of {config.batch_size} pairs, {record['hours']:.1f} hours on "
        f"{record['device']}, behind this checkpoint's retriever{before_it}, on",
        "",
        *(f"- {_describe(source)}" for source in config.sources),
        "",
        f"and calibrated on development rows of these sources (Brier score {before:.3f} before, {after:.3f} after), "
        f"of which it affirms, in percent:",
        "",
        "| source | area under the curve | asks | misses, by kind |",
        "|---|---:|---:|---|",
        *rows,
    ]
    if metrics["supersede_threshold"] is not None:
        lines += [
            "",
            "Of `updates`, asks are newer statements that take the place of an older one, and misses others: what "
            '`add_knowledge(..., on_conflict="supersede")` goes by.',
        ]
    return "\n".join(lines)


def _describe(source: SourceConfig) -> str:
    """A source in words, without its directory."""
    of = f"the {source.kind} in recipe-hf, written by hand" if source.path is None else Path(source.path).name
    half = {"train": "the training half of ", "held_out": "the held-out half of ", None: ""}[source.half]
    part = f", source `{source.source}`" if source.source else ""
    license = f", {source.license}" if source.license else ""
    return f"{half}{of}{part} (share {source.share:g}{license})"
