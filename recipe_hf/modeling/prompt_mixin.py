"""`continuous_prompts` and `answer_prompts`: what stands before a text for the facts that it asks for."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from .checkpoint import RecipePreTrainedModel
from .prompt_encoder import AnswerPromptEncoder, PromptEncoder, carried_tokens

NO_PROMPT_ENCODER = "it has no prompt encoder (its prompt_form is 'text')"


class PromptMixin(RecipePreTrainedModel):
    """The part of [`RecipeForCausalLM`] that makes continuous prompts (paper eq. 7)."""

    prompt_encoder: PromptEncoder | None
    answer_prompt_encoder: AnswerPromptEncoder | None

    def _tokenizer(self, what: str) -> PreTrainedTokenizerBase:
        if self.tokenizer is None:
            raise RuntimeError(f"{what} cannot be read without the base's tokenizer: set model.tokenizer.")
        return self.tokenizer

    def continuous_prompts(self, keys: Tensor, answers: Sequence[str | None]) -> tuple[Tensor, Tensor]:
        """The continuous prompts of facts: of their keys (eq. 7), then of their answers if the model has such prompts.

        The tokens of a key are shifted by `answer_prompt_encoder.key_offset` where the answer follows.

        Args:
            keys: `[n, knowledge_dim]`.
            answers: The answer of each fact, None where it is not known apart from the statement.

        Returns:
            Prompts `[n, l, d_llm]`, and a mask `[n, l]` of the tokens that are there: a fact whose answer is not known
            has those of its key only, and one whose answer is short fewer than others.

        Raises:
            RuntimeError: If the model has no prompt encoder, or answers are to be read without the base or its
                tokenizer.
        """
        if self.prompt_encoder is None:
            raise RuntimeError(f"The model makes no continuous prompts: {NO_PROMPT_ENCODER}.")
        prompts = self.prompt_encoder(keys.to(self.prompt_encoder.output.weight))
        mask = torch.ones(prompts.shape[:2], dtype=torch.bool, device=prompts.device)
        known = [answer for answer in answers if answer is not None]
        if self.answer_prompt_encoder is None or not known:
            return prompts, mask
        is_known = torch.tensor([answer is not None for answer in answers], device=mask.device)
        prompts = prompts + is_known[:, None, None] * self.answer_prompt_encoder.get_parameter("key_offset")
        of_answers, present = self.answer_prompts(known)
        added = prompts.new_zeros(len(prompts), *of_answers.shape[1:])
        added[is_known] = of_answers.to(prompts)
        is_there = mask.new_zeros(added.shape[:2])
        is_there[is_known] = present
        return torch.cat([prompts, added], dim=1), torch.cat([mask, is_there], dim=1)

    def answer_prompts(self, answers: Sequence[str]) -> tuple[Tensor, Tensor]:
        """Continuous prompts of answers alone.

        Returns:
            Prompts `[n, num_answer_prompt_tokens, d_llm]`, and a mask `[n, num_answer_prompt_tokens]` of the tokens
            that are there: one for each token of the answer and of the line break after it, which keeps the base
            from going on with the question once it has said the answer; the last one for all that remain.

        Raises:
            RuntimeError: If the model makes no such prompts, or has no base or tokenizer.
        """
        encoder = self.answer_prompt_encoder
        if encoder is None:
            raise RuntimeError("The model makes no prompts of answers: its num_answer_prompt_tokens is 0.")
        tokenizer = self._tokenizer("Answers")
        texts = [*(f" {answer}" for answer in answers), "\n"]
        *ids, line_break = tokenizer(texts, add_special_tokens=False)["input_ids"]
        carried = [tokens for answer in ids for tokens in carried_tokens(answer + line_break, encoder.num_tokens)]
        flat = torch.tensor([token for tokens in carried for token in tokens], device=self.device)
        present = torch.tensor([bool(tokens) for tokens in carried], device=self.device)
        with torch.no_grad():
            embeds = self.get_input_embeddings()(flat).to(encoder.offset)
        pieces = embeds.new_zeros(len(carried), embeds.shape[1])
        pieces[present] = torch.stack([part.mean(0) for part in embeds.split([len(t) for t in carried if t])])
        shape = (len(answers), encoder.num_tokens)
        return encoder(pieces.unflatten(0, shape)), present.unflatten(0, shape)
