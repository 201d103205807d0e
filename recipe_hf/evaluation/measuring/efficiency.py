"""What edits and generation cost in time and memory, against the base, as facts grow in number (paper Table 3)."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any

import torch

from ...datasets import EditExample
from ...knowledge import KnowledgeBase
from ..editors.retrieval import recipe
from ..inputs import describe_rows, machine, memory_of_this_process, model_settings, run_settings
from ..records import read_record, write_record
from .editing import edited
from .timing import remembering, stopwatch

if TYPE_CHECKING:
    from ...modeling.model import RecipeForCausalLM

# Below this many facts, what a process grows by says more about the allocator than about facts.
_FACTS_FOR_MEMORY = 5000


@torch.no_grad()
def measure_efficiency(
    model: RecipeForCausalLM,
    examples: Sequence[EditExample],
    num_edits: Sequence[int],
    new_tokens: int = 16,
    repeats: int = 10,
    output: Path | None = None,
) -> dict[str, Any]:
    """Times edits and generation, and weighs facts.

    Edit: one fact is added beside the others (median of `repeats`), and all are added at once. Generation: greedy,
    `new_tokens` tokens, one prompt at a time, by the base and by the model in turn, so that both meet the same
    disturbances; the ratio is the median of the pairs. What is finished is read from `output` rather than done again.

    Args:
        model: The model. Its knowledge is the same afterwards.
        examples: Facts to choose from; of `n` held, these are the first `n`.
        num_edits: Numbers of facts to hold.
        new_tokens: Tokens to generate.
        repeats: How often to time what is short.
        output: JSON file.

    Returns:
        `settings`, `machine`, and in `rows`, for each number of facts, times in milliseconds and bytes per fact.

    Raises:
        ValueError: If a number of edits is not between 1 and the number of examples, or `output` holds another run.
        RuntimeError: If the model has no tokenizer.
    """
    if model.tokenizer is None:
        raise RuntimeError("The model has no tokenizer of its base: set model.tokenizer.")
    wrong = [number for number in num_edits if not 1 <= number <= len(examples)]
    if wrong or not num_edits:
        raise ValueError(f"num_edits must be between 1 and the {len(examples)} facts at hand, got {wrong}.")
    settings = run_settings(
        "efficiency",
        **model_settings(model),
        facts=describe_rows(examples),
        new_tokens=new_tokens,
        repeats=repeats,
        machine=machine(),
    )
    new = {"settings": settings, "machine": settings["machine"], "rows": {}}
    record: dict[str, Any] = (output and read_record(output, settings)) or new
    with remembering(model, 0):  # What is timed includes encoding the query.
        with edited(recipe(model), examples[:10]):  # Nothing is timed the first time it runs.
            _generate(model, model, examples[0].prompt, new_tokens)
        for number in num_edits:
            if str(number) not in record["rows"]:
                record["rows"][str(number)] = _measure(model, examples[:number], new_tokens, repeats)
                if output is not None:
                    write_record(output, record)
    return record


def _measure(
    model: RecipeForCausalLM, facts: Sequence[EditExample], new_tokens: int, repeats: int
) -> dict[str, float | None]:
    told = [(fact.prompt, fact.answer) for fact in facts]
    at_once: list[float] = []
    for _ in range(max(1, min(repeats, 200 // len(facts)))):
        with edited(recipe(model), []), stopwatch(at_once):
            model.add_knowledge(told)
    with edited(recipe(model), facts):
        alone: list[float] = []
        for id_ in reversed(range(max(0, len(facts) - repeats), len(facts))):  # Ids count the facts.
            if id_ in model.knowledge:  # A later fact with the same prompt has replaced it otherwise.
                model.remove_knowledge(id_)
                with stopwatch(alone):
                    model.add_knowledge([told[id_]])
        row: dict[str, float | None] = {"edit_alone": median(alone), "edit_at_once": median(at_once) / len(told)}
        for name, prompts in _prompts(model, facts, repeats).items():
            base: list[float] = []
            generate: list[float] = []
            for prompt in prompts:
                for by, times in ((model.lm, base), (model, generate)):
                    with stopwatch(times):
                        _generate(model, by, prompt, new_tokens)
            row[f"base_{name}"] = median(base) if prompts else None
            row[f"generate_{name}"] = median(generate) if prompts else None
            ratios = [with_facts / without for without, with_facts in zip(base, generate, strict=True)]
            row[f"ratio_{name}"] = median(ratios) if prompts else None
        ids = [fact.id for fact in model.knowledge]
        keys = model.knowledge.keys(ids)
        row["key_bytes"] = keys.nbytes / len(ids)
        with tempfile.TemporaryDirectory() as directory:
            model.knowledge.save(directory)
            row["disk_bytes"] = sum(f.stat().st_size for f in Path(directory).rglob("*") if f.is_file()) / len(ids)
            row["memory_bytes"] = _memory(Path(directory), len(ids)) if len(ids) >= _FACTS_FOR_MEMORY else None
    return row


def _memory(saved: Path, num_facts: int) -> float:
    """Bytes for each fact of a saved knowledge base, in a process of its own."""
    with ProcessPoolExecutor(1, get_context("spawn")) as process:
        return process.submit(_growth, saved).result() / num_facts


def _growth(saved: Path) -> int:
    """Bytes by which this process grows when it loads a knowledge base and looks something up."""
    small = KnowledgeBase(1)
    small.add(["A fact."], torch.ones(1, 1))
    with tempfile.TemporaryDirectory() as directory:  # What is loaded at the first use is not a fact's.
        small.save(directory)
        _loaded(Path(directory))
    before = memory_of_this_process()
    knowledge = _loaded(saved)
    grown = memory_of_this_process() - before
    del knowledge  # Until here it is held.
    return grown


def _loaded(directory: Path) -> KnowledgeBase:
    knowledge = KnowledgeBase.load(directory)
    knowledge.search(torch.ones(1, knowledge.dim or 1))
    return knowledge


def _prompts(model: RecipeForCausalLM, facts: Sequence[EditExample], repeats: int) -> dict[str, list[str]]:
    """Prompts for which a fact is used, and prompts for which none is; few facts are asked for several times."""
    asked = facts[-10 * repeats :]
    candidates = {
        "with_fact": [fact.prompt for fact in asked],
        "without_fact": [fact.locality_prompt for fact in asked if fact.unrelated],
    }
    chosen = {}
    for name, prompts in candidates.items():
        hits = model.retrieve(prompts)
        found = [p for p, hit in zip(prompts, hits, strict=True) if hit.fired == (name == "with_fact")]
        chosen[name] = [found[i % len(found)] for i in range(repeats)] if found else []
    return chosen


def _generate(model: RecipeForCausalLM, by: Any, prompt: str, new_tokens: int) -> None:
    tokenizer: Any = model.tokenizer
    batch = tokenizer([prompt], return_tensors="pt").to(model.device)
    lengths = {"max_new_tokens": new_tokens, "min_new_tokens": new_tokens}
    by.generate(**batch, **lengths, do_sample=False, pad_token_id=tokenizer.pad_token_id or tokenizer.eos_token_id)
