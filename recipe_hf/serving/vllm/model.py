"""A checkpoint without its base: it finds the facts for prompts, and says what of them goes into each."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from ...modeling.configuration import RecipeConfig
from ...modeling.frozen_base import check_base
from ...modeling.model import RecipeForCausalLM
from ...modeling.outputs import Retrieval
from ...modeling.queries import read_queries
from ...modeling.text_prompts import as_text, text_places


@dataclass(frozen=True)
class Asked:
    """A prompt's token ids, and among which facts it is looked up."""

    ids: Sequence[int]
    namespace: str | None = None
    where: Mapping[str, Any] | None = None


@dataclass(frozen=True, eq=False)
class Inserted:
    """What facts put into a prompt: tokens, of which some are not words but embeddings.

    Attributes:
        place: Behind how many of the prompt's tokens.
        ids: Token ids, for facts told as text.
        embeds: `[n, d_llm]` embeddings, for facts told as continuous prompts; then there are no `ids`.
    """

    place: int
    ids: Sequence[int] = ()
    embeds: Tensor | None = None

    def __len__(self) -> int:
        return len(self.ids) if self.embeds is None else len(self.embeds)


class PromptingModel(RecipeForCausalLM):
    """A [`RecipeForCausalLM`] that makes prompts for a base which runs elsewhere. It knows the base's embeddings."""

    def __init__(self, config: RecipeConfig) -> None:
        super().__init__(config)
        self._embeddings: nn.Module | None = None

    def attach_embeddings(self, lm: PreTrainedModel) -> None:
        """Takes the word embeddings of the base.

        Args:
            lm: The base; of its weights, those of the embeddings are enough.

        Raises:
            ValueError: If it is not the base that the checkpoint was made for.
        """
        check_base(lm, self.config)
        self._embeddings = lm.get_input_embeddings().to(self.device)

    def get_input_embeddings(self) -> nn.Module:
        """The base's input embeddings."""
        return super().get_input_embeddings() if self._embeddings is None else self._embeddings

    @torch.inference_mode(False)
    @torch.no_grad()
    def insertions(self, asked: Sequence[Asked]) -> list[tuple[Retrieval, Inserted | None]]:
        """What is found for prompts, each among facts of its own, and what that puts into them, if it is used.

        What is looked up is what `generate` would: a chat's last user message, or the text.
        """
        queries = [self._query(each) for each in asked]
        retrievals, keys = self.look_up(queries, [each.where for each in asked], [each.namespace for each in asked])
        if self.config.prompt_form == "text":
            return [self._told(hit, each) for hit, each in zip(retrievals, asked, strict=True)]
        retrievals, prefix = self._prefix(retrievals, keys, None, None)
        if prefix is None:
            return [(hit, None) for hit in retrievals]
        rows = zip(retrievals, prefix["embeds"], prefix["mask"], strict=True)
        return [(hit, Inserted(0, embeds=embeds[mask]) if hit.fired else None) for hit, embeds, mask in rows]

    def _query(self, asked: Asked) -> str:
        if not len(self._knowledge_of(asked.namespace)):
            return ""
        return read_queries(self._tokenizer("The queries"), torch.tensor([list(asked.ids)]))[0]

    def _told(self, best: Retrieval, asked: Asked) -> tuple[Retrieval, Inserted | None]:
        """The statements of the facts used as tokens, the best last."""
        if not best.fired:
            return best, None
        tokenizer = self._tokenizer("Statements")
        told = [as_text(hit.statement or "") for hit in reversed((best, *best.others))]
        encoded = tokenizer(told, add_special_tokens=False, verbose=False)["input_ids"]
        ids = [token for row in encoded for token in row]
        (place,) = text_places(tokenizer, torch.tensor([list(asked.ids)]), None, [0]).tolist()
        return replace(best, num_prompt_tokens=len(ids)), Inserted(place, ids=ids)
