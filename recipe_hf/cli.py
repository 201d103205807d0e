"""The command `recipe-hf`: the demo, training, and the facts of a checkpoint.

Whatever needs a model is imported inside its command.
"""

from __future__ import annotations

import json
import os
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any, Literal

import typer
from typer.core import TyperCommand, TyperGroup


class _Commands(TyperGroup):
    """Prints an error as one line, with exit code 2; RECIPE_HF_TRACEBACK=1 in the environment shows where it arose."""

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except (ValueError, KeyError, OSError, ImportError) as error:
            if os.environ.get("RECIPE_HF_TRACEBACK"):
                raise
            reason = error.args[0] if isinstance(error, KeyError) and error.args else error
            typer.echo(f"recipe-hf: {' '.join(str(reason).split()) or type(error).__name__}", err=True)
            raise typer.Exit(2) from error


class _TakesLists(TyperCommand):
    """Lets an option that may be given again take several values at once: `--seeds 0 1 2`.

    The values go on until the next option, or a directory, which is the checkpoint.
    """

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        lists = {name for parameter in self.params if getattr(parameter, "multiple", False) for name in parameter.opts}
        repeated: list[str] = []
        option, taken = None, 0
        for argument in args:
            if argument.startswith("--"):
                option, taken = (argument if argument in lists else None), 0
            elif option is not None:
                if taken and Path(argument).is_dir():
                    option = None
                elif taken:
                    repeated.append(option)
                taken += 1
            repeated.append(argument)
        return super().parse_args(ctx, repeated)


app = typer.Typer(
    cls=_Commands,
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="Keep a language model's facts current without touching its weights (RECIPE, EMNLP 2024).",
)

Checkpoint = Annotated[Path, typer.Argument(help="Directory of a trained checkpoint.", show_default=False)]
BaseModel = Annotated[
    str | None,
    typer.Option(
        help="The frozen base: a Hub id, a directory or a GGUF file. By default the one the checkpoint names.",
        show_default=False,
    ),
]
KnowledgeFile = Annotated[
    Path | None,
    typer.Option(
        "--knowledge", help="File that keeps the facts, rather than the checkpoint's own.", show_default=False
    ),
]
Namespace = Annotated[str, typer.Option(help="Whose facts of that file.", show_default=False)]


@app.command()
def demo(
    checkpoint: Annotated[Path, typer.Option(help="Trained checkpoint.")] = Path("checkpoints/recipe-smollm2-135m"),
    base_model: Annotated[str, typer.Option(help="The frozen base: Hub id, directory or GGUF file.")] = (
        "models/smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
    ),
) -> None:
    """Adds invented facts to a small real model, shows what changes and what does not, and times it."""
    from .demo import run

    run(_directory(checkpoint), base_model)


@app.command(
    context_settings={"allow_extra_args": True, "ignore_unknown_options": True, "help_option_names": []},
    help="Trains a checkpoint: the options are those of training/train.py (`recipe-hf train --help`).",
)
def train(ctx: typer.Context) -> None:
    """Hands its arguments to the trainer."""
    from .training.train import main

    main(ctx.args)


