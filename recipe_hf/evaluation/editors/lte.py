"""LTE: a model aligned to use a fact in its context where that is asked for (Jiang et al., ACL 2024, 2402.11905)."""

from __future__ import annotations

import json
import random
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from huggingface_hub import constants
from safetensors import safe_open
from torch import Tensor

from ...datasets import EditExample
from ...knowledge.facts import compose_statement
from ...teacher_forcing import answer_logits, tokenize_rows
from ..inputs import base_digest, describe_rows, digest
from .editor import Prompt, Reading
from .finders import Finder
from .finetuning import Budget, LoRA
from .kept import keep
from .memory.gradients import answer_loss, divergence
from .retrieval import RetrievalEditor, Teller, Told

if TYPE_CHECKING:
    from ...modeling.model import RecipeForCausalLM


def with_update(statement: str, query: str) -> str:
    """A query with a fact before it, in the form that LTE trains and asks with."""
    return f"[Updated Information]:\n{statement}.\n\n[Query]:\n{query}"


class AsUpdate(Teller):
    """By the statement as updated information before the prompt."""

    def tell(self, prompt: Prompt, statement: str, answer: str | None) -> Told:
        ids = self.tokenizer(with_update(statement, prompt.text))["input_ids"]
        return ids, ("updated information", statement, None)


