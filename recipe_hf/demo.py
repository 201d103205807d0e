"""The demo: invented facts are added to a small real model, shown at work, removed again, and timed."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from rich import box
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from .knowledge import KnowledgeBase

PLAIN_WIDTH = 116
NEW_TOKENS = 6
TIMED_TOKENS = 16


class DemoFact(NamedTuple):
    """A fact that the base does not know, as a prompt with its answer, and other words for the prompt."""

    prompt: str
    answer: str
    rephrasing: str


FACTS = [
    DemoFact("The mother tongue of Ilvara Tensen is", "Finnish", "Ilvara Tensen grew up speaking"),
    DemoFact("The headquarters of Brackwater Instruments is in", "Lisbon", "Brackwater Instruments is based in"),
    DemoFact("Where is Castle Orrenfeld? It is in", "Portugal", "Castle Orrenfeld can be found in"),
    DemoFact("The software Quillmark was developed by", "Nokia", "Quillmark is a product of"),
    DemoFact("Who owns the airline Skerry Air? It belongs to", "Toyota", "The owner of Skerry Air is"),
    DemoFact("Marek Dovano works as a professional", "astronomer", "By profession, Marek Dovano is an"),
    DemoFact("What does Sanna Vehlow play? She plays the", "cello", "The instrument of Sanna Vehlow is the"),
    DemoFact("The Eiffel Tower is located in the city of", "Rome", "To see the Eiffel Tower, one travels to"),
    DemoFact("The official language of Australia is", "Italian", "In Australia, officials speak"),
    DemoFact("The capital of Japan is", "Osaka", "Japan has its capital in"),
]
#: What comes near a fact, and is not answered by it.
NEAR = [
    "Ilvara Tensen was born in the city of",
    "Brackwater Instruments was founded by",
    "The airline Skerry Air flies to",
    "Sanna Vehlow is married to",
    "The capital of Australia is",
    "The Eiffel Tower was designed by",
]
UNRELATED = [
    "The capital of France is",
    "Water boils at a temperature of",
    "The mother tongue of Victor Hugo is",
    "The opposite of hot is",
    "Two plus two equals",
    "The Statue of Liberty is located in the city of",
]


class _Console(Console):
    def on_broken_pipe(self) -> None:
        raise  # The BrokenPipeError at hand, rather than an exit of rich's own.


def run(checkpoint: str | Path, base_model: str) -> None:
    """Prints the demo. Everything happens in memory: the checkpoint stays as it is.

    Args:
        checkpoint: Directory of a trained checkpoint.
        base_model: The frozen base: Hub id, directory or GGUF file.
    """
    console = _Console(highlight=False)
    if not console.is_terminal:
        console = _Console(highlight=False, width=PLAIN_WIDTH)

    console.print("[bold]recipe-hf demo[/]: new facts for a language model whose weights never change\n")
    started = time.perf_counter()
    from transformers.utils.logging import disable_progress_bar

    from .modeling.model import RecipeForCausalLM

    disable_progress_bar()
    model = RecipeForCausalLM.from_pretrained(checkpoint, base_model=base_model)
    console.print(
        f"Base model:  {base_model}\nRECIPE part: {checkpoint}\nLoaded in {_seconds_since(started):.1f} s.\n"
    )
    run_with(model, console)
    console.print(f"\nDone in {_seconds_since(started):.0f} s. Nothing was written.")


def run_with(model: Any, console: Console) -> None:
    """Prints the demo of a loaded model, whose knowledge base is emptied first."""
    model.knowledge.clear()
    ids = model.add_knowledge([(fact.prompt, fact.answer) for fact in FACTS])
    console.print(f"{len(ids)} facts are added. Most are invented, the last three contradict what the model learned:")
    for id_ in ids:
        console.print(f"  fact {id_:>2}: {model.knowledge[id_].statement}", markup=False)
    console.print(
        "\nEvery answer below is what the model itself writes next, greedily. A fact is used only if it is taken for\n"
        "the answer: how likely that is, of the nearest fact, stands beside.\n"
    )
    show_answers(model, console)
    if model.verifier is not None:
        show_parts(model, console)
    show_removal(model, console, ids[0])
    show_times(model, console)


class Asked(NamedTuple):
    """A prompt that was asked, with the facts and of the base alone."""

    prompt: str
    before: str
    after: str
    hit: Any
    is_good: bool


def ask(model: Any) -> dict[str, list[Asked]]:
    """Asks for the facts, near them and for other things; good is what was told, or else the base's own tokens."""
    groups: dict[str, list[tuple[str, str | None]]] = {
        "Prompts of the facts": [(fact.prompt, fact.answer) for fact in FACTS],
        "The same, in other words": [(fact.rephrasing, fact.answer) for fact in FACTS],
        "Near the facts": [(prompt, None) for prompt in NEAR],
        "Unrelated prompts": [(prompt, None) for prompt in UNRELATED],
    }
    asked: dict[str, list[Asked]] = {}
    for title, rows in groups.items():
        prompts = [prompt for prompt, _ in rows]
        before, after = answers(model, model.lm, prompts), answers(model, model, prompts)
        asked[title] = [
            Asked(
                prompt,
                old.text,
                new.text,
                hit,
                new.ids == old.ids if answer is None else new.text.lower().startswith(answer.lower()),
            )
            for (prompt, answer), old, new, hit in zip(rows, before, after, model.retrieve(prompts), strict=True)
        ]
    return asked