@app.command(cls=_TakesLists)
def evaluate(
    checkpoint: Checkpoint,
    dataset: Annotated[
        list[str],
        typer.Option(help="Facts to edit in: files, or org/name:file.json on the Hub.", show_default=False),
    ],
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
    from .datasets import load_examples
    from .evaluation.general import GeneralPrompts, load_prompts
    from .evaluation.plots import check_matplotlib, plot_page
    from .evaluation.probes import make_probes
    from .evaluation.report import markdown_report
    from .evaluation.run import Evaluation, run_evaluation

    if plots and output is None:
        raise ValueError("--plots needs --output, beside which the page is written.")
    if plots:
        check_matplotlib()
    if len({path.name for path in general}) < len(general):
        raise ValueError(f"general must name files of different names, got {', '.join(map(str, general))}.")
    names = ", ".join(Path(path).name for path in dataset) + (f", half {half}" if half else "")
    evaluation = Evaluation(
        dataset=names + (", told as statements" if as_statements else ""),
        examples=[example for path in dataset for example in load_examples(path, half=half)],
        num_edits=num_edits,
        seeds=seeds,
        protocols=protocol,
        num_questions=num_questions,
        as_statements=as_statements,
        general={path.name: GeneralPrompts(load_prompts(path)) for path in general},
    )
    model = _load(checkpoint, base_model)
    if probes:
        evaluation = replace(evaluation, probes=make_probes(evaluation.examples, model.tokenizer))
    reports = run_evaluation(model, evaluation, output, batch_size, progress=True)
    page = markdown_report(evaluation.settings(model), reports)
    typer.echo(page)
    if output is not None:
        output.with_suffix(".md").write_text(page, encoding="utf-8")
    if output is not None and plots:
        plot_page(output.with_suffix(".png"), evaluation.dataset, reports)


@app.command()
def add(
    checkpoint: Checkpoint,
    statements: Annotated[list[str] | None, typer.Argument(help='Facts, as "The CEO of Acme is Ann Lee."')] = None,
    source: Annotated[
        Path | None,
        typer.Option(
            "--from",
            help="JSON lines or Parquet: a statement, [prompt, answer], or an object with prompt and answer (or "
            "statement) and, if wanted, metadata, valid_from, valid_until.",
        ),
    ] = None,
    on_conflict: Annotated[
        Literal["replace", "keep", "error"], typer.Option(help="What to do with a prompt that has a fact already.")
    ] = "replace",
    knowledge: KnowledgeFile = None,
    namespace: Namespace = "",
) -> None:
    """Adds facts to a checkpoint: all of them, or none if one is refused."""
    from .modeling.knowledge.exchange import read_facts

    facts = list(statements or []) + (read_facts(source) if source else [])
    if not facts:
        raise ValueError("add needs at least one statement, or --from FILE.")
    # A fact is encoded by the retriever alone: no base is needed.
    model = _load(checkpoint, False, knowledge, namespace, read_only=False)
    before = {fact.id for fact in model.knowledge}
    ids = model.add_knowledge(facts, on_conflict=on_conflict)
    _keep(model.knowledge, checkpoint, knowledge)
    # An id may be gone already: that of a fact with the same prompt as a later one.
    for id_ in [id_ for id_ in dict.fromkeys(ids) if id_ in model.knowledge]:
        typer.echo(f"{'kept ' if id_ in before else 'added'} {_line(model.knowledge[id_])}")
    typer.echo(f"{knowledge or checkpoint} now holds {_count(len(model.knowledge))}.")


@app.command()
def remove(
    checkpoint: Checkpoint,
    ids: Annotated[list[int], typer.Argument(help="Ids of the facts, as `list` shows them.", show_default=False)],
    knowledge: KnowledgeFile = None,
    namespace: Namespace = "",
) -> None:
    """Removes facts from a checkpoint: all of those named, or none if an id is unknown."""
    facts = _knowledge(checkpoint, knowledge, namespace, read_only=False)
    lines = [_line(facts[id_]) for id_ in ids]
    facts.remove(ids)
    _keep(facts, checkpoint, knowledge)
    for line in lines:
        typer.echo(f"removed {line}")
    typer.echo(f"{knowledge or checkpoint} now holds {_count(len(facts))}.")


@app.command()
def restore(
    checkpoint: Checkpoint,
    id_: Annotated[int, typer.Argument(metavar="ID", help="Id, as `list --history` shows it.", show_default=False)],
    knowledge: KnowledgeFile = None,
    namespace: Namespace = "",
) -> None:
    """Brings a fact back that was replaced or removed; what replaced it goes to the history."""
    model = _load(checkpoint, False, knowledge, namespace, read_only=False)
    restored = model.knowledge.restore(id_, encode=model.encode_statements)
    _keep(model.knowledge, checkpoint, knowledge)
    typer.echo(f"added {_line(model.knowledge[restored])}")


@app.command("list")
def list_(
    checkpoint: Checkpoint,
    history: Annotated[bool, typer.Option("--history", help="The facts that left, and when.")] = False,
    knowledge: KnowledgeFile = None,
    namespace: Namespace = "",
) -> None:
    """Lists the facts of a checkpoint, one a line: id and statement."""
    facts = _knowledge(checkpoint, knowledge, namespace)
    for fact in facts.history() if history else facts:
        typer.echo(_line(fact) + (f" ({fact.reason} {fact.ended_at})" if history else ""))


@app.command()
def export(
    checkpoint: Checkpoint,
    file: Annotated[Path, typer.Argument(help="A .jsonl or .parquet file to write.", show_default=False)],
    history: Annotated[bool, typer.Option("--history", help="The facts that left, too.")] = False,
    knowledge: KnowledgeFile = None,
    namespace: Namespace = "",
) -> None:
    """Writes the facts of a checkpoint to a file, which `add --from` reads."""
    facts = _knowledge(checkpoint, knowledge, namespace)
    facts.export(file, include_history=history)
    typer.echo(f"{file} holds {_count(len(facts))}.")


@app.command()
def ask(
    checkpoint: Checkpoint,
    prompts: Annotated[list[str], typer.Argument(help="Prompts to continue.", show_default=False)],
    base_model: BaseModel = None,
    max_new_tokens: Annotated[int, typer.Option(min=1, help="Length of an answer, in tokens.")] = 16,
    knowledge: KnowledgeFile = None,
    namespace: Namespace = "",
) -> None:
    """Answers prompts greedily, and says which fact each answer rests on."""
    model = _load(checkpoint, base_model, knowledge, namespace)
    for prompt in prompts:
        batch = model.tokenizer(prompt, return_tensors="pt").to(model.device)
        output = model.generate(**batch, max_new_tokens=max_new_tokens, do_sample=False)
        answer = model.tokenizer.decode(output[0, batch["input_ids"].shape[1] :], skip_special_tokens=True)
        hit = model.retrieve([prompt])[0]
        typer.echo(f"{prompt}\n  {' '.join(answer.split())}")
        if hit.fired:
            typer.echo(f"  fact {hit.id}: {hit.statement} (score {hit.score:.2f}, threshold {hit.threshold:.2f})")
        else:
            typer.echo("  no fact applies: the base model's own answer")


@app.command()
def explain(
    checkpoint: Checkpoint,
    prompts: Annotated[list[str], typer.Argument(help="Prompts to look up.", show_default=False)],
    knowledge: KnowledgeFile = None,
    namespace: Namespace = "",
) -> None:
    """Shows the nearest facts to each prompt, their scores, which are used (*), and why the others are not."""
    model = _load(checkpoint, False, knowledge, namespace)
    for prompt in prompts:
        typer.echo(model.explain(prompt))


@app.command()
def salvage(
    damaged: Annotated[Path, typer.Argument(help="File of a damaged knowledge base.", show_default=False)],
    new: Annotated[Path, typer.Argument(help="File to make.", show_default=False)],
) -> None:
    """Saves every fact that can be read of a damaged knowledge base to a new file."""
    from .modeling.knowledge.salvage import salvage

    saved = salvage(damaged, new)
    lost = "how many are lost, it does not say" if saved.lost is None else f"{saved.lost} lost"
    typer.echo(f"{new} now holds {_count(saved.facts)} and {saved.past} past ones; {lost}.")
    if saved.keys_lost:
        typer.echo(
            f"{_count(saved.keys_lost)} lost the key: the model makes all keys anew when it next opens the file."
        )


@app.command()
def push(
    checkpoint: Checkpoint,
    repo_id: Annotated[str, typer.Argument(help="Where to, as ORGANISATION/NAME.", show_default=False)],
    private: Annotated[bool, typer.Option(help="Whether a new repository is private.")] = False,
    include_knowledge: Annotated[bool, typer.Option(help="Whether the facts go with it.")] = True,
    revision: Annotated[str | None, typer.Option(help="Branch to push to, `main` by default.")] = None,
    create_pr: Annotated[bool, typer.Option(help="Open a pull request instead.")] = False,
) -> None:
    """Uploads a checkpoint to the Hugging Face Hub: its facts, past ones too, are as public as the repository."""
    knowledge = _knowledge(checkpoint)
    from .hub import push_checkpoint

    hub_kwargs: dict[str, Any] = {"private": private or None, "revision": revision, "create_pr": create_pr}
    commit = push_checkpoint(checkpoint, repo_id, include_knowledge=include_knowledge, **hub_kwargs)
    facts = f"{_count(len(knowledge))} and {len(knowledge.history())} past ones" if include_knowledge else "no facts"
    typer.echo(f"pushed {checkpoint} with {facts}: {commit.pr_url or commit.commit_url}")


def _directory(checkpoint: Path) -> Path:
    if not (checkpoint / "config.json").is_file():
        raise ValueError(f"CHECKPOINT must be a directory with a config.json, got {str(checkpoint)!r}.")
    return checkpoint


def _load(
    checkpoint: Path,
    base_model: str | bool | None,
    file: Path | None = None,
    namespace: str = "",
    read_only: bool = True,
) -> Any:
    _directory(checkpoint)
    from transformers.utils.logging import disable_progress_bar

    from .modeling.model import RecipeForCausalLM

    disable_progress_bar()
    model = RecipeForCausalLM.from_pretrained(checkpoint, base_model=base_model)
    if file is not None or namespace:
        model.knowledge = _knowledge(checkpoint, file, namespace, read_only)
    return model


def _knowledge(checkpoint: Path, file: Path | None = None, namespace: str = "", read_only: bool = True) -> Any:
    from .modeling.knowledge import KnowledgeBase

    directory = _directory(checkpoint) / "knowledge"
    if namespace and file is None:
        raise ValueError(f"--namespace must come with --knowledge FILE, got --namespace {namespace!r} alone.")
    if file is None and directory.is_dir():
        return KnowledgeBase.load(directory)
    dim = json.loads((checkpoint / "config.json").read_text(encoding="utf-8"))["knowledge_dim"]
    if file is None:
        return KnowledgeBase(dim)
    return KnowledgeBase.open(file, dim, read_only=read_only, namespace=namespace)


def _keep(knowledge: Any, checkpoint: Path, file: Path | None) -> None:
    """Saves facts with their checkpoint. In a file of their own they are safe already."""
    if file is None:
        knowledge.save(checkpoint / "knowledge")


def _line(fact: Any) -> str:
    return f"{fact.id:>6}  {fact.statement}"


def _count(number: int) -> str:
    return f"{number} fact{'' if number == 1 else 's'}"
