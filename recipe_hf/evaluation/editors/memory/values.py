"""Keys of facts, and the values that make a model say them: what ROME, MEMIT and their kin compute for each fact."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase

from ....datasets import EditExample
from ....teacher_forcing import IGNORE_INDEX, Row, answer_logits, tokenize_rows
from .layers import Layer, by_row, hidden, hooked, with_hidden

_BATCH_SIZE = 32
#: What follows the subject where its essence must stay (ROME, eq. 4).
_ESSENCE = " is a"


@dataclass(frozen=True)
class Lookup:
    """A text in which a fact is looked up.

    Args:
        row: Its tokens, and those of the answer.
        place: Number of the token at which the memory is asked: the subject's last, or the last of the prompt where
            the data do not name a subject, or the prompt does not.
    """

    row: Row
    place: int

    @property
    def column(self) -> int:
        """Where `place` is in a batch that is padded on the left and lacks the last token of the answer."""
        return self.place - (len(self.row) - 1)


def subject_end(fact: EditExample) -> int | None:
    """Where the subject ends in a fact's prompt, in characters; None if the prompt does not name it."""
    start = fact.prompt.find(fact.subject) if fact.subject else -1
    if start < 0 and fact.subject:
        start = fact.prompt.lower().find(fact.subject.lower())
    return None if start < 0 else start + len(fact.subject)


def find_lookups(
    tokenizer: PreTrainedTokenizerBase, texts: Sequence[str], answers: Sequence[str], ends: Sequence[int | None]
) -> list[Lookup]:
    """Tokenises texts with their answers, and finds the tokens that end their subjects.

    Args:
        tokenizer: The tokenizer, a fast one.
        texts: The texts.
        answers: What follows each.
        ends: Where the subject ends in each, in characters, if it is there.
    """
    rows = tokenize_rows(tokenizer, texts, answers)
    encoded = tokenizer(list(texts))
    places = [None if end is None else encoded.char_to_token(i, end - 1) for i, end in enumerate(ends)]
    return [
        Lookup(row, len(row.prompt_ids) - 1 if place is None else place)
        for row, place in zip(rows, places, strict=True)
    ]


def fact_lookups(tokenizer: PreTrainedTokenizerBase, fact: EditExample, contexts: Sequence[str]) -> list[Lookup]:
    """A fact in each of some contexts, which are put before its prompt."""
    end = subject_end(fact)
    return find_lookups(
        tokenizer,
        [f"{context}{fact.prompt}" for context in contexts],
        [fact.answer] * len(contexts),
        [None if end is None else len(context) + end for context in contexts],
    )


def batch_columns(lookups: Sequence[Lookup]) -> tuple[Tensor, Tensor]:
    """Row and column of each lookup's place, as `answer_logits` has a model read them: in order of length."""
    order = sorted(range(len(lookups)), key=lambda i: len(lookups[i].row))
    rows = torch.tensor(order).argsort()
    return rows, torch.tensor([lookup.column for lookup in lookups])


@torch.no_grad()
def read_at(lm: Any, lookups: Sequence[Lookup], keys: Sequence[Layer], states: Sequence[Layer]) -> dict[Any, Tensor]:
    """What layers hold where facts are looked up.

    Args:
        lm: The model.
        lookups: The texts.
        keys: Layers whose keys and values to read.
        states: Layers whose output to read.

    Returns:
        For each layer, under `("key", number)` `[n, d_key]`, under `("value", number)` and `("state", number)`
        `[n, d_llm]`, in float32.
    """
    found: dict[Any, list[Tensor]] = {}

    def keep(name: Any, tensor: Tensor, at: tuple[Tensor, Tensor]) -> None:
        tensor = by_row(tensor, len(at[0]))
        found.setdefault(name, []).append(tensor[at[0].to(tensor.device), at[1].to(tensor.device)].float())

    def on_down(number: int, at: tuple[Tensor, Tensor]) -> Any:
        def hook(module: nn.Module, args: Any, output: Tensor) -> None:
            keep(("key", number), args[0], at)
            keep(("value", number), output, at)

        return hook

    for start in range(0, len(lookups), _BATCH_SIZE):
        batch = lookups[start : start + _BATCH_SIZE]
        at = batch_columns(batch)
        handles = [layer.down.register_forward_hook(on_down(layer.number, at)) for layer in keys]
        for layer in states:
            handles.append(
                layer.module.register_forward_hook(
                    lambda m, a, output, n=layer.number, at=at: keep(("state", n), hidden(output), at)
                )
            )
        with hooked(handles):
            answer_logits(lm, [lookup.row for lookup in batch])
    return {name: torch.cat(parts) for name, parts in found.items()}


