"""The model card of a checkpoint: the template filled from the checkpoint itself and a record of its training run."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml
from huggingface_hub import ModelCard, ModelCardData

from ..modeling.configuration import RecipeConfig
from ..modeling.knowledge import KnowledgeBase

PROTOCOLS = {
    "strict": "the retriever reads the prompt only; token accuracy on the given answer, teacher-forced.",
    "paper": "as in the authors' code, the retriever reads the prompt and the answer but its last token; "
    "token accuracy, teacher-forced. For comparison with the paper's tables only.",
    "generation": "greedy decoding with nothing forced; the normalised answer must open the output.",
}
_TEMPLATE = Path(__file__).with_name("model_card_template.md")
_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*(/[\w.-]+)?")


@dataclass
class EvaluationResult:
    """Scores of one data set under one protocol.

    Args:
        dataset: What was edited, such as `"CounterFact, test part"`.
        protocol: `"strict"`, `"paper"` or `"generation"`.
        seeds: Seeds that chose the edits.
        rows: From the number of edits to its scores, from a metric's name to a percentage or to text such as
            `"91.2 ± 0.4"`. Every row has the same metrics.

    Raises:
        ValueError: If the protocol is unknown, no seed or row is given, or rows differ in their metrics.
    """

    dataset: str
    protocol: str
    seeds: list[int]
    rows: dict[int, dict[str, float | str]]

    def __post_init__(self) -> None:
        if self.protocol not in PROTOCOLS:
            raise ValueError(f"protocol must be one of {', '.join(PROTOCOLS)}, got {self.protocol!r}.")
        if not self.seeds:
            raise ValueError("seeds must name at least one seed, got none.")
        if not self.rows:
            raise ValueError("rows must hold at least one number of edits, got none.")
        for number, scores in self.rows.items():
            if list(scores) != self.columns:
                raise ValueError(f"rows must have the metrics {self.columns} each, got {list(scores)} at {number}.")

    @property
    def columns(self) -> list[str]:
        """Names of the metrics."""
        return list(next(iter(self.rows.values())))


@dataclass(kw_only=True)
class TrainingRun:
    """What a model card says and the checkpoint does not know.

    Args:
        base_weights: The exact weights trained against, in words, with their precision or quantisation.
        encoder: The text encoder that training started from.
        training_data: The training data in words: name, part, number of rows.
        hardware: What it was trained on.
        hours: How long that took.
        base_model: Hub id of the base; `None` takes the checkpoint's `base_model_name_or_path`.
        results: Evaluations to tabulate.
        training_config: The configuration file of the run.
        notes: Further lines on the training.
        limits: Further lines on the limits.
        datasets: Hub ids of the training data, for the card's metadata.
        language: Language codes.
        license: License of the checkpoint.
        repo_id: Where it is published; `None` leaves a placeholder in the example.
    """

    base_weights: str
    encoder: str
    training_data: str
    hardware: str
    hours: float
    base_model: str | None = None
    results: list[EvaluationResult] = field(default_factory=list)
    training_config: dict[str, Any] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    limits: list[str] = field(default_factory=list)
    datasets: list[str] = field(default_factory=list)
    language: list[str] = field(default_factory=lambda: ["en"])
    license: str = "apache-2.0"
    repo_id: str | None = None


def write_model_card(model_dir: str | Path, run: TrainingRun) -> ModelCard:
    """Writes `README.md` into a checkpoint directory.

    Sizes, base and the number of facts are read from the checkpoint.

    Args:
        model_dir: Directory of the checkpoint, with `config.json` and, if it ships facts, `knowledge/`.
        run: What else the card says.

    Returns:
        The card written.

    Raises:
        ValueError: If `model_dir` holds no checkpoint, or its knowledge base is damaged.
    """
    model_dir = Path(model_dir)
    if not (model_dir / "config.json").is_file():
        raise ValueError(f"model_dir must be a checkpoint directory with a config.json, got {str(model_dir)!r}.")
    config = RecipeConfig(**json.loads((model_dir / "config.json").read_text(encoding="utf-8")))
    base = run.base_model or config.base_model_name_or_path or ""
    # A directory or file of some machine means nothing to a reader, and the Hub would link it to nowhere.
    on_hub = _HUB_ID.fullmatch(base) is not None
    base_name = base if on_hub else Path(base).name or "an unnamed base model"
    data = ModelCardData(
        library_name="recipe_hf",
        pipeline_tag="text-generation",
        base_model=base if on_hub else None,
        base_model_relation="adapter" if on_hub else None,
        license=run.license,
        language=run.language,
        datasets=run.datasets or None,
        tags=["recipe", "knowledge-editing", "model-editing", "retrieval", "arxiv:2405.03279"],
    )
    knowledge_dir = model_dir / "knowledge"
    knowledge = KnowledgeBase.load(knowledge_dir) if knowledge_dir.is_dir() else KnowledgeBase(config.knowledge_dim)
    card = ModelCard.from_template(
        data,
        template_path=str(_TEMPLATE),
        title=f"RECIPE for {base_name.split('/')[-1]}",
        base_name=base_name,
        base_argument="" if on_hub else ', base_model="path/to/the/base"',
        location=run.repo_id or "path/to/this/directory",
        config=config,
        run=run,
        languages=", ".join(run.language),
        protocols=PROTOCOLS,
        training_config=yaml.safe_dump(run.training_config, sort_keys=False, allow_unicode=True).strip(),
        num_facts=len(knowledge),
        num_past_facts=len(knowledge.history()),
    )
    card.save(model_dir / "README.md")
    return card
