"""`recipe-hf add`, `remove`, `list`, `ask`, `explain` and so on: the facts of a checkpoint, or of a file."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from ..errors import existing_file
from .app import BaseModel, Checkpoint, NoVerifier, app, count_facts, load_knowledge, load_model, say

KnowledgeFile = Annotated[
    Path | None,
    typer.Option(
        "--knowledge", help="File that keeps the facts, rather than the checkpoint's own.", show_default=False
    ),
]
Namespace = Annotated[str, typer.Option(help="Whose facts of that file.", show_default=False)]


def _are_prompts(prompts: list[str]) -> list[str]:
    for prompt in prompts:
        if not prompt.strip():
            raise ValueError(f"PROMPTS must not be blank, got {prompt!r}.")
    return prompts


Prompts = Annotated[list[str], typer.Argument(help="Prompts.", show_default=False, callback=_are_prompts)]


@app.command()
def add(
    checkpoint: Checkpoint,
    statements: Annotated[list[str] | None, typer.Argument(help='Facts, as "The CEO of Acme is Ann Lee."')] = None,
    prompt: Annotated[
        list[str] | None,
        typer.Option(help='What the fact continues or answers, as "The CEO of Acme is"; may be given again.'),
    ] = None,
    answer: Annotated[list[str] | None, typer.Option(help='The answer to each --prompt, as "Ann Lee".')] = None,
    source: Annotated[
        Path | None,
        typer.Option(
            "--from",
            help="JSON lines or Parquet: a statement, [prompt, answer], or an object with prompt and answer (or "
            "statement) and, if wanted, metadata, valid_from, valid_until.",
        ),
    ] = None,
    on_conflict: Annotated[
        Literal["replace", "keep", "error", "supersede", "report"],
        typer.Option(
            help="What to do with a prompt that has a fact already; `supersede` and `report` look for facts in other "
            "words whose place a new one takes, too."
        ),
    ] = "replace",
    knowledge: KnowledgeFile = None,
    namespace: Namespace = "",
) -> None:
    """Adds facts to a checkpoint: all of them, or none if one is refused."""
    prompts, answers = prompt or [], answer or []
    if len(prompts) != len(answers):
        raise ValueError(f"--answer must be given once for each --prompt, got {len(answers)} for {len(prompts)}.")
    told = [*zip(prompts, answers, strict=True), *(statements or [])]
    if not told and source is None:
        raise ValueError("add needs at least one statement, --prompt with --answer, or --from FILE.")
    facts = _told(told, source)
    # A fact is encoded by the retriever alone: no base is needed.
    model = load_model(checkpoint, False, knowledge, namespace, read_only=False)
    before = {fact.id for fact in model.knowledge}
    ids = model.add_knowledge(facts, on_conflict=on_conflict)
    _keep(model.knowledge, checkpoint, knowledge)
    # An id may be gone already: that of a fact with the same prompt as a later one.
    for id_ in [id_ for id_ in dict.fromkeys(ids) if id_ in model.knowledge]:
        say(f"{'kept ' if id_ in before else 'added'} {_line(model.knowledge[id_])}")
    say(f"{knowledge or checkpoint} now holds {count_facts(len(model.knowledge))}.")


@app.command()
def remove(
    checkpoint: Checkpoint,
    ids: Annotated[list[int], typer.Argument(help="Ids of the facts, as `list` shows them.", show_default=False)],
    knowledge: KnowledgeFile = None,
    namespace: Namespace = "",
) -> None:
    """Removes facts from a checkpoint: all of those named, or none if an id is unknown."""
    facts = load_knowledge(checkpoint, knowledge, namespace, read_only=False)
    ids = list(dict.fromkeys(ids))
    lines = [_line(facts[id_]) for id_ in ids]
    facts.remove(ids)
    _keep(facts, checkpoint, knowledge)
    for line in lines:
        say(f"removed {line}")
    say(f"{knowledge or checkpoint} now holds {count_facts(len(facts))}.")


@app.command()
def restore(
    checkpoint: Checkpoint,
    id_: Annotated[int, typer.Argument(metavar="ID", help="Id, as `list --history` shows it.", show_default=False)],
    knowledge: KnowledgeFile = None,
    namespace: Namespace = "",
) -> None:
    """Brings a fact back that was replaced or removed; what replaced it goes to the history."""
    model = load_model(checkpoint, False, knowledge, namespace, read_only=False)
    restored = model.knowledge.restore(id_, encode=model.encode_statements)
    _keep(model.knowledge, checkpoint, knowledge)
    say(f"added {_line(model.knowledge[restored])}")


@app.command("list")
def list_(
    checkpoint: Checkpoint,
    history: Annotated[bool, typer.Option("--history", help="The facts that left, and when.")] = False,
    knowledge: KnowledgeFile = None,
    namespace: Namespace = "",
) -> None:
    """Lists the facts of a checkpoint, one a line: id and statement."""
    facts = load_knowledge(checkpoint, knowledge, namespace)
    for fact in facts.history() if history else facts:
        say(_line(fact) + (f" ({fact.reason} {fact.ended_at})" if history else ""))


@app.command()
def export(
    checkpoint: Checkpoint,
    file: Annotated[Path, typer.Argument(help="A .jsonl or .parquet file to write.", show_default=False)],
    history: Annotated[bool, typer.Option("--history", help="The facts that left, too.")] = False,
    knowledge: KnowledgeFile = None,
    namespace: Namespace = "",
) -> None:
    """Writes the facts of a checkpoint to a file, which `add --from` reads."""
    facts = load_knowledge(checkpoint, knowledge, namespace)
    facts.export(file, include_history=history)
    say(f"{file} holds {count_facts(len(facts))}.")


@app.command()
def ask(
    checkpoint: Checkpoint,
    prompts: Prompts,
    base_model: BaseModel = None,
    max_new_tokens: Annotated[int, typer.Option(min=1, help="Length of an answer, in tokens.")] = 16,
    knowledge: KnowledgeFile = None,
    namespace: Namespace = "",
    no_verifier: NoVerifier = False,
) -> None:
    """Answers prompts greedily, and says which fact each answer rests on."""
    model = load_model(checkpoint, base_model, knowledge, namespace, no_verifier=no_verifier)
    _check_lengths(model, prompts, max_new_tokens)
    for prompt in prompts:
        batch = model.tokenizer(prompt, return_tensors="pt").to(model.device)
        output = model.generate(**batch, max_new_tokens=max_new_tokens, do_sample=False)
        answer = model.tokenizer.decode(output[0, batch["input_ids"].shape[1] :], skip_special_tokens=True)
        hit = model.retrieve([prompt])[0]
        say(f"{prompt}\n  {' '.join(answer.split())}")
        if hit.fired:
            say(f"  fact {hit.id}: {hit.statement} (score {hit.score:.2f}, threshold {hit.threshold:.2f})")
        else:
            say("  no fact applies: the base model's own answer")


@app.command()
def explain(
    checkpoint: Checkpoint,
    prompts: Prompts,
    knowledge: KnowledgeFile = None,
    namespace: Namespace = "",
    no_verifier: NoVerifier = False,
) -> None:
    """Shows the nearest facts to each prompt, their scores, which are used (*), and why the others are not."""
    model = load_model(checkpoint, False, knowledge, namespace, no_verifier=no_verifier)
    for prompt in prompts:
        say(model.explain(prompt))


@app.command()
def salvage(
    damaged: Annotated[Path, typer.Argument(help="File of a damaged knowledge base.", show_default=False)],
    new: Annotated[Path, typer.Argument(help="File to make.", show_default=False)],
) -> None:
    """Saves every fact that can be read of a damaged knowledge base to a new file."""
    from ..knowledge.sqlite.salvage import salvage

    saved = salvage(damaged, new)
    lost = "how many are lost, it does not say" if saved.lost is None else f"{saved.lost} lost"
    say(f"{new} now holds {count_facts(saved.facts)} and {saved.past} past ones; {lost}.")
    if saved.keys_lost:
        say(f"{count_facts(saved.keys_lost)} lost the key: the model makes all keys anew when it next opens the file.")


def _told(told: list[Any], source: Path | None) -> list[Any]:
    """The facts of the command line and of a file, checked."""
    from ..knowledge.facts import parse_facts

    facts = parse_facts(told) if told else []
    if source is None:
        return facts
    from ..knowledge.exchange import read_facts

    read = read_facts(existing_file("--from", source))
    if not read:
        raise ValueError(f"--from must be a file of at least one fact, got {str(source)!r}, which holds none.")
    return facts + read


def _check_lengths(model: Any, prompts: list[str], max_new_tokens: int) -> None:
    """Checks that the base has positions for the prompts, the facts before them and the answers."""
    positions = getattr(model.lm.config.get_text_config(), "max_position_embeddings", None)
    if positions is None:
        return
    for ids, of_facts in zip(model.tokenizer(prompts)["input_ids"], _tokens_of_facts(model, prompts), strict=True):
        room = positions - of_facts - max_new_tokens
        if room < 1:
            raise ValueError(f"--max-new-tokens must be at most {positions - of_facts - 1}, got {max_new_tokens}.")
        if len(ids) > room:
            raise ValueError(
                f"PROMPTS must be of at most {room} tokens, the base's {positions} less those of facts and answer, "
                f"got one of {len(ids)}."
            )


def _tokens_of_facts(model: Any, prompts: list[str]) -> list[int]:
    """How many tokens the facts of each prompt take: at most, or where they are told as text, those of these facts."""
    from ..modeling.text_prompts import num_text_tokens

    config = model.config
    if config.prompt_form == "continuous":
        most = config.top_k_facts * (config.num_continuous_prompt_tokens + config.num_answer_prompt_tokens)
        return [most] * len(prompts)
    used = [[hit.statement for hit in (best, *best.others) if hit.fired] for best in model.retrieve(prompts)]
    return [sum(num_text_tokens(statements, model.tokenizer)) for statements in used]


def _keep(knowledge: Any, checkpoint: Path, file: Path | None) -> None:
    """Saves facts with their checkpoint. In a file of their own they are safe already."""
    if file is None:
        knowledge.save(checkpoint / "knowledge")


def _line(fact: Any) -> str:
    return f"{fact.id:>6}  {fact.statement}"
