"""GRACE: a codebook of activations at one layer (Hartvigsen et al., NeurIPS 2023, arXiv 2211.11031)."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ...datasets import EditExample
from ...teacher_forcing import IGNORE_INDEX, Row, answer_logits, tokenize_rows
from .editor import Editor
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

    changes_model = True

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
        self.keys = self.values = self.radii = torch.empty(0)
        self.answers: list[str] = []
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
        self.values = torch.cat([self.values.to(outputs), outputs[chosen]])
        rows = tokenize_rows(self.tokenizer, [facts[i].prompt for i in chosen], [facts[i].answer for i in chosen])
        epochs, said = self._train(rows)
        self.settings |= {
            "keys": len(self.keys),
            "epochs": epochs,
            "of at most": self.budget.epochs,
            "learned": said,
        }

    def undo(self) -> None:
        self.keys = self.values = self.radii = torch.empty(0)
        self.answers = []

    def _place(self, keys: Tensor, answers: Sequence[str]) -> list[int]:
        """Puts facts into the codebook, without their values; says which of them got a key, in order."""
        chosen: list[int] = []
        held, radii = self.keys.to(keys), self.radii.tolist()
        for number, (key, answer) in enumerate(zip(keys, answers, strict=True)):
            radius = self.radius
            if len(held):
                distances = torch.cdist(key[None], held)[0]
                nearest = int(distances.argmin())
                distance = distances[nearest].item()
                if distance <= radii[nearest] + self.radius:
                    if self.answers[nearest] == answer:
                        radii[nearest] = max(radii[nearest], distance)
                        continue
                    radii[nearest] = min(radii[nearest], distance / 2)
                    radius = min(self.radius, distance / 2)
            chosen.append(number)
            held = torch.cat([held, key[None]])
            radii.append(radius)
            self.answers.append(answer)
        self.keys, self.radii = held, torch.tensor(radii, device=keys.device)
        return chosen

    def _train(self, rows: Sequence[Row]) -> tuple[int, int]:
        """Trains the values of the last keys until each answer is said; gives the most epochs, how many are said."""
        started, longest, said = time.monotonic(), 0, 0
        new = self.values[len(self.values) - len(rows) :]
        order = sorted(range(len(rows)), key=lambda i: len(rows[i]))
        share = self.budget.seconds / -(-len(order) // _BATCH_SIZE)
        for number, start in enumerate(range(0, len(order), _BATCH_SIZE), start=1):
            batch = order[start : start + _BATCH_SIZE]
            values = new[batch].clone().requires_grad_(True)
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
            new[batch] = values.detach()
            said += int(done.sum())
        return longest, said

    # ------------------------------------------------------------------ answering

    def answering(self, rows: Sequence[Row]) -> AbstractContextManager[None]:
        return self._replacing(rows)

    @contextmanager
    def _replacing(self, rows: Sequence[Row], values: Tensor | None = None) -> Iterator[None]:
        """Within it, the next call of the layer is edited: to `values`, one for each row, or as the codebook says."""
        last = torch.tensor([-max(1, len(row.answer_ids)) for row in rows])

        def replace(layer: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> Any:
            handle.remove()
            if values is None and not len(self.keys):
                return None
            hidden = output[0] if isinstance(output, tuple) else output
            place = torch.arange(len(last), device=hidden.device), last.to(hidden.device)
            if values is not None:
                new = values
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
