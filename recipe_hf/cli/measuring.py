"""`recipe-hf harness` and `efficiency`: what editing costs in general ability, time and memory."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from .app import BaseModel, Checkpoint, Dtype, NoVerifier, TakesLists, app, are_data, load_model, report

Output = Annotated[Path | None, typer.Option(help="JSON file, with the table (.md) beside it.", show_default=False)]


@app.command(cls=TakesLists)
def harness(
    checkpoint: Checkpoint,
    facts: Annotated[
        str,
        typer.Option(
            help="Facts to hold: a file, or org/name:file.json on the Hub.", show_default=False, callback=are_data
        ),
    ],
    tasks: Annotated[
        list[str],
        typer.Option(help="local_mmlu, local_piqa, local_rte, or tasks of lm-eval where the Hub can be reached."),
    ] = ["local_mmlu", "local_piqa", "local_rte"],  # noqa: B006
    num_facts: Annotated[int, typer.Option(min=1, help="How many facts to hold.")] = 10_000,
    data: Annotated[Path, typer.Option(help="Directory of the files that the local tasks read.")] = Path("data"),
    limit: Annotated[int | None, typer.Option(min=1, help="Rows of each task; all by default.")] = None,
    num_fewshot: Annotated[int | None, typer.Option(min=0, help="Examples before each question.")] = None,
    batch_size: Annotated[int, typer.Option(min=1, help="Rows in one call of the base.")] = 16,
    base_model: BaseModel = None,
    dtype: Dtype = None,
    no_verifier: NoVerifier = False,
    output: Output = None,
) -> None:
    """Puts tasks of lm-eval to the base, and to the model that holds facts.

    A run that was interrupted goes on after the last task that was finished.
    """
    from ..datasets import load_examples
    from ..evaluation.measuring.harness import run_harness
    from ..evaluation.reporting.costs import harness_table

    examples = load_examples(facts)
    if len(examples) < num_facts:
        raise ValueError(f"num_facts must be at most the {len(examples)} of {facts}, got {num_facts}.")
    model = load_model(checkpoint, base_model, dtype=dtype, no_verifier=no_verifier)
    record = run_harness(model, tasks, examples[:num_facts], data, limit, num_fewshot, batch_size, output)
    report(harness_table(record), output)


@app.command(cls=TakesLists)
def efficiency(
    checkpoint: Checkpoint,
    dataset: Annotated[
        str,
        typer.Option(
            help="Facts to edit in: a file, or org/name:file.json on the Hub.", show_default=False, callback=are_data
        ),
    ],
    num_edits: Annotated[list[int], typer.Option(help="How many facts to hold.")] = [1, 10, 100, 1000, 10000],  # noqa: B006
    new_tokens: Annotated[int, typer.Option(min=1, help="Tokens to generate.")] = 16,
    repeats: Annotated[int, typer.Option(min=1, help="How often to time what is short.")] = 10,
    base_model: BaseModel = None,
    dtype: Dtype = None,
    no_verifier: NoVerifier = False,
    output: Output = None,
) -> None:
    """Times edits and generation against the base, and weighs facts, as these grow in number."""
    from ..datasets import load_examples
    from ..evaluation.measuring.efficiency import measure_efficiency
    from ..evaluation.reporting.costs import efficiency_page

    examples = load_examples(dataset)
    model = load_model(checkpoint, base_model, dtype=dtype, no_verifier=no_verifier)
    record = measure_efficiency(model, examples, num_edits, new_tokens, repeats, output)
    report(efficiency_page(record), output)
