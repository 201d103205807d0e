"""The RECIPE model: a frozen causal LM, and the trained module that edits it (arXiv 2405.03279)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, GenerationConfig, GenerationMixin, PreTrainedTokenizerBase
from transformers.utils import ModelOutput, logging

from ..knowledge import KnowledgeBase
from .configuration import RecipeConfig
from .creation import CreatedModel
from .outputs import RecipeCausalLMOutput, Retrieval
from .places import prompt_places
from .prefix import CACHE_NAMES, forward_keeping, hidden_prefix, prefixed_forward
from .prompt_encoder import AnswerPromptEncoder, PromptEncoder
from .prompt_mixin import NO_PROMPT_ENCODER, PromptMixin
from .queries import check_queries, read_queries
from .retriever import Retriever
from .text_prompts import text_places, text_prompts
from .verifier import Verifier

logger = logging.get_logger(__name__)


class RecipeForCausalLM(CreatedModel, PromptMixin, GenerationMixin):
    """A causal LM whose knowledge is edited by continuous prompts, retrieved fact by fact.

    The base, `lm`, is frozen and computes everything; the model's own weights are the `retriever` and the
    `prompt_encoder`, and only these are saved. A row whose query retrieves a fact gets that fact's prompt tokens
    before its text (paper eq. 7 to 9), or its statement as hidden text (`config.prompt_form`); any other row is the
    base's own.

    Make one with `from_base_pretrained`, load one with `from_pretrained`. Constructed from a config alone, it has no
    base until `attach_base`.

    Attributes:
        retriever: Encodes statements and queries.
        verifier: Reads queries and statements together, beyond the paper; None in a model without one.
        prompt_encoder: Turns keys into continuous prompts; None in a model whose `prompt_form` is `"text"`.
        answer_prompt_encoder: Turns answers into them, where they are known; None without
            `config.num_answer_prompt_tokens`.
        lm: The base; None before one is attached.
        tokenizer: The base's tokenizer.
        knowledge: The facts, a [`KnowledgeBase`].
    """

    config_class = RecipeConfig
    config: RecipeConfig
    main_input_name = "input_ids"
    model_tags = ["recipe", "knowledge-editing"]

    def __init__(self, config: RecipeConfig) -> None:
        super().__init__(config)
        self.retriever = Retriever(config)
        self.verifier: Verifier | None = None
        self.prompt_encoder: Any = None
        self.answer_prompt_encoder: AnswerPromptEncoder | None = None
        if config.prompt_form == "continuous":
            self.prompt_encoder = PromptEncoder(config)
            if config.num_answer_prompt_tokens:
                self.answer_prompt_encoder = AnswerPromptEncoder.of_known_answers(config)
        if config.retriever_name_or_path is not None:  # Its checkpoint may hold the prompt encoders alone.
            self._keys_to_ignore_on_load_missing = [r"^retriever\."]
        if config.prompt_form == "text":  # A checkpoint that has both forms is read without its prompt encoders.
            self._keys_to_ignore_on_load_unexpected = [r"^(answer_)?prompt_encoder\."]
        self.lm: Any = None
        self.tokenizer: PreTrainedTokenizerBase | None = None
        self.knowledge = KnowledgeBase(config.knowledge_dim)
        self.register_state_dict_post_hook(_drop_weights_kept_apart)
        self.register_load_state_dict_post_hook(_expect_no_weights_kept_apart)
        self.post_init()

    def _init_weights(self, module: nn.Module) -> None:
        if isinstance(module, (nn.Linear, AnswerPromptEncoder)):
            module.reset_parameters()
        elif isinstance(module, Retriever):
            nn.init.normal_(module.sentinel_embeds, std=getattr(self.config.encoder_config, "initializer_range", 0.02))

    # ------------------------------------------------------------------ using

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        labels: Tensor | None = None,
        query_mask: Tensor | None = None,
        logits_to_keep: int | Tensor = 0,
        queries: str | Sequence[str] | None = None,
        num_items_in_batch: int | Tensor | None = None,
        return_dict: bool | None = None,
        where: Mapping[str, Any] | None = None,
        namespace: str | None = None,
        **kwargs: Any,
    ) -> RecipeCausalLMOutput | tuple[Any, ...]:
        """One pass of the base over the batch, each row preceded by the prompt of the fact it retrieves, if any.

        Gradients reach the prompt encoder; the retrieval is a choice and has none. Those of a batch in which no fact
        is used are zero.

        Args:
            input_ids: `[B, T]`.
            attention_mask: `[B, T]`, 0 for padding, on either side.
            labels: `[B, T]`, usually `input_ids` with -100 where there is nothing to predict. The loss is the mean
                cross-entropy of each label given the tokens before it.
            query_mask: `[B, T]`, 1 for the tokens that the retriever reads. Without it, it reads those before the
                first label, or all without labels, be it that a trainer keeps them to itself, as it does for
                `label_smoothing_factor`; of a chat, the last user message. A row whose labels begin with its text has
                no query and so uses no fact, or its answer would be looked up by itself.
            logits_to_keep: Columns of `input_ids` to compute logits for: 0 for all, `n` for the last `n`, or a tensor
                of column indices. The loss is that of these columns.
            queries: What to look up for each row, instead of reading it from the tokens.
            num_items_in_batch: Divide the sum of the losses by this, rather than take their mean.
            return_dict: `False` for a tuple.
            where: Values that the metadata of a fact must have for it to be found, as in `retrieve`.
            namespace: Whose facts to look among; those of `knowledge` by default.
            **kwargs: Further arguments of the base. `use_cache` is `False` unless given.

        Returns:
            The base's output, with `logits` `[B, T, vocab]` or `[B, n, vocab]`, and `retrievals`.

        Raises:
            RuntimeError: If no base is attached, or a model without a prompt encoder is to be trained.
            ValueError: If `queries` are not as many as the rows, or `past_key_values` are given.
        """
        lm = self._attached()
        if given := [name for name in CACHE_NAMES if kwargs.get(name) is not None]:
            raise ValueError(f"{given[0]} must not be given to forward, which takes whole texts: use generate.")
        texts = self._queries(namespace, queries, input_ids, attention_mask, query_mask, labels)
        unasked = queries is None and labels is not None and not any(texts)
        if self.training and unasked and len(self._knowledge_of(namespace)):
            logger.warning_once(  # type: ignore[attr-defined]
                "No row of a batch has a query, so nothing is learned from it: the retriever reads what precedes the "
                "first label. Set the labels of prompts to -100, or give query_mask or queries."
            )
        retrievals, keys = self._look_up(texts, where=where, namespace=namespace)
        retrievals, prefix = self._prefix(retrievals, keys, input_ids, attention_mask)
        kwargs.setdefault("use_cache", False)
        outputs: Any
        with self._recomputing():
            if prefix is not None:
                kwargs |= {"input_ids": input_ids, "attention_mask": attention_mask}
                outputs = prefixed_forward(lm, **prefix, logits_to_keep=logits_to_keep, **kwargs)
            else:
                kwargs |= {"input_ids": input_ids, "attention_mask": attention_mask}
                outputs = forward_keeping(lm, logits_to_keep, **kwargs)
        if torch.is_grad_enabled() and (self.training or labels is not None) and not outputs.logits.requires_grad:
            if self.prompt_encoder is None and self.training:
                raise RuntimeError(
                    f"The model has nothing to train through its base: {NO_PROMPT_ENCODER}. A new one is made by "
                    f"from_base_pretrained(base, retriever=..., prompt_form='continuous')."
                )
            # Nothing fired, so that the prompt encoders get a gradient of zero.
            trained = [] if self.prompt_encoder is None else [*self.prompt_encoder.parameters()]
            if self.answer_prompt_encoder is not None:
                trained += self.answer_prompt_encoder.parameters()
            if trained:
                outputs.logits.add_(
                    0 * torch.stack([weights.sum() for weights in trained]).sum().to(outputs.logits.device)
                )
        loss = None
        if labels is not None:
            targets = nn.functional.pad(labels, (0, 1), value=-100)[:, 1:]
            if isinstance(logits_to_keep, Tensor) and logits_to_keep.dim() == 2:
                targets = targets.take_along_dim(logits_to_keep % targets.shape[1], dim=1)
            elif isinstance(logits_to_keep, Tensor):
                targets = targets[:, logits_to_keep]
            elif logits_to_keep:
                targets = targets[:, -logits_to_keep:]
            loss = self.loss_function(
                logits=outputs.logits,
                labels=None,
                vocab_size=outputs.logits.shape[-1],
                num_items_in_batch=num_items_in_batch,
                shift_labels=targets.contiguous(),
            )
        result = RecipeCausalLMOutput(loss=loss, **outputs, retrievals=retrievals)
        return result.to_tuple() if return_dict is False else result

    @torch.no_grad()
    def generate(  # type: ignore[override]
        self,
        inputs: Tensor | None = None,
        generation_config: GenerationConfig | None = None,
        *args: Any,
        queries: str | Sequence[str] | None = None,
        where: Mapping[str, Any] | None = None,
        namespace: str | None = None,
        **kwargs: Any,
    ) -> Any:
        """Generates as the base does, each row as if preceded by the prompt of the fact it retrieves, if any.

        What is looked up, once, is the row's text, or a chat's last user message. If nothing fires, this is a call of
        the base's own `generate`.

        A conversation is given whole at every turn. A cache kept from one turn to the next is refused, because it
        holds the first turn under the facts that were used there, and not under those that the next turn asks for.

        Args:
            inputs: `[B, T]`, or `input_ids` by name.
            generation_config: As in `transformers`.
            *args: As in `transformers`.
            queries: What to look up for each row, where it is not the row's own text.
            where: Values that the metadata of a fact must have for it to be found, as in `retrieve`.
            namespace: Whose facts to look among; those of `knowledge` by default.
            **kwargs: As in `transformers`, but `past_key_values` must be empty. An `assistant_model` drafts without
                facts, also if it is a RECIPE model.

        Returns:
            What the base's `generate` returns; with `return_dict_in_generate=True`, it carries `retrievals`, a list
            with one [`Retrieval`] for each row.

        Raises:
            RuntimeError: If no base is attached.
            ValueError: If `queries` are not as many as the rows, or are missing beside `inputs_embeds`, these are
                given where `prompt_form` is `"text"` or `prompt_position` is `"after_bos"`, or `past_key_values` hold
                text already.
        """
        lm = self._attached()
        if generation_config is not None and generation_config.is_assistant:
            return lm.generate(inputs, generation_config, *args, **kwargs)  # A draft, for another model to check.
        for name in CACHE_NAMES:
            if kwargs.get(name) is not None and (cached := int(kwargs[name].get_seq_length())):
                raise ValueError(
                    f"{name} must be empty, got a cache of {cached} tokens, which do not stand after the facts that "
                    f"are looked up now: give the whole conversation without {name}, or use model.lm.generate for "
                    f"the base without facts."
                )
        ids = kwargs.get("input_ids") if inputs is None else inputs
        if ids is None and kwargs.get("inputs_embeds") is not None:
            if queries is None and len(self._knowledge_of(namespace)):
                raise ValueError("queries must be given with inputs_embeds, whose text is not known.")
            if self._place_is_read:
                raise ValueError(
                    "inputs_embeds must be None where facts are told as text or behind bos: their place is not known."
                )
            ids = kwargs["inputs_embeds"]
            queries = [""] * len(ids) if queries is None else queries
        mask = kwargs.get("attention_mask")
        texts = self._queries(namespace, queries, ids, mask)
        retrievals, facts = self.facts_before(*self._look_up(texts, where=where, namespace=namespace), ids, mask)
        with facts:
            outputs = lm.generate(inputs, generation_config, *args, **kwargs)
        if isinstance(outputs, ModelOutput):
            outputs["retrievals"] = retrievals
        return outputs

    @torch.no_grad()
    def facts_before(
        self,
        retrievals: list[Retrieval],
        keys: Tensor,
        input_ids: Tensor | None,
        attention_mask: Tensor | None = None,
    ) -> tuple[list[Retrieval], AbstractContextManager[None]]:
        """The context in which `lm.generate` of a batch uses what `look_up` found, as `generate` does.

        Args:
            retrievals: What was found for each row, `[B]`.
            keys: As from `look_up`.
            input_ids: The rows, `[B, T]`.
            attention_mask: `[B, T]`, 0 for padding.

        Returns:
            The retrievals, with the number of tokens that are prefixed, and the context.
        """
        retrievals, prefix = self._prefix(retrievals, keys, input_ids, attention_mask)
        return retrievals, nullcontext() if prefix is None else hidden_prefix(**prefix, lm=self._attached())

    def _queries(
        self,
        namespace: str | None,
        queries: str | Sequence[str] | None,
        input_ids: Tensor | None,
        attention_mask: Tensor | None = None,
        query_mask: Tensor | None = None,
        labels: Tensor | None = None,
    ) -> list[str]:
        rows = 1 if input_ids is None else len(input_ids)
        if queries is not None:
            return check_queries(queries, rows)
        if input_ids is None or not len(self._knowledge_of(namespace)):
            return [""] * rows
        return read_queries(self._tokenizer("The queries"), input_ids, attention_mask, query_mask, labels)

    def _prefix(
        self, retrievals: list[Retrieval], keys: Tensor, input_ids: Tensor | None, attention_mask: Tensor | None
    ) -> tuple[list[Retrieval], dict[str, Any] | None]:
        """What the facts that fired put before or into each row, the best last: its length, and a prefix.

        The prefix is given as `embeds` `[B, L, d_llm]`, their `mask` `[B, L]`, and what they stand `behind`.
        """
        used = [
            (row, rank, hit)
            for row, best in enumerate(retrievals)
            if best.fired
            for rank, hit in enumerate([best, *best.others])
        ]
        if not used:
            return retrievals, None
        rows, ranks = (torch.tensor(numbers) for numbers in list(zip(*used, strict=True))[:2])
        if self.config.prompt_form == "continuous":
            prompts, present = self.continuous_prompts(keys[rows, ranks], [hit.answer for *_, hit in used])
        else:
            tokenizer = self._tokenizer("Statements")
            statements = [hit.statement or "" for *_, hit in used]
            prompts, present = text_prompts(statements, tokenizer, self.get_input_embeddings(), self.device)
        behind = self._places(input_ids, attention_mask, sorted({row for row, *_ in used}))
        most = int(ranks.max()) + 1
        embeds = prompts.new_zeros(len(retrievals), most, *prompts.shape[1:])
        mask = present.new_zeros(len(retrievals), most, present.shape[1])
        embeds[rows, most - 1 - ranks], mask[rows, most - 1 - ranks] = prompts, present
        embeds, mask = embeds.flatten(1, 2), mask.flatten(1, 2)
        counted = zip(retrievals, mask.sum(1).tolist(), strict=True)
        counts = [replace(best, num_prompt_tokens=number) for best, number in counted]
        return counts, {"embeds": embeds, "mask": mask, "behind": behind}

    @property
    def _place_is_read(self) -> bool:
        """Whether the place of a prompt follows from the tokens of its row."""
        return self.config.prompt_form == "text" or self.config.prompt_position == "after_bos"

    def _places(self, input_ids: Tensor | None, attention_mask: Tensor | None, rows: Sequence[int]) -> Tensor | None:
        """Behind how many of their tokens the prompts of `rows` stand, `[B]`, 0 for other rows; None for 0 in all."""
        if not self._place_is_read:
            return None
        tokenizer = self._tokenizer("The place of a prompt")
        if self.config.prompt_form == "text" or input_ids is None:
            return text_places(tokenizer, input_ids, attention_mask, rows)
        masks = torch.ones_like(input_ids) if attention_mask is None else attention_mask
        ids = [row[mask.bool()].tolist() for row, mask in zip(input_ids, masks, strict=True)]
        return prompt_places(tokenizer, ids, self.config.prompt_position)


def _drop_weights_kept_apart(model: nn.Module, state_dict: dict[str, Any], prefix: str, local_metadata: Any) -> None:
    for name in [name for name in state_dict if name.startswith((f"{prefix}lm.", f"{prefix}verifier."))]:
        del state_dict[name]


def _expect_no_weights_kept_apart(model: nn.Module, incompatible_keys: Any) -> None:
    keys = incompatible_keys.missing_keys
    keys[:] = [name for name in keys if not {"lm", "verifier"} & {*name.split(".")[:2]}]


AutoModelForCausalLM.register(RecipeConfig, RecipeForCausalLM, exist_ok=True)
