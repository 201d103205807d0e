"""The model card of a checkpoint: the template filled from the checkpoint itself and a record of its training run."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import jinja2
import yaml
from huggingface_hub import EvalResult, ModelCard, ModelCardData

from ..evaluation.asking.protocols import PROTOCOLS, find_protocol
from ..knowledge import KnowledgeBase
from ..modeling.configuration import RecipeConfig

_TEMPLATE = Path(__file__).with_name("model_card_template.md")
_RESULTS_TEMPLATE = Path(__file__).with_name("results_template.md")
_LOCATION = "path/to/this/directory"
_FACTS_HEADING = "## Facts shipped"
_RESULTS_HEADING = "## Results"
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
        find_protocol(self.protocol)
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
        encoder_revision: Commit of that encoder.
        versions: Versions of the libraries it was trained with, by name.
        base_model: Hub id of the base; `None` takes the checkpoint's `base_model_name_or_path`.
        results: Evaluations to tabulate.
        training_config: The configuration file of the run.
        notes: Further lines on the training.
        limits: Further lines on the limits.
        datasets: Hub ids of the training data, for the card's metadata.
        language: Language codes; the card claims none that are not given.
        license: License of the checkpoint; the card claims none that is not given.
        repo_id: Where it is published; `None` leaves a placeholder in the example.
    """

    base_weights: str
    encoder: str
    training_data: str
    hardware: str
    hours: float
    encoder_revision: str | None = None
    versions: dict[str, str] = field(default_factory=dict)
    base_model: str | None = None
    results: list[EvaluationResult] = field(default_factory=list)
    training_config: dict[str, Any] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    limits: list[str] = field(default_factory=list)
    datasets: list[str] = field(default_factory=list)
    language: list[str] = field(default_factory=list)
    license: str | None = None
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
    knowledge_dir = model_dir / "knowledge"
    card = model_card(config, run, KnowledgeBase.load(knowledge_dir) if knowledge_dir.is_dir() else None)
    card.save(model_dir / "README.md")
    return card


def model_card(
    config: RecipeConfig, run: TrainingRun | None = None, knowledge: KnowledgeBase | None = None
) -> ModelCard:
    """The card of a checkpoint.

    Args:
        config: The checkpoint's config.
        run: What else the card says. Without it, the card says that it does not know.
        knowledge: The facts shipped, if any.
    """
    base = (run and run.base_model) or config.base_model_name_or_path or ""
    # A directory or file of some machine means nothing to a reader, and the Hub would link it to nowhere.
    on_hub = _HUB_ID.fullmatch(base) is not None
    base_name = base if on_hub else Path(base).name or "an unnamed base model"
    title = "RECIPE retriever" if config.is_of_no_base else f"RECIPE for {base_name.split('/')[-1]}"
    data = ModelCardData(
        library_name="recipe_hf",
        pipeline_tag="text-generation",
        base_model=base if on_hub else None,
        base_model_relation="adapter" if on_hub else None,
        license=run.license if run else None,
        language=(run and run.language) or None,
        datasets=(run and run.datasets) or None,
        tags=["recipe", "knowledge-editing", "model-editing", "retrieval", "arxiv:2405.03279"],
        model_name=title,
        eval_results=(run and _eval_results(run.results)) or None,
    )
    return ModelCard.from_template(
        data,
        template_path=str(_TEMPLATE),
        title=title,
        base_name=base_name,
        base_argument="" if on_hub else ', base_model="path/to/the/base"',
        location=(run and run.repo_id) or _LOCATION,
        config=config,
        run=run,
        results_section=_results_section(run.results if run else []),
        training_config=_yaml(run.training_config) if run else "",
        facts_section=_facts_section(knowledge),
    )


def update_results(model_dir: str | Path, results: list[EvaluationResult], text: str = "") -> ModelCard:
    """Gives a checkpoint's card other results, in its text and its metadata; all else stays.

    Args:
        model_dir: Directory of the checkpoint.
        results: The results.
        text: What follows their tables.

    Returns:
        The card written.

    Raises:
        ValueError: If there is no card with results.
    """
    path = Path(model_dir) / "README.md"
    card = ModelCard.load(path) if path.is_file() else None
    if card is None or f"{_RESULTS_HEADING}\n" not in card.text:
        raise ValueError(f"model_dir must hold a card with a section {_RESULTS_HEADING!r}, got {str(model_dir)!r}.")
    before, _, rest = card.text.partition(f"{_RESULTS_HEADING}\n")
    _, heading, after = rest.partition("\n## ")
    section = "\n\n".join(part for part in (_results_section(results), text.strip()) if part)
    card.text = f"{before}{_RESULTS_HEADING}\n\n{section}\n{heading}{after}"
    title = card.text.strip().splitlines()[0].removeprefix("# ")
    card.data.model_name, card.data.eval_results = (card.data.model_name or title), _eval_results(results)
    card.save(path)
    return card