@contextmanager
def adding(module: nn.Module, delta: Tensor, lookups: Sequence[Lookup]) -> Iterator[list[Tensor]]:
    """Within it, `delta` is added to what a module gives where facts are looked up.

    Args:
        module: A layer, or the last map of its MLP.
        delta: `[d_llm]` for all lookups alike.
        lookups: What is read, in one batch of `answer_logits`.

    Yields:
        A list that gets what the module itself gave at the first lookup, `[d_llm]`.
    """
    rows, columns = batch_columns(lookups)
    given: list[Tensor] = []

    def add(module: nn.Module, args: Any, output: Any) -> Any:
        states = by_row(hidden(output), len(rows))
        at = rows.to(states.device), columns.to(states.device)
        given.append(states[at][0].detach().float())
        changed = states.index_put(at, states[at] + delta.to(states))
        return with_hidden(output, changed.view_as(hidden(output)))

    with hooked([module.register_forward_hook(add)]):
        yield given


@dataclass(frozen=True)
class ValueSearch:
    """How the value of a fact is found by gradients (ROME, eq. 4; MEMIT, eq. 16).

    Published, by the authors' configurations for GPT-2 XL (ROME) and GPT-J (MEMIT): all numbers.

    Args:
        steps: At most so many forwards.
        learning_rate: Of Adam, on the change of the value.
        kl_factor: Weight of the divergence at the essence of the subject.
        weight_decay: Weight of the change's norm over the squared norm of the value.
        clamp: The change is kept within so many norms of the value.
        enough: Loss at which the search ends.
    """

    steps: int = 20
    learning_rate: float = 0.5
    kl_factor: float = 0.0625
    weight_decay: float = 0.5
    clamp: float = 4.0
    enough: float = 0.05


def find_value(
    lm: Any,
    module: nn.Module,
    tokenizer: PreTrainedTokenizerBase,
    fact: EditExample,
    contexts: Sequence[str],
    search: ValueSearch,
) -> tuple[Tensor, float]:
    """Finds what a module must give at the lookup for a fact to be said.

    Minimises the negative log-likelihood of the answer, over contexts, and the divergence of what follows
    "{subject} is a" from what followed it before, if the data name a subject.

    Args:
        lm: The model, as edited so far.
        module: The last map of an MLP (ROME), or a layer (MEMIT).
        tokenizer: The model's tokenizer.
        fact: The fact.
        contexts: Texts before the prompt; the first is empty.
        search: How to search.

    Returns:
        The value `[d_llm]` in float32, that of the first context plus the change that was found, and the last loss.
    """
    lookups = fact_lookups(tokenizer, fact, contexts)
    number = len(lookups)
    if fact.subject:
        # Its answer, one token, is never read.
        essence = find_lookups(tokenizer, [fact.subject + _ESSENCE], ["."], [len(fact.subject)])[0]
        lookups.append(Lookup(Row(essence.row.prompt_ids, [0]), essence.place))
    rows = [lookup.row for lookup in lookups]
    width = lm.config.get_text_config(decoder=True).hidden_size
    delta = torch.zeros(width, device=next(module.parameters()).device, requires_grad=True)
    optimizer = torch.optim.Adam([delta], search.learning_rate)
    before = value = torch.empty(0)
    loss = torch.tensor(0.0)
    for step in range(search.steps):
        with torch.enable_grad(), adding(module, delta, lookups) as given:
            logits, labels = answer_logits(lm, rows)
            loss = F.cross_entropy(logits[:number].float().transpose(1, 2), labels[:number], ignore_index=IGNORE_INDEX)
            if not step:
                value = given[0].to(delta.device)
            if len(rows) > number:
                now = logits[number, -1].float().log_softmax(-1)
                before = before if step else now.detach()
                loss = loss + search.kl_factor * F.kl_div(now, before, log_target=True, reduction="sum")
            loss = loss + search.weight_decay * delta.norm() / value.norm() ** 2
        if loss.item() < search.enough or step == search.steps - 1:
            break
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        with torch.no_grad():
            delta.mul_((search.clamp * value.norm() / delta.norm()).clamp(max=1.0))
    return value + delta.detach(), loss.item()
