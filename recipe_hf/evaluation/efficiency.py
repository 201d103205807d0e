"""What edits and generation cost in time and memory, against the base, as facts grow in number (paper Table 3)."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any

import torch

from ..datasets import EditExample
from ..knowledge import KnowledgeBase
from .held import hold, remembering
from .inputs import describe_rows, machine, memory_of_this_process, model_settings, run_settings
from .records import read_record, write_record
from .report import markdown_rows

if TYPE_CHECKING:
    from ..modeling.model import RecipeForCausalLM

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
        with hold(model, examples[: min(10, len(examples))]):  # Nothing is timed the first time it runs.
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
    at_once = []
    for _ in range(max(1, min(repeats, 200 // len(facts)))):
        with hold(model, []):
            at_once.append(_milliseconds(lambda: model.add_knowledge(told)) / len(told))
    with hold(model, facts) as held:
        alone = []
        for place in range(-1, -1 - min(repeats, len(facts)), -1):
            if held.ids[place] in model.knowledge:  # A later fact with the same prompt has replaced it otherwise.
                model.remove_knowledge(held.ids[place])
                alone.append(_milliseconds(lambda place=place: model.add_knowledge([told[place]])))  # type: ignore[misc]
        row: dict[str, float | None] = {"edit_alone": median(alone), "edit_at_once": median(at_once)}
        for name, prompts in _prompts(model, facts, repeats).items():
            pairs = [
                (
                    _milliseconds(lambda prompt=prompt: _generate(model, model.lm, prompt, new_tokens)),  # type: ignore[misc]
                    _milliseconds(lambda prompt=prompt: _generate(model, model, prompt, new_tokens)),  # type: ignore[misc]
                )
                for prompt in prompts
            ]
            row[f"base_{name}"] = median(base for base, _ in pairs) if pairs else None
            row[f"generate_{name}"] = median(edited for _, edited in pairs) if pairs else None
            row[f"ratio_{name}"] = median(edited / base for base, edited in pairs) if pairs else None
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


def _milliseconds(action: Callable[[], Any]) -> float:
    start = time.perf_counter()
    action()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return 1000 * (time.perf_counter() - start)


_COLUMNS: Mapping[str, tuple[str, str]] = {
    "edit_alone": ("one edit, ms", "{:.1f}"),
    "edit_at_once": ("all at once, ms per edit", "{:.2f}"),
    "base_with_fact": ("base, ms", "{:.0f}"),
    "generate_with_fact": ("with a fact, ms", "{:.0f}"),
    "ratio_with_fact": ("ratio", "{:.3f}"),
    "base_without_fact": ("base, ms", "{:.0f}"),
    "generate_without_fact": ("no fact applies, ms", "{:.0f}"),
    "ratio_without_fact": ("ratio", "{:.3f}"),
    "key_bytes": ("key, bytes", "{:,.0f}"),
    "memory_bytes": ("memory per fact, bytes", "{:,.0f}"),
    "disk_bytes": ("on disk per fact, bytes", "{:,.0f}"),
}


def efficiency_table(record: Mapping[str, Any]) -> str:
    """The measurements in Markdown."""
    rows = [["facts held", *(heading for heading, _ in _COLUMNS.values())]]
    for number, row in sorted(record["rows"].items(), key=lambda item: int(item[0])):
        cells = ["–" if row[name] is None else form.format(row[name]) for name, (_, form) in _COLUMNS.items()]
        rows.append([f"{int(number):,}", *cells])
    return markdown_rows(rows)


def efficiency_page(record: Mapping[str, Any]) -> str:
    """The table, with what it was measured on."""
    settings = record["settings"]
    return (
        f"{record['machine']}; base in {settings['dtype']}; {settings['new_tokens']} new tokens, greedy, one prompt "
        f"at a time; medians of {settings['repeats']}, ratios of pairs in turn.\n\n{efficiency_table(record)}"
    )