def _results_section(results: list[EvaluationResult]) -> str:
    template = jinja2.Template(_RESULTS_TEMPLATE.read_text(encoding="utf-8"))
    descriptions = {name: protocol.description for name, protocol in PROTOCOLS.items()}
    return template.render(results=_without_repeats(results), protocols=descriptions).strip()


def _yaml(value: dict[str, Any]) -> str:
    return yaml.safe_dump(value, sort_keys=False, allow_unicode=True).strip()


def _without_repeats(results: list[EvaluationResult]) -> list[EvaluationResult]:
    """Leaves out rows that a larger run, of more seeds or rows, has of the same dataset under the same protocol."""
    seen = set()
    rows: dict[int, dict[int, dict[str, float | str]]] = {}
    for index in sorted(range(len(results)), key=lambda i: (-len(results[i].seeds), -len(results[i].rows))):
        result = results[index]
        kept = {n: row for n, row in result.rows.items() if (result.dataset, result.protocol, n) not in seen}
        seen |= {(result.dataset, result.protocol, number) for number in kept}
        rows[index] = kept
    return [replace(result, rows=rows[index]) for index, result in enumerate(results) if rows[index]]


def _eval_results(results: list[EvaluationResult]) -> list[EvalResult]:
    """The numbers of `results` for the card's model-index, each named with its protocol and number of edits.

    The Hub takes results of one `dataset_type` and `dataset_config` for one entry.
    """
    return [
        EvalResult(
            task_type="text-generation",
            task_name="Knowledge editing",
            dataset_type=_slug(Path(result.dataset.split(",")[0]).stem),
            dataset_config=_slug(result.dataset),
            dataset_name=result.dataset,
            metric_type=_slug(metric),
            metric_name=f"{metric}, protocol {result.protocol}, {edits:,} edits",
            metric_value=float(number[0]),
        )
        for result in _without_repeats(results)
        for edits, scores in result.rows.items()
        for metric, score in scores.items()
        if (number := re.match(r"\d+(\.\d+)?", str(score)))
    ]


def _slug(text: str) -> str:
    return re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-")


def published_card(card: str, repo_id: str, knowledge: KnowledgeBase | None) -> str:
    """A card as it is published: it names the repository, and the facts there, which may be others than at first.

    Args:
        card: The card of a checkpoint. One that somebody else wrote changes only by the facts it ships.
        repo_id: The repository.
        knowledge: The facts that are published with it, if any.
    """
    card = card.replace(f'"{_LOCATION}"', f'"{repo_id}"')
    section = f"{_FACTS_HEADING}\n\n{_facts_section(knowledge)}\n"
    if _FACTS_HEADING in card:
        before, after = card.split(_FACTS_HEADING, 1)
        rest = after.find("\n## ")
        return before + section + (after[rest:] if rest >= 0 else "")
    is_shipped = knowledge is not None and (len(knowledge) or knowledge.history())
    return f"{card.rstrip()}\n\n{section}" if is_shipped else card


def _facts_section(knowledge: KnowledgeBase | None) -> str:
    facts, past = (len(knowledge), len(knowledge.history())) if knowledge is not None else (0, 0)
    if not facts and not past:
        return (
            "None: the knowledge base is empty. Facts that you add and publish (`push_to_hub`) are stored in plain "
            "text in\n`knowledge/knowledge.jsonl`, with the history of those replaced or removed, as public as the "
            "repository;\n`include_knowledge=False` leaves them out."
        )
    history = f" and a history of {past:,} replaced or removed" if past else ""
    return (
        f"This repository ships {facts:,} fact{'' if facts == 1 else 's'}{history}, in plain\n"
        f"text in `knowledge/knowledge.jsonl`. They are as public as the repository."
    )