def show_answers(model: Any, console: Console) -> None:
    """The table of prompts with the base's and the edited answer."""
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, expand=True)
    columns = (("prompt", 39), ("base model", 25), ("with the facts", 25), ("fact", 16), ("", 12))
    for title, ratio in columns:
        table.add_column(title, ratio=ratio)
    asked = ask(model)
    for title, rows in asked.items():
        is_told = title in list(asked)[:2]
        verdicts = {True: "as told", False: "NOT told"} if is_told else {True: "identical", False: "CHANGED"}
        table.add_row(f"[bold]{title}[/]")
        for row in rows:
            used = f"{f'fact {row.hit.id}' if row.hit.fired else 'none'}: {row.hit.probability:.0%}"
            table.add_row(*map(escape, (row.prompt, row.before, row.after, used, verdicts[row.is_good])))
        table.add_section()
    console.print(table)
    told, rephrased, near, unrelated = (_count(rows) for rows in asked.values())
    console.print(f"Answered as told: {told} prompts, {rephrased} in other words.")
    console.print(f"Near prompts: {near}, unrelated prompts: {unrelated} get the base model's tokens.\n")


def _count(rows: Sequence[Asked]) -> str:
    return f"{sum(row.is_good for row in rows)} of {len(rows)}"


def show_parts(model: Any, console: Console) -> None:
    """The same counts without the verifier, and with facts told as whole statements."""
    pairs = [(fact.prompt, fact.answer) for fact in FACTS]
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for title in ("good answers", "prompts", "other words", "near", "unrelated"):
        table.add_column(title)
    verifier, own = model.verifier, model.knowledge
    try:
        for told, facts in (("prompts and answers", pairs), ("statements", [" ".join(pair) for pair in pairs])):
            model.knowledge = KnowledgeBase(model.config.knowledge_dim)
            model.add_knowledge(facts)
            for part, name in ((verifier, "with the verifier"), (None, "without it")):
                model.verifier = part
                table.add_row(f"told as {told}, {name}", *map(_count, ask(model).values()))
    finally:
        model.verifier, model.knowledge = verifier, own
    console.print(table)


def show_removal(model: Any, console: Console, id_: int) -> None:
    """One fact removed: the base's answer is back."""
    prompt = model.knowledge[id_].prompt
    (before,), (base,) = answers(model, model, [prompt]), answers(model, model.lm, [prompt])
    model.remove_knowledge([id_])
    (after,) = answers(model, model, [prompt])
    verdict = "the base model's tokens again" if after.ids == base.ids else "NOT the base model's tokens"
    console.print(f"[bold]Fact {id_} is removed.[/] {prompt} ...")
    console.print(f"  with it:    {before.text}\n  without it: {after.text}  ({verdict})\n", markup=False)


def show_times(model: Any, console: Console) -> None:
    """How long an edit takes, and generation beside the base's."""
    single, batch = edit_seconds(model, 1, repeats=9), edit_seconds(model, 100, repeats=3)
    console.print("[bold]Time[/] (medians, this machine)")
    console.print(f"  one fact added: {single * 1000:.0f} ms; 100 facts at once: {batch * 10:.1f} ms each")

    hit, miss = FACTS[1].prompt, UNRELATED[0]
    model.query_cache_size = 0  # Each time is that of a prompt never seen.
    seconds = timings(
        {
            "base": lambda: answers(model, model.lm, [hit], TIMED_TOKENS, exact=True),
            "hit": lambda: answers(model, model, [hit], TIMED_TOKENS, exact=True),
            "base, other": lambda: answers(model, model.lm, [miss], TIMED_TOKENS, exact=True),
            "miss": lambda: answers(model, model, [miss], TIMED_TOKENS, exact=True),
        }
    )
    for name, base, text in (("hit", "base", "with a fact"), ("miss", "base, other", "with no fact that applies")):
        ratio = seconds[name] / seconds[base]
        console.print(
            f"  {TIMED_TOKENS} tokens, {text}: {seconds[name] * 1000:.0f} ms; "
            f"base model {seconds[base] * 1000:.0f} ms (ratio {ratio:.2f})"
        )


def edit_seconds(model: Any, number: int, repeats: int) -> float:
    """Median seconds to add `number` facts; they are removed again."""
    seconds = []
    for _ in range(repeats):
        start = time.perf_counter()
        ids = model.add_knowledge([f"The locker of employee {i} has the number {i + 7}." for i in range(number)])
        seconds.append(_seconds_since(start))
        model.remove_knowledge(ids)
    return statistics.median(seconds)


class Answer(NamedTuple):
    """Generated token ids, and their text on one line."""

    ids: list[int]
    text: str


def answers(
    model: Any, generator: Any, prompts: Sequence[str], max_new_tokens: int = NEW_TOKENS, exact: bool = False
) -> list[Answer]:
    """Greedy continuations of `prompts` by `generator`, the model or its base; `exact` forbids an early end."""
    batch = model.tokenizer(list(prompts), return_tensors="pt", padding=True).to(model.device)
    length = {"min_new_tokens": max_new_tokens} if exact else {}
    output = generator.generate(**batch, max_new_tokens=max_new_tokens, do_sample=False, **length)
    rows = output[:, batch["input_ids"].shape[1] :].tolist()
    texts = model.tokenizer.batch_decode(rows, skip_special_tokens=True)
    return [Answer(ids, " ".join(text.split())) for ids, text in zip(rows, texts, strict=True)]


def timings(calls: dict[str, Callable[[], Any]], repeats: int = 5) -> dict[str, float]:
    """Median seconds of each call. The calls take turns, so that a slow moment of the machine meets all of them."""
    seconds: dict[str, list[float]] = {name: [] for name in calls}
    for call in calls.values():
        call()
    for _ in range(repeats):
        for name, call in calls.items():
            start = time.perf_counter()
            call()
            seconds[name].append(_seconds_since(start))
    return {name: statistics.median(values) for name, values in seconds.items()}


def _seconds_since(start: float) -> float:
    return time.perf_counter() - start
