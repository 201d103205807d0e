"""GRACE: a codebook of activations at one layer (Hartvigsen et al., NeurIPS 2023, arXiv 2211.11031)."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ...datasets import EditExample
from ...teacher_forcing import IGNORE_INDEX, Row, answer_logits, tokenize_rows
from .base import Editor, Inputs
from .finetuning import Budget
from .thresholds import choose_threshold, questions_to_tune

if TYPE_CHECKING:
    from ...modeling.model import RecipeForCausalLM

_BATCH_SIZE = 16


class Grace(Editor):
    """Replaces the output of one layer at a prompt's last token, if its input there is near a key of the codebook.

    A key is the layer's input at the last token of an edited prompt. Its value, which starts as the layer's own output
    and is trained by Adam until the answer is said, takes the place of that output for all prompts whose input lies
    within the key's deferral radius. A new key within the radius of another with a different answer halves the way
    between them; with the same answer, it widens the other's radius instead (Algorithm 1 of the paper).

    Args:
        model: The model.
        budget: How long to train the values.
        layer: Number of the layer; by default the one at two thirds of the depth.
        radius: Initial deferral radius; `tune` chooses one.
        learning_rate: Of Adam, on the values. The paper has 1.0.
    """

    def __init__(
        self,
        model: RecipeForCausalLM,
        budget: Budget,
        layer: int | None = None,
        radius: float = 1.0,
        learning_rate: float = 1.0,
    ) -> None:
        super().__init__(model)
        layers = max((m for m in self.lm.modules() if isinstance(m, nn.ModuleList)), key=len)
        number = len(layers) * 2 // 3 if layer is None else layer
        if not 0 <= number < len(layers):
            raise ValueError(f"layer must be between 0 and {len(layers) - 1}, got {number}.")
        self.layer = layers[number]
        self.budget = budget
        self.learning_rate = learning_rate
        self.radius = radius
        self.keys = self.values = torch.empty(0)
        self.radii = torch.empty(0)
        self.settings |= {"layer": number, "radius": radius, "learning rate": learning_rate}

    # ------------------------------------------------------------------ editing

    def tune(self, facts: Sequence[EditExample], asked: Sequence[EditExample]) -> None:
        texts, own = questions_to_tune(facts, asked)
        keys = self._activations([fact.prompt for fact in facts])[0]
        distances, nearest = torch.cdist(self._activations(texts)[0], keys).min(1)
        is_right = torch.tensor([position == n for position, n in zip(own, nearest.tolist(), strict=True)])
        self.settings["radius"] = self.radius = max(0.0, -choose_threshold(-distances.cpu(), is_right))

    def edit(self, facts: Sequence[EditExample]) -> None:
        keys, outputs = self._activations([fact.prompt for fact in facts])
        chosen = self._place(keys, [fact.answer for fact in facts])
        self.keys, self.values = keys[chosen], outputs[chosen].clone()
        rows = tokenize_rows(self.tokenizer, [facts[i].prompt for i in chosen], [facts[i].answer for i in chosen])
        epochs, said = self._train(rows)
        self.settings |= {"keys": len(chosen), "epochs": epochs, "of at most": self.budget.epochs, "learned": said}

    def undo(self) -> None:
        self.keys = self.values = self.radii = torch.empty(0)

    def _place(self, keys: Tensor, answers: Sequence[str]) -> list[int]:
        """Which facts get a key, in order; sets their radii."""
        chosen: list[int] = []
        radii: list[float] = []
        for number, key in enumerate(keys):
            if chosen:
                distances = torch.cdist(key[None], keys[chosen])[0]
                nearest = int(distances.argmin())
                distance = distances[nearest].item()
                if distance <= radii[nearest] + self.radius:
                    if answers[chosen[nearest]] == answers[number]:
                        radii[nearest] = max(radii[nearest], distance)
                        continue
                    radii[nearest] = min(radii[nearest], distance / 2)
                    chosen.append(number)
                    radii.append(min(self.radius, distance / 2))
                    continue
            chosen.append(number)
            radii.append(self.radius)
        self.radii = torch.tensor(radii, device=keys.device)
        return chosen

    def _train(self, rows: Sequence[Row]) -> tuple[int, int]:
        """Trains each key's value until its answer is said; gives the most epochs, and how many are said."""
        started, longest, said = time.monotonic(), 0, 0
        order = sorted(range(len(rows)), key=lambda i: len(rows[i]))
        share = self.budget.seconds / -(-len(order) // _BATCH_SIZE)
        for number, start in enumerate(range(0, len(order), _BATCH_SIZE), start=1):
            batch = order[start : start + _BATCH_SIZE]
            values = self.values[batch].clone().requires_grad_(True)
            optimizer = torch.optim.Adam([values], self.learning_rate)
            done = torch.zeros(len(batch), dtype=torch.bool, device=values.device)
            for epoch in range(self.budget.epochs + 1):
                with torch.enable_grad(), self._replacing([rows[i] for i in batch], values):
                    logits, labels = answer_logits(self.lm, [rows[i] for i in batch])
                done = ((logits.argmax(-1) == labels) | (labels == IGNORE_INDEX)).all(1)
                late = time.monotonic() - started > number * share
                if done.all() or late or epoch == self.budget.epochs:
                    longest = max(longest, epoch)
                    break
                losses = F.cross_entropy(
                    logits.float().transpose(1, 2), labels, ignore_index=IGNORE_INDEX, reduction="none"
                )
                # Each value has a loss of its own; one whose answer is said rests.
                (losses.sum(1) / (labels != IGNORE_INDEX).sum(1)).masked_fill(done, 0.0).sum().backward()
                before = values.detach().clone()
                optimizer.step()
                optimizer.zero_grad()
                with torch.no_grad():
                    values[done] = before[done]
            self.values[batch] = values.detach()
            said += int(done.sum())
        return longest, said

    # ------------------------------------------------------------------ answering

    def predict(self, inputs: Inputs, answers: Sequence[str]) -> list[list[int]]:
        rows = tokenize_rows(self.tokenizer, inputs.texts, answers)
        with self._replacing(rows):
            return super().predict(inputs, answers)

    def write(self, inputs: Inputs, lengths: Sequence[int], **kwargs: Any) -> list[list[int]]:
        with self._replacing([Row([], [0])] * len(inputs.texts)):
            return super().write(inputs, lengths, **kwargs)

    @contextmanager
    def _replacing(self, rows: Sequence[Row], values: Tensor | None = None) -> Iterator[None]:
        """Within it, the next call of the layer is edited: to `values`, one for each row, or as the codebook says."""
        # `answer_logits` has the model read rows in order of length, answers at the right but for their last token.
        order = sorted(range(len(rows)), key=lambda i: len(rows[i]))
        last = torch.tensor([-len(rows[i].answer_ids) for i in order])

        def replace(layer: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> Any:
            handle.remove()
            if values is None and not len(self.keys):
                return None
            hidden = output[0] if isinstance(output, tuple) else output
            place = torch.arange(len(order), device=hidden.device), last.to(hidden.device)
            if values is not None:
                new = values[order]
            else:
                read = (args[0] if args else kwargs["hidden_states"])[place]
                distances, nearest = torch.cdist(read.float(), self.keys.float()).min(1)
                new = torch.where((distances <= self.radii[nearest])[:, None], self.values[nearest], hidden[place])
            hidden = hidden.index_put(place, new.to(hidden))
            return (hidden, *output[1:]) if isinstance(output, tuple) else hidden

        handle = self.layer.register_forward_hook(replace, with_kwargs=True)
        try:
            yield
        finally:
            handle.remove()

    @torch.no_grad()
    def _activations(self, prompts: Sequence[str]) -> tuple[Tensor, Tensor]:
        """The layer's input and output at the last token of each prompt, `[n, d]` both."""
        found: list[tuple[Tensor, Tensor]] = []

        def keep(layer: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
            hidden = output[0] if isinstance(output, tuple) else output
            found.append(((args[0] if args else kwargs["hidden_states"])[:, -1], hidden[:, -1]))

        ids = self.tokenizer(list(prompts))["input_ids"]
        order = sorted(range(len(ids)), key=lambda i: len(ids[i]))
        handle = self.layer.register_forward_hook(keep, with_kwargs=True)
        try:
            for start in range(0, len(order), _BATCH_SIZE):
                # The one token of the answer is never read.
                answer_logits(self.lm, [Row(ids[i], [0]) for i in order[start : start + _BATCH_SIZE]])
        finally:
            handle.remove()
        place = torch.tensor(order).argsort()
        inputs, outputs = (torch.cat(parts)[place.to(parts[0].device)] for parts in zip(*found, strict=True))
        return inputs, outputs
