"""Editors that train weights of the language model on the facts: LoRA, and full fine-tuning."""

from __future__ import annotations

import random
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import nn

from ...datasets import EditExample
from ...teacher_forcing import IGNORE_INDEX, answer_logits, tokenize_rows
from ..inputs import versions
from .editor import Editor

if TYPE_CHECKING:
    from ...modeling.model import RecipeForCausalLM


@dataclass(frozen=True)
class Budget:
    """How long an editor may train.

    Args:
        epochs: Passes over the facts.
        seconds: No epoch is begun after this long; what was reached is reported.

    Raises:
        ValueError: If a value is not above 0.
    """

    epochs: int = 10
    seconds: float = 120.0

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            if value <= 0:
                raise ValueError(f"{name} must be above 0, got {value}.")


class FineTuning(Editor):
    """Trains all weights of the language model on the facts' answers by AdamW (FT).

    Args:
        model: The model.
        budget: How long to train, in each call of `edit`.
        learning_rate: Constant learning rate.
        batch_size: Facts in a step.
    """

    changes_model = True

    def __init__(
        self, model: RecipeForCausalLM, budget: Budget, learning_rate: float = 2e-5, batch_size: int = 8
    ) -> None:
        super().__init__(model)
        self.budget = budget
        self.learning_rate = learning_rate
        self.batch_size = batch_size
        self._before: list[tuple[nn.Parameter, torch.Tensor, bool]] = []

    def trained(self) -> list[nn.Parameter]:
        """Makes the weights to train ready."""
        self._before = self._before or [(p, p.detach().clone(), p.requires_grad) for p in self.lm.parameters()]
        for parameter, _, _ in self._before:
            parameter.requires_grad_(True)
        return [parameter for parameter, _, _ in self._before]

    def edit(self, facts: Sequence[EditExample]) -> None:
        rows = tokenize_rows(self.tokenizer, [f.prompt for f in facts], [f.answer for f in facts])
        parameters = self.trained()
        optimizer = torch.optim.AdamW(parameters, self.learning_rate, weight_decay=0.0)
        rng, started, epochs, loss = random.Random(0), time.monotonic(), 0, torch.tensor(0.0)
        with torch.enable_grad():
            while epochs < self.budget.epochs and time.monotonic() - started < self.budget.seconds:
                order = rng.sample(range(len(rows)), len(rows))
                for start in range(0, len(rows), self.batch_size):
                    batch = [rows[i] for i in order[start : start + self.batch_size]]
                    logits, labels = answer_logits(self.lm, batch)
                    loss = F.cross_entropy(logits.flatten(0, 1).float(), labels.flatten(), ignore_index=IGNORE_INDEX)
                    optimizer.zero_grad()
                    loss.backward()
                    optimizer.step()
                epochs += 1
        optimizer.zero_grad()
        self.settings |= {
            "trained parameters": sum(p.numel() for p in parameters),
            "learning rate": self.learning_rate,
            "batch size": self.batch_size,
            "epochs": epochs,
            "of at most": self.budget.epochs,
            "last loss": round(loss.item(), 4),
        }

    @torch.no_grad()
    def undo(self) -> None:
        for parameter, before, required_grad in self._before:
            parameter.copy_(before)
            parameter.requires_grad_(required_grad)
        self._before = []


class LoRA(FineTuning):
    """Trains a LoRA adapter (arXiv 2106.09685) on all linear layers, through PEFT.

    Raises:
        ImportError: If peft is not installed.
    """

    def __init__(self, model: RecipeForCausalLM, budget: Budget, rank: int = 8, learning_rate: float = 1e-3) -> None:
        check_peft()
        super().__init__(model, budget, learning_rate)
        self.settings["rank"] = self.rank = rank
        self._peft: Any = None

    def trained(self) -> list[nn.Parameter]:
        import peft

        config: Any = peft.LoraConfig(r=self.rank, lora_alpha=2 * self.rank, target_modules="all-linear")
        if self._peft is None:
            # PEFT puts the adapter into lm itself, so that whatever calls lm sees it.
            with torch.random.fork_rng():
                torch.manual_seed(0)
                self._peft = peft.get_peft_model(self.lm, config)
        return [p for p in self._peft.parameters() if p.requires_grad]

    def undo(self) -> None:
        if self._peft is not None:
            self._peft.unload()
            self._peft = None


def check_peft() -> None:
    """Checks that LoRA adapters can be trained.

    Raises:
        ImportError: If peft is not installed.
    """
    try:
        import peft  # noqa: F401
    except ImportError as error:
        raise ImportError("LoRA needs peft: install it with pip install 'recipe-hf[compare]'.") from error


def peft_version() -> dict[str, str]:
    """The version of PEFT, on which the figures of LoRA depend.

    Raises:
        ImportError: If it is not installed.
    """
    check_peft()
    return versions("peft")
