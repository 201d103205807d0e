"""`recipe-hf evaluate`: measures how well a checkpoint's edits take."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Annotated, Literal

import typer

from ..errors import existing_file
from .app import BaseModel, Checkpoint, Dataset, Dtype, NoVerifier, TakesLists, app, load_model, report


@app.command(cls=TakesLists)
def evaluate(
    checkpoint: Checkpoint,
    dataset: Dataset,
    num_edits: Annotated[
        list[int],
        typer.Option(
            help="How many facts to hold at once, such as 1 10 100; 1 means many separate edits. All by default."
        ),
    ] = [],  # noqa: B006
    seeds: Annotated[list[int], typer.Option(help="Seeds that choose the facts, such as 0 1 2.")] = [0],  # noqa: B006
    protocol: Annotated[
        list[str],
        typer.Option(help="strict, paper (the retriever sees the answer) or generation, or several of them."),
    ] = ["strict"],  # noqa: B006
    num_questions: Annotated[
        int | None, typer.Option(help="How many of the facts held to ask about; all by default.", show_default=False)
    ] = None,
    half: Annotated[
        Literal["train", "held_out"] | None,
        typer.Option(help="Take only this half of each data set, as training configurations do.", show_default=False),
    ] = None,
    as_statements: Annotated[
        bool,
        typer.Option(
            "--as-statements",
            help="Tell the facts as whole statements: prompts are made of these alone, as in the paper.",
        ),
    ] = False,
    probes: Annotated[
        bool,
        typer.Option(
            "--probes",
            help="Also ask in other settings: after other text, negated, of other subjects, in a chat.",
        ),
    ] = False,
    general: Annotated[
        list[Path],
        typer.Option(help="JSON lines with prompts that no fact concerns (texts, MMLU, PIQA, RTE)."),
    ] = [],  # noqa: B006
    plots: Annotated[bool, typer.Option("--plots", help="Also draw a page of plots (.png), beside --output.")] = False,
    batch_size: Annotated[int, typer.Option(min=1, help="Rows in one call of the base.")] = 32,
    base_model: BaseModel = None,
    dtype: Dtype = None,
    no_verifier: NoVerifier = False,
    output: Annotated[
        Path | None,
        typer.Option(
            help="JSON file for every outcome, with tables (.md) beside it; an interrupted run goes on from it.",
            show_default=False,
        ),
    ] = None,
) -> None:
    """Measures what edits change and what they leave alone, and how well facts are found.

    Values of one option may follow each other: --num-edits 1 10 100 --seeds 0 1 2 --protocol strict generation
    """
    if plots and output is None:
        raise ValueError("--plots needs --output, beside which the page is written.")
    if len({path.name for path in general}) < len(general):
        raise ValueError(f"general must name files of different names, got {', '.join(map(str, general))}.")
    for path in general:
        existing_file("--general", path)
    from ..datasets import load_examples
    from ..evaluation.asking.general import load_prompts
    from ..evaluation.asking.probes import make_probes
    from ..evaluation.measuring.evaluation import Evaluation, run_evaluation
    from ..evaluation.reporting.plots import check_matplotlib, plot_page
    from ..evaluation.reporting.tables import markdown_report

    if plots:
        check_matplotlib()
    names = ", ".join(Path(path).name for path in dataset) + (f", half {half}" if half else "")
    evaluation = Evaluation(
        dataset=names + (", told as statements" if as_statements else ""),
        examples=[example for path in dataset for example in load_examples(path, half=half)],
        num_edits=num_edits,
        seeds=seeds,
        protocols=protocol,
        num_questions=num_questions,
        as_statements=as_statements,
        general={path.name: load_prompts(path) for path in general},
    )
    model = load_model(checkpoint, base_model, dtype=dtype, no_verifier=no_verifier)
    if probes:
        evaluation = replace(evaluation, probes=make_probes(evaluation.examples, model.tokenizer))
    reports = run_evaluation(model, evaluation, output, batch_size, progress=True)
    if output is not None and plots:
        plot_page(output.with_suffix(".png"), evaluation.dataset, reports)
    report(markdown_report(evaluation.settings(model), reports), output)