class Lte(LoRA):
    """Puts the nearest fact before each query, to a model that was aligned to use it only where it is asked for.

    Alignment phase (section 3.2, `tune`): a LoRA adapter is trained on rows kept for that, with each row's fact in the
    context. In scope, at the prompt and its rephrasing, it learns the fact's answer; out of scope, at the unrelated
    question, it learns to answer as the base does without the fact. Inference phase (section 3.3): facts are held and
    the nearest is put before every query. There is no gate: whether it is used, the aligned model decides.

    The base is left alone by `tune`. The adapter is in it from the first `edit` until `undo`, and is the same whatever
    the facts are.

    Published: the two phases, in-scope and out-of-scope queries, the form of the context. Changed here:

    - The rows for tuning are all there is to train on. The paper gathers several data sets, and instructions to keep a
      chat model's other skills, with and without a fact; here each query has one, as when the model is asked.
    - Out of scope the divergence from the base is lowered, which is what locality measures; the paper trains on given
      answers, which need not be the base's.
    - One fact in the context: in training the right one, then the nearest. The paper trains with similar ones beside
      it, and tells several. A small base reads a short context best.
    - No sentence of instruction before the form, as bases need not follow any.
    - Of the paper's two ways to train, all weights and LoRA, the latter, which is kept in a small file and taken out
      exactly; on all linear maps, as [`LoRA`] is, not on three of the attention's.

    Args:
        model: The model.
        finder: What finds the nearest fact. It should use it always.
        budget: How long to train, in `tune`: passes over the rows, and after how many seconds no step is begun.
        rank: Of the adapter.
        learning_rate: Constant learning rate.
        directory: Where adapters are kept; by default beside the Hub's cache.

    Raises:
        ImportError: If peft is not installed.
    """

    def __init__(
        self,
        model: RecipeForCausalLM,
        finder: Finder,
        budget: Budget,
        rank: int = 8,
        learning_rate: float = 1e-3,
        directory: Path | None = None,
    ) -> None:
        super().__init__(model, budget, rank, learning_rate)
        self.retrieval = RetrievalEditor(model, finder, AsUpdate(model))
        self.directory = Path(constants.HF_HOME) / "recipe-hf" / "aligned-adapters" if directory is None else directory
        self._adapter: dict[str, Tensor] = {}
        self.settings |= {"learning rate": learning_rate, "batch size": self.batch_size}

    # ------------------------------------------------------------------ alignment

    def tune(self, facts: Sequence[EditExample], asked: Sequence[EditExample]) -> None:
        """Trains the adapter on all `facts`, or loads what was trained so on this base before.

        Raises:
            ValueError: If there are no facts, or one has no unrelated question.
        """
        if not facts:
            raise self._without_rows()
        for fact in facts:
            if not fact.unrelated:
                raise ValueError(f"Each row for tuning must have an unrelated question, got {fact.prompt!r} without.")
        path = self.directory / f"{self._mark(facts)}.safetensors"
        if not path.is_file():
            keep(path, *self._align(facts))
        with safe_open(path, "pt") as file:
            reached = json.loads(file.metadata()["reached"])
            self._adapter = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        self.settings |= reached

    def _mark(self, facts: Sequence[EditExample]) -> str:
        """Tells alignment on these facts, of this base, from all other."""
        budget = [*vars(self.budget).values(), self.learning_rate, self.batch_size, self.rank]
        return digest([str(budget), with_update("", ""), base_digest(self.lm), describe_rows(facts)])

    def _align(self, facts: Sequence[EditExample]) -> tuple[dict[str, Tensor], dict[str, str]]:
        """Trains an adapter and takes it out again; gives its weights, and how far it came, for a file."""
        import peft

        losses: list[tuple[float, float]] = []
        try:
            parameters = self.trained()
            optimizer = torch.optim.AdamW(parameters, self.learning_rate, weight_decay=0.0)
            with torch.enable_grad():
                for batch in self._batches(facts):
                    missed, disturbed = self.alignment_losses(batch)
                    optimizer.zero_grad()
                    (missed + disturbed).backward()
                    optimizer.step()
                    losses.append((missed.item(), disturbed.item()))
            state = {n: t.detach().cpu().contiguous() for n, t in peft.get_peft_model_state_dict(self._peft).items()}
        finally:
            super().undo()
        missed_last, disturbed_last = (sum(last) / len(last) for last in zip(*losses[-50:], strict=True))
        reached = {
            "training steps": len(losses),
            "last loss in scope": round(missed_last, 4),
            "last divergence out of scope": round(disturbed_last, 4),
        }
        return state, {"reached": json.dumps(reached)}

    def _batches(self, facts: Sequence[EditExample]) -> Iterator[list[EditExample]]:
        rng, started = random.Random(0), time.monotonic()
        for _ in range(self.budget.epochs):
            order = rng.sample(facts, len(facts))
            for start in range(0, len(order), self.batch_size):
                yield order[start : start + self.batch_size]
                if time.monotonic() - started >= self.budget.seconds:
                    return

    def alignment_losses(self, facts: Sequence[EditExample]) -> tuple[Tensor, Tensor]:
        """What the model misses of the answers in scope, and its divergence out of scope from the base without facts.

        The adapter must be in.
        """
        statements = [compose_statement(fact.prompt, fact.answer) for fact in facts]
        told = list(zip(statements, facts, strict=True))
        asked = [with_update(said, prompt) for said, fact in told for prompt in (fact.prompt, fact.rephrase_prompt)]
        answers = [fact.answer for fact in facts for _ in range(2)]
        missed = answer_loss(self.lm, tokenize_rows(self.tokenizer, asked, answers))
        answers = [fact.locality_answer for fact in facts]
        with torch.no_grad(), self._peft.disable_adapter():
            alone = tokenize_rows(self.tokenizer, [fact.locality_prompt for fact in facts], answers)
            before, _ = answer_logits(self.lm, alone)
        unrelated = [with_update(said, fact.locality_prompt) for said, fact in told]
        after, labels = answer_logits(self.lm, tokenize_rows(self.tokenizer, unrelated, answers))
        return missed, divergence(after, before, labels)

    # ------------------------------------------------------------------ editing

    def edit(self, facts: Sequence[EditExample]) -> None:
        if not self._adapter:
            raise self._without_rows()
        self.put_in()
        self.retrieval.edit(facts)

    def put_in(self) -> None:
        """Puts the adapter that was trained into the base, if it is not there."""
        import peft

        if self._peft is None:
            parameters = self.trained()
            peft.set_peft_model_state_dict(self._peft, self._adapter)
            for parameter in parameters:
                parameter.requires_grad_(False)

    def undo(self) -> None:
        super().undo()
        self.retrieval.undo()

    def read(self, prompts: Sequence[Prompt]) -> list[Reading]:
        return self.retrieval.read(prompts)

    @staticmethod
    def _without_rows() -> ValueError:
        return ValueError(
            "Lte needs facts to be aligned on before it edits, with rephrasings and unrelated questions, got none: "
            "give validation rows."
        )
