"""`recipe-hf compare`, `ablate` and `sweep`: a checkpoint beside other editors, less a part, or of other sizes."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from .app import BaseModel, Checkpoint, Dataset, Dtype, NoVerifier, TakesLists, app, are_data, load_model, report, say

NumEdits = Annotated[list[int], typer.Option(help="How many facts to hold at once, such as 100 1000.")]
Seeds = Annotated[list[int], typer.Option(help="Seeds that choose the facts, such as 0 1 2.")]
Protocols = Annotated[
    list[str], typer.Option(help="strict, paper (a retriever sees the answer) or generation, or several.")
]
NumQuestions = Annotated[int, typer.Option(min=0, help="How many of the facts held to ask about; 0 for all.")]
Validation = Annotated[
    list[str],
    typer.Option(
        help="Other facts, on whose last rows thresholds are chosen: training data, whose last rows are held out.",
        show_default=False,
        callback=are_data,
    ),
]
NumValidation = Annotated[int, typer.Option(min=1, help="How many of those rows to ask about.")]
BatchSize = Annotated[int, typer.Option(min=1, help="Rows in one call of the base.")]
Output = Annotated[
    Path | None,
    typer.Option(
        help="JSON file, with the tables (.md) beside it; an interrupted run goes on from it, and editors, numbers of "
        "facts and seeds may be added later.",
        show_default=False,
    ),
]


@app.command(cls=TakesLists)
def compare(
    checkpoint: Checkpoint,
    dataset: Dataset,
    editors: Annotated[
        list[str],
        typer.Option(
            help="base, recipe, recipe-statements, context, context-minilm, lora, ft, grace: all of these by default; "
            "and rome, wilke, r-rome, memit, alphaedit, wise, t-patcher, mend, malmen, lte.",
            show_default=False,
        ),
    ] = [],  # noqa: B006
    num_edits: NumEdits = [100, 1000],  # noqa: B006
    max_trained_edits: Annotated[
        int, typer.Option(min=1, help="Editors that train (lora and those after it) take part with at most so many.")
    ] = 100,
    seeds: Seeds = [0],  # noqa: B006
    protocol: Protocols = ["strict"],  # noqa: B006
    num_questions: NumQuestions = 200,
    validation: Validation = [],  # noqa: B006
    num_validation: NumValidation = 500,
    sentence_model: Annotated[
        str,
        typer.Option(help="The sentence-transformers model of context-minilm, r-rome and lte: Hub id or directory."),
    ] = "sentence-transformers/all-MiniLM-L6-v2",
    epochs: Annotated[int, typer.Option(min=1, help="Passes over the facts that an editor may train for.")] = 20,
    seconds: Annotated[float, typer.Option(help="No pass over the facts is begun after this long.")] = 120.0,
    learning_rate: Annotated[float, typer.Option(help="Of fine-tuning all weights.")] = 2e-5,
    lora_learning_rate: Annotated[float, typer.Option(help="Of LoRA, and of the adapter of lte.")] = 1e-3,
    key_text: Annotated[
        str | None,
        typer.Option(
            help="Text file that rome and its kin disturb as little as they can; by default, what the base writes.",
            show_default=False,
        ),
    ] = None,
    batch_size: BatchSize = 32,
    base_model: BaseModel = None,
    dtype: Dtype = None,
    no_verifier: NoVerifier = False,
    output: Output = None,
) -> None:
    """Compares RECIPE with other editors on the same facts: quality, tokens added, time to edit and to generate."""
    from ..evaluation.editors import BASELINES, EditorOptions
    from ..evaluation.editors.finetuning import Budget, check_peft

    names = editors or list(BASELINES)
    if {"lora", "lte"} & set(names):
        check_peft()
    options = EditorOptions(Budget(epochs, seconds), sentence_model, learning_rate, lora_learning_rate, key_text)
    comparison = _comparison(
        dataset,
        validation,
        editors=names,
        num_edits=num_edits,
        max_trained_edits=max_trained_edits,
        seeds=seeds,
        protocols=protocol,
        num_questions=num_questions or None,
        num_validation=num_validation,
        options=options,
    )
    _run(load_model(checkpoint, base_model, dtype=dtype, no_verifier=no_verifier), comparison, output, batch_size)


@app.command(cls=TakesLists)
def ablate(
    checkpoint: Checkpoint,
    dataset: Dataset,
    validation: Validation,
    num_edits: NumEdits = [1000],  # noqa: B006
    seeds: Seeds = [0],  # noqa: B006
    protocol: Protocols = ["strict"],  # noqa: B006
    num_questions: NumQuestions = 200,
    num_validation: NumValidation = 500,
    picture: Annotated[
        bool, typer.Option("--picture", help="Also draw prompt tokens beside word embeddings (.png), beside --output.")
    ] = False,
    picture_facts: Annotated[int, typer.Option(min=2, help="How many facts the picture shows.")] = 300,
    batch_size: BatchSize = 32,
    base_model: BaseModel = None,
    dtype: Dtype = None,
    no_verifier: NoVerifier = False,
    output: Output = None,
) -> None:
    """Measures RECIPE without continuous prompts, without the sentinel, and without both (Table 4 of the paper)."""
    _check_picture(picture, output)
    from ..evaluation.editors import ABLATIONS
    from ..evaluation.reporting.prompt_plot import collect_embeddings, plot_prompts

    comparison = _comparison(
        dataset,
        validation,
        command="ablate",
        editors=list(ABLATIONS),
        num_edits=num_edits,
        seeds=seeds,
        protocols=protocol,
        num_questions=num_questions or None,
        num_validation=num_validation,
    )
    model = load_model(checkpoint, base_model, dtype=dtype, no_verifier=no_verifier)
    _run(model, comparison, output, batch_size)
    if output is not None and picture:
        shown = collect_embeddings(model, comparison.examples[:picture_facts])
        norms = plot_prompts(output.with_suffix(".png"), *shown, title=f"Prompt tokens of facts, {comparison.dataset}")
        say("Median norms in the picture: " + ", ".join(f"{name} {norm}" for name, norm in norms.items()))


@app.command(cls=TakesLists)
def sweep(
    dataset: Dataset,
    config: Annotated[
        Path, typer.Option(help="YAML file of a training run; smollm2-135m-sweep.yaml is a short one.")
    ] = Path("training/configs/smollm2-135m-sweep.yaml"),
    tokens: Annotated[list[int], typer.Option(help="Numbers of continuous prompt tokens.")] = [1, 2, 3, 4, 5],  # noqa: B006
    num_edits: Annotated[int, typer.Option(min=1, help="How many facts to hold at once.")] = 500,
    num_questions: NumQuestions = 100,
    protocol: Protocols = ["strict"],  # noqa: B006
    base_model: BaseModel = None,
    encoder: Annotated[str | None, typer.Option(help="Starting encoder, if not the config's.")] = None,
    train_file: Annotated[str | None, typer.Option(help="Data to train on, if not the config's.")] = None,
    output_dir: Annotated[str | None, typer.Option(help="Where the checkpoints go, if not the config's.")] = None,
    seed: Annotated[int | None, typer.Option(help="Seed of the training runs, if not the config's.")] = None,
    picture: Annotated[bool, typer.Option("--picture", help="Also draw the curves (.png), beside --output.")] = False,
    output: Output = None,
) -> None:
    """Trains a checkpoint for each number of prompt tokens, and evaluates each (Figure 3 of the paper)."""
    _check_picture(picture, output)
    from ..datasets import load_examples
    from ..training.arguments import read_config
    from ..training.config import TrainingConfig
    from ..training.sweep import plot_sweep, run_sweep, sweep_page

    options = {
        "model.base_model": base_model,
        "model.encoder": encoder,
        "data.train_file": train_file,
        "run.output_dir": output_dir,
        "run.seed": seed,
    }
    record = run_sweep(
        read_config(TrainingConfig, config, options),
        tokens,
        ", ".join(Path(path).name for path in dataset),
        [example for path in dataset for example in load_examples(path)],
        num_edits,
        num_questions or None,
        protocol,
        output,
        lambda line: say(line, err=True),
    )
    if output is not None and picture:
        plot_sweep(output.with_suffix(".png"), record)
    report(sweep_page(record), output)


def _check_picture(picture: bool, output: Path | None) -> None:
    if picture and output is None:
        raise ValueError("--picture needs --output, beside which it is written.")
    if picture:
        from ..evaluation.reporting.plots import check_matplotlib

        check_matplotlib()


def _comparison(dataset: list[str], validation: list[str], **arguments: Any) -> Any:
    from ..datasets import load_examples
    from ..evaluation.measuring.comparison import Comparison

    return Comparison(
        dataset=", ".join(Path(path).name for path in dataset),
        examples=[example for path in dataset for example in load_examples(path)],
        validation=[example for path in validation for example in load_examples(path)],
        **arguments,
    )


def _run(model: Any, comparison: Any, output: Path | None, batch_size: int) -> None:
    from ..evaluation.measuring.comparison import run_comparison
    from ..evaluation.reporting.comparison import comparison_page

    record = run_comparison(model, comparison, output, batch_size, lambda line: say(line, err=True))
    report(comparison_page(record), output)
