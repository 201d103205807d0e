"""Editors that find a fact for a prompt and tell it to the model: RECIPE, its ablations, and text in the context."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from ...datasets import EditExample
from ...knowledge import KnowledgeBase
from ...knowledge.facts import compose_statement
from ...modeling.base import loading
from ..held import encode_queries
from ..inputs import digest, versions, weights_digest
from ..saying import Prefix
from .base import Editor, Inputs
from .thresholds import choose_threshold, questions_to_tune

if TYPE_CHECKING:
    from ...modeling.model import RecipeForCausalLM


def statement_of(fact: EditExample) -> str:
    """The statement of a fact."""
    return compose_statement(fact.prompt, fact.answer)


class Finder(ABC):
    """Holds facts, and finds the one that a prompt asks for."""

    threshold: float | None = None

    @abstractmethod
    def hold(self, facts: Sequence[EditExample]) -> None:
        """Takes facts in, in place of those before."""

    @abstractmethod
    def find(self, prompts: Sequence[str]) -> list[int | None]:
        """For each prompt, the position of the fact to use, if any."""

    @abstractmethod
    def keys(self, positions: Sequence[int]) -> Tensor:
        """Keys of facts, `[len(positions), dim]`."""

    def tune(self, facts: Sequence[EditExample], asked: Sequence[EditExample]) -> None:  # noqa: B027
        """Chooses a threshold, if there is one to choose."""

    def release(self) -> None:  # noqa: B027
        """Lets go of the facts."""


class SentinelFinder(Finder):
    """RECIPE's retriever and gate (paper eq. 8 and 9), in the model's own knowledge base."""

    def __init__(self, model: RecipeForCausalLM) -> None:
        self.model = model
        self._own = model.knowledge

    def hold(self, facts: Sequence[EditExample]) -> None:
        self._own = self.model.knowledge
        self.model.knowledge = KnowledgeBase(self.model.config.knowledge_dim)
        self._ids = self.model.add_knowledge([(fact.prompt, fact.answer) for fact in facts])
        self._position = {id_: position for position, id_ in enumerate(self._ids)}

    def find(self, prompts: Sequence[str]) -> list[int | None]:
        hits = self.model.retrieve(list(prompts))
        return [self._position[hit.id] if hit.fired and hit.id is not None else None for hit in hits]

    def keys(self, positions: Sequence[int]) -> Tensor:
        return self.model.knowledge.keys([self._ids[position] for position in positions])

    def release(self) -> None:
        self.model.knowledge = self._own


class ThresholdFinder(Finder):
    """The nearest fact by dot product, used if that exceeds one absolute threshold.

    Args:
        encode_statements: From statements to keys, `[n, dim]`.
        encode_queries: From prompts to vectors, `[n, dim]`.
        threshold: The threshold; `tune` chooses one.
    """

    def __init__(
        self,
        encode_statements: Callable[[list[str]], Tensor],
        encode_queries: Callable[[list[str]], Tensor],
        threshold: float | None = None,
    ) -> None:
        self.encode_statements = encode_statements
        self.encode_queries = encode_queries
        self.threshold = threshold

    def hold(self, facts: Sequence[EditExample]) -> None:
        self._keys = self.encode_statements([statement_of(fact) for fact in facts])

    def find(self, prompts: Sequence[str]) -> list[int | None]:
        if self.threshold is None:
            raise RuntimeError("The finder has no threshold: call tune.")
        scores, nearest = self._nearest(prompts)
        return [
            position if score > self.threshold else None
            for score, position in zip(scores.tolist(), nearest.tolist(), strict=True)
        ]

    def keys(self, positions: Sequence[int]) -> Tensor:
        return self._keys[list(positions)]

    def tune(self, facts: Sequence[EditExample], asked: Sequence[EditExample]) -> None:
        texts, own = questions_to_tune(facts, asked)
        self.hold(facts)
        scores, nearest = self._nearest(texts)
        is_right = torch.tensor([position == n for position, n in zip(own, nearest.tolist(), strict=True)])
        self.threshold = choose_threshold(scores, is_right)

    def _nearest(self, prompts: Sequence[str]) -> tuple[Tensor, Tensor]:
        scores, nearest = (self.encode_queries(list(prompts)) @ self._keys.T).max(1)
        return scores.cpu(), nearest.cpu()


def without_sentinel(model: RecipeForCausalLM) -> ThresholdFinder:
    """RECIPE's retriever with one absolute threshold in place of the sentinel (ablation of the paper's Table 4)."""
    scale = model.config.scale
    return ThresholdFinder(model.encode_statements, lambda texts: encode_queries(model, texts) * scale)


def sentence_transformer(name_or_path: str) -> ThresholdFinder:
    """A sentence-transformers model by cosine, as it comes."""
    from sentence_transformers import SentenceTransformer

    with loading(f"sentence_model={name_or_path!r} cannot be loaded"):
        encoder = SentenceTransformer(name_or_path)

    def encode(texts: list[str]) -> Tensor:
        return encoder.encode(texts, convert_to_tensor=True, normalize_embeddings=True, show_progress_bar=False)

    return ThresholdFinder(encode, encode)


def describe_sentence_transformer(name_or_path: str) -> dict[str, Any]:
    """What the vectors of a sentence-transformers model depend on, whatever it is called."""
    from sentence_transformers import SentenceTransformer

    encoder = SentenceTransformer(name_or_path)
    return {
        "sentence_model_weights": weights_digest(encoder),
        "sentence_model_modules": digest([repr(encoder)]),
        "versions": versions("sentence-transformers"),
    }


#: Tells found facts: from the editor, prompts, and the position found for each, to what the model reads.
Teller = Callable[["RetrievalEditor", Sequence[str], Sequence[int | None]], Inputs]


class RetrievalEditor(Editor):
    """Finds the fact that a prompt asks for, and tells it to the model.

    Args:
        model: The model.
        finder: What finds it.
        teller: How it is told.
    """

    def __init__(self, model: RecipeForCausalLM, finder: Finder, teller: Teller) -> None:
        super().__init__(model)
        self.finder = finder
        self.teller = teller
        self.facts: list[EditExample] = []

    def tune(self, facts: Sequence[EditExample], asked: Sequence[EditExample]) -> None:
        self.finder.tune(facts, asked)
        if self.finder.threshold is not None:
            self.settings["threshold"] = self.finder.threshold

    def edit(self, facts: Sequence[EditExample]) -> None:
        self.facts = list(facts)
        self.finder.hold(facts)

    def undo(self) -> None:
        self.finder.release()

    def inputs(self, prompts: Sequence[str]) -> Inputs:
        return self.teller(self, prompts, self.finder.find(prompts))


def in_context(editor: RetrievalEditor, prompts: Sequence[str], found: Sequence[int | None]) -> Inputs:
    """The statement, as text, on a line before the prompt."""
    texts = [
        prompt if position is None else f"{statement_of(editor.facts[position])}.\n{prompt}"
        for prompt, position in zip(prompts, found, strict=True)
    ]
    return Inputs(texts, used=list(found))


def by_statement_prompts(editor: RetrievalEditor, prompts: Sequence[str], found: Sequence[int | None]) -> Inputs:
    """Continuous prompts of the statement alone, as in the paper (eq. 7)."""
    return _by_prompts(editor, prompts, found, with_answers=False)


def by_answer_prompts(editor: RetrievalEditor, prompts: Sequence[str], found: Sequence[int | None]) -> Inputs:
    """Continuous prompts of statement and answer, if the checkpoint makes such."""
    return _by_prompts(editor, prompts, found, with_answers=True)


def by_word_embeddings(editor: RetrievalEditor, prompts: Sequence[str], found: Sequence[int | None]) -> Inputs:
    """The word embeddings of the statement in place of continuous prompts (ablation of the paper's Table 4)."""
    positions = sorted({position for position in found if position is not None})
    texts = [f"{statement_of(editor.facts[position])}." for position in positions]
    ids = editor.tokenizer(texts, add_special_tokens=False)["input_ids"] if texts else []
    embeddings: Any = editor.lm.get_input_embeddings()
    embeds = [embeddings(torch.tensor(tokens, device=editor.model.device)).detach() for tokens in ids]
    masks = [torch.ones(len(tokens), dtype=torch.bool, device=editor.model.device) for tokens in ids]
    told = {position: number for number, position in enumerate(positions)}
    prefix = None
    if positions:
        prefix = pad_sequence(embeds, batch_first=True), pad_sequence(masks, batch_first=True)
    return Inputs(list(prompts), _spread(prefix, [None if p is None else told[p] for p in found]), list(found))


@torch.no_grad()
def _by_prompts(
    editor: RetrievalEditor, prompts: Sequence[str], found: Sequence[int | None], with_answers: bool
) -> Inputs:
    positions = [position for position in found if position is not None]
    prefix, number = None, iter(range(len(positions)))
    if positions:
        answers = [editor.facts[position].answer if with_answers else None for position in positions]
        prefix = editor.model.continuous_prompts(editor.finder.keys(positions), answers)
    rows = [None if position is None else next(number) for position in found]
    return Inputs(list(prompts), _spread(prefix, rows), list(found))


def _spread(prefix: Prefix | None, rows: Sequence[int | None]) -> Prefix | None:
    """A prefix for each prompt: the row of `prefix` that is named, or none."""
    if prefix is None:
        return None
    embeds, mask = prefix
    chosen = torch.tensor([row or 0 for row in rows], device=mask.device)
    is_there = torch.tensor([row is not None for row in rows], device=mask.device)
    return embeds[chosen], mask[chosen] & is_there[:, None]
