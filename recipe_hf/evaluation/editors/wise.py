"""WISE: a side memory beside one MLP, and a router between the two (Wang et al., NeurIPS 2024, arXiv 2405.14768)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ...datasets import EditExample
from ...teacher_forcing import IGNORE_INDEX, Row, answer_logits
from .editor import Editor
from .memory.layers import by_row, find_layers, hooked
from .memory.values import fact_lookups
from .memory.writing import write_contexts, write_texts

if TYPE_CHECKING:
    from ...modeling.model import RecipeForCausalLM

#: Layer 27 of the 32 of Llama 2.
_DEPTH = 27 / 32
_NUM_IRRELEVANT, _IRRELEVANT_LENGTH = 20, 12


@dataclass
class SideMemory:
    """What is added to the weight of the last map of an MLP, and for whom.

    Args:
        change: W_v' - W_v, `[d_llm, d_key]`.
        activation: The least routing activation of its facts.
    """

    change: Tensor
    activation: float = float("inf")

    def activations(self, keys: Tensor, spans: Sequence[slice]) -> Tensor:
        """Routing activation of each row (eq. 2): |(W_v' - W_v) k|, the mean over the tokens of its prompt.

        Args:
            keys: `[batch, seq, d_key]`.
            spans: Where the prompt of each row stands.
        """
        norms = (keys.to(self.change) @ self.change.T).norm(dim=-1)
        return torch.stack([row[span].mean() for row, span in zip(norms, spans, strict=True)])


class Wise(Editor):
    """Trains a copy of the last map of a late MLP on the facts, and sends to it only prompts that resemble them.

    A prompt goes to the side memory if its routing activation is above epsilon, a share of the least among the facts;
    otherwise it is answered by the base. The copy learns a fact by gradient descent on the likelihood of its answer
    and on margins, so that facts activate it by beta, other text by less than alpha, and the two lie gamma apart
    (eq. 5). Of the weights only a random share may change, another one for each shard of facts (section 2.3); each two
    shards are merged by TIES into one memory (eq. 7), and of several memories the most active answers
    (WISE-Retrieve).

    Published: the rates, steps, margins, shares and sizes (Llama 2 7B). Chosen here: contexts of MEMIT; as irrelevant
    text what the base writes, so that no question that is asked later is trained on; and the prompt alone, without
    the answer, is what is routed. The margins are absolute: a base whose MLPs give much smaller values than those of
    Llama 2 needs smaller ones.

    Args:
        model: The model.
        layer: The layer; by default as deep as layer 27 of 32.
        steps: At most so many for each fact.
        learning_rate: Of plain gradient descent.
        margins: alpha, beta, gamma.
        share: How much of the weight a shard may change.
        epsilon: Share of the facts' least activation.
        shard_size: Facts in a shard.
        density: How much of a shard's change TIES keeps.
        clamp: No weight changes by more.
        contexts: Pairs of a length in tokens and how many texts of it are put before a prompt, beside none.

    Raises:
        ValueError: If the layers of the model cannot be found, or there is no such `layer`.
    """

    changes_model = True
    facts_at_once = 1

    def __init__(
        self,
        model: RecipeForCausalLM,
        layer: int | None = None,
        steps: int = 70,
        learning_rate: float = 1.0,
        margins: tuple[float, float, float] = (5.0, 20.0, 10.0),
        share: float = 0.2,
        epsilon: float = 0.88,
        shard_size: int = 500,
        density: float = 0.53,
        clamp: float = 1.0,
        contexts: Sequence[tuple[int, int]] = ((10, 5),),
    ) -> None:
        super().__init__(model)
        layers = find_layers(self.lm)
        number = int(_DEPTH * len(layers)) if layer is None else layer
        if not 0 <= number < len(layers):
            raise ValueError(f"layer must be between 0 and {len(layers) - 1}, got {number}.")
        self.layer = layers[number]
        self.steps = steps
        self.learning_rate = learning_rate
        self.margins = margins
        self.share = share
        self.epsilon = epsilon
        self.shard_size = shard_size
        self.density = density
        self.clamp = clamp
        self._lengths = contexts
        self._texts: tuple[list[str], list[Row]] | None = None
        self.settings |= {"layer": number, "learning rate": learning_rate, "margins": list(margins)}
        self.undo()

    def undo(self) -> None:
        self.merged: list[SideMemory] = []
        self.shards: list[SideMemory] = []
        self._mask = torch.empty(0)
        self._in_shard = 0
        self._number = 0

    # ------------------------------------------------------------------ editing

    def edit(self, facts: Sequence[EditExample]) -> None:
        for fact in facts:
            if self._in_shard % self.shard_size == 0:
                self._begin_shard()
            loss = self._learn(fact, self.shards[-1])
            self._in_shard += 1
            self._number += 1
            self.settings |= {"last loss": round(loss, 4), "memories": len(self.merged) + len(self.shards)}

    def _begin_shard(self) -> None:
        if len(self.shards) == 2:
            both = [shard.change for shard in self.shards]
            self.merged.append(SideMemory(ties(both, self.density), min(s.activation for s in self.shards)))
            self.shards = []
        weight = self.layer.weight()
        generator = torch.Generator().manual_seed(self._number)
        self._mask = (torch.rand(weight.shape, generator=generator) < self.share).to(weight.device)
        self.shards.append(SideMemory(torch.zeros(weight.shape, device=weight.device)))
        self._in_shard = 0

    def _learn(self, fact: EditExample, memory: SideMemory) -> float:
        contexts, irrelevant = self._surroundings()
        relevant = [lookup.row for lookup in fact_lookups(self.tokenizer, fact, contexts)]
        other = irrelevant[self._number % len(irrelevant)]
        # As `answer_logits` has the model read them.
        rows = sorted([*relevant, other], key=len)
        place = next(i for i, row in enumerate(rows) if row is other)
        alpha, beta, gamma = self.margins
        change = memory.change.requires_grad_(True)
        loss, inside = torch.tensor(0.0), torch.tensor(0.0)
        for step in range(self.steps):
            with torch.enable_grad(), self._through(memory, len(rows)) as seen:
                logits, labels = answer_logits(self.lm, rows)
                labels[place] = IGNORE_INDEX
                said = F.cross_entropy(logits.float().transpose(1, 2), labels, ignore_index=IGNORE_INDEX)
                activations = memory.activations(seen[0], _spans(rows, seen[0].shape[1]))
                outside = activations[place]
                inside = torch.cat([activations[:place], activations[place + 1 :]])
                margins = [(outside - alpha).relu(), (beta - inside).relu(), (gamma - inside + outside).relu()]
                loss = said + sum(_mean_of_positive(margin) for margin in margins)
            if loss.item() < 0.05 or step == self.steps - 1:
                break
            (gradient,) = torch.autograd.grad(loss, change)
            with torch.no_grad():
                change -= self.learning_rate * gradient * self._mask
                change.clamp_(-self.clamp, self.clamp)
        memory.change = change.detach()
        memory.activation = min(memory.activation, inside.mean().item())
        return loss.item()

    def _surroundings(self) -> tuple[list[str], list[Row]]:
        """Contexts before prompts, and irrelevant text: what the base writes before the first edit."""
        if self._texts is None:
            texts = write_texts(self.lm, self.tokenizer, _NUM_IRRELEVANT, _IRRELEVANT_LENGTH, seed=1, top_k=50)
            irrelevant = [Row(ids[:-1], ids[-1:]) for ids in texts]
            self._texts = write_contexts(self.lm, self.tokenizer, self._lengths), irrelevant
        return self._texts

    # ------------------------------------------------------------------ answering

    @contextmanager
    def answering(self, rows: Sequence[Row]) -> Iterator[None]:
        memories = [*self.merged, *self.shards]
        chosen: list[list[int]] = []

        def route(keys: Tensor) -> list[list[int]]:
            """For each memory, the rows that it answers: as they are in the first forward, for all that follow."""
            spans = _spans(rows, keys.shape[1])
            activations = torch.stack([memory.activations(keys, spans) for memory in memories])
            limits = torch.tensor([self.epsilon * memory.activation for memory in memories])
            active = activations.masked_fill(activations <= limits.to(activations.device)[:, None], 0.0)
            best, owner = active.max(0)
            return [(owner.eq(i) & best.gt(0)).nonzero()[:, 0].tolist() for i in range(len(memories))]

        def add(module: nn.Module, args: tuple[Any, ...], output: Tensor) -> Tensor:
            keys, values = by_row(args[0], len(rows)), by_row(output, len(rows))
            chosen[:] = chosen or route(keys)
            for memory, own in zip(memories, chosen, strict=True):
                if own:
                    change = (keys[own].to(memory.change) @ memory.change.T).to(output)
                    values = values.index_add(0, torch.tensor(own, device=output.device), change)
            return values.view_as(output)

        with hooked([self.layer.down.register_forward_hook(add)] if memories else []):
            yield

    @contextmanager
    def _through(self, memory: SideMemory, number: int) -> Iterator[list[Tensor]]:
        """Within it, a number of rows go through a side memory; yields a list that gets their keys."""
        seen: list[Tensor] = []

        def add(module: nn.Module, args: tuple[Any, ...], output: Tensor) -> Tensor:
            seen.append(by_row(args[0].detach(), number))
            return output + (args[0].to(memory.change) @ memory.change.T).to(output)

        with hooked([self.layer.down.register_forward_hook(add)]):
            yield seen


def _spans(rows: Sequence[Row], width: int) -> list[slice]:
    """Where the prompts of a batch stand, which is padded on the left and lacks the last token of each answer."""
    starts = [width - (len(row.prompt_ids) + max(1, len(row.answer_ids)) - 1) for row in rows]
    return [slice(start, start + len(row.prompt_ids)) for start, row in zip(starts, rows, strict=True)]


def _mean_of_positive(margin: Tensor) -> Tensor:
    return margin.sum() / (margin > 0).sum().clamp(min=1)


def ties(changes: Sequence[Tensor], density: float) -> Tensor:
    """Merges changes of one weight by TIES (arXiv 2306.01708): trimmed, of the sign that prevails, averaged.

    Args:
        changes: The changes.
        density: How much of each, by magnitude, is kept.

    >>> ties([torch.tensor([1.0, -3.0, 0.1]), torch.tensor([2.0, 1.0, 0.0])], 0.67)
    tensor([ 1.5000, -3.0000,  0.0000])
    """
    stacked = torch.stack(list(changes))
    kept = max(1, int(density * stacked[0].numel()))
    flat = stacked.flatten(1)
    largest = flat.abs().topk(kept, dim=1).indices
    trimmed = torch.zeros_like(flat).scatter(1, largest, flat.gather(1, largest)).view_as(stacked)
    agrees = trimmed.sign() == torch.where(trimmed.sum(0) >= 0, 1.0, -1.0)
    return (trimmed * agrees).sum(0) / agrees.sum(0).clamp(min=1)
