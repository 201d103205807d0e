"""One training step: from facts to losses."""

from __future__ import annotations

from collections.abc import Sequence
from copy import deepcopy
from dataclasses import replace
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.distributed.nn.functional import all_gather

from ..knowledge.facts import compose_statement
from ..modeling.model import RecipeForCausalLM
from ..modeling.prompt_encoder import AnswerPromptEncoder
from ..modeling.queries import as_chat
from ..teacher_forcing import IGNORE_INDEX, Row, answer_logits, tokenize_rows
from .caches import FactKeys, FeatureCache, KeyMemory
from .config import StageConfig, TrainingConfig
from .losses import contrastive_losses, distillation_loss, editing_loss, locality_loss, read_out_loss
from .packing import check_packing, fits_window, packed_answer_logits
from .sampling import FactSampler, TrainingFact
from .warm_start import AnswerPool, embedding_scale

_READ_OUT_CANDIDATES = 1024
_CONTINUATION_TOKENS = 2
_ENCODER_BATCH = 64


class RecipeObjective(nn.Module):
    """The trained weights of a model, and the losses on a batch of facts (Algorithm 1).

    The frozen base is used but is not a part of this module: it is neither wrapped nor saved. With several processes,
    each takes every `num_processes`-th fact of a batch, and the losses, averaged over processes, are those that one
    process would have on the whole batch.
    """

    _same_as: Tensor

    def __init__(
        self,
        model: RecipeForCausalLM,
        config: TrainingConfig,
        sampler: FactSampler,
        process_index: int = 0,
        num_processes: int = 1,
    ) -> None:
        super().__init__()
        if model.tokenizer is None:
            raise RuntimeError("The model has no tokenizer of its base: set model.tokenizer.")
        if model.prompt_encoder is None:
            raise ValueError(
                f"prompt_form must be 'continuous' in a model to train, got {model.config.prompt_form!r}: "
                f"from_base_pretrained(base, retriever=..., prompt_form='continuous') makes prompts to train."
            )
        self._model = [model]
        self._checkpoint = (
            None if config.model.checkpoint is None else deepcopy((model.retriever, model.prompt_encoder))
        )
        self.tokenizer = model.tokenizer
        self.sampler = sampler
        self.config = config.objective
        self.process_index = process_index
        self.num_processes = num_processes
        self.retriever = model.retriever
        self.prompt_encoder = model.prompt_encoder
        self.answer_prompt_encoder = model.answer_prompt_encoder
        self.warm_start_prompt = AnswerPromptEncoder(
            model.config.num_continuous_prompt_tokens, model.config.hidden_size
        )
        self.memory = KeyMemory(config.objective.key_memory, model.config.knowledge_dim)
        mines = any(stage.mined_negatives for stage in config.stages)
        self.fact_keys = FactKeys(len(sampler.examples) if mines else 0, model.config.knowledge_dim)
        self.register_buffer("_same_as", torch.tensor(sampler.same_as), persistent=False)
        self.pool = AnswerPool(sampler.answers, self.tokenizer, model.lm, num_tokens=self.warm_start_prompt.num_tokens)
        #: Factor on the rates of what has the scale of word embeddings.
        self.prompt_scale = embedding_scale(model.lm) if self.config.relative_prompt_rates else 1.0
        self.cache, self.checkpoint_cache = FeatureCache(), FeatureCache()
        chats = config.data.sampling.chat_share
        if chats and not self.tokenizer.chat_template:
            raise ValueError(f"data.sampling.chat_share must be 0 for a base without a chat template, got {chats!r}.")
        if chats:
            as_chat(self.tokenizer, sampler.examples[0].prompt)
        edits = any(stage.editing_batch_size for stage in config.stages)
        self.packs_rows = self.config.pack_rows is not False and edits and self._can_pack()

    def _can_pack(self) -> bool:
        examples = self.sampler.examples[:2]
        texts = [e.prompt for e in examples] + [e.rephrase_prompt for e in examples]
        try:
            check_packing(self.model.lm, self._rows(texts, [e.answer for e in examples * 2]))
        except ValueError:
            if self.config.pack_rows:
                raise
            return False
        return True

    @property
    def model(self) -> RecipeForCausalLM:
        """The model in training."""
        return self._model[0]

    def start_stage(self, stage: StageConfig, previous: StageConfig | None) -> None:
        """Freezes what the stage leaves alone, and hands over from a warm start to the prompt encoder."""
        of_statements = stage.prompts == "statement"
        self.prompt_encoder.requires_grad_(of_statements)
        self.retriever.requires_grad_(of_statements and stage.trains_retriever)
        self.warm_start_prompt.requires_grad_(stage.prompts == "answer")
        if self.answer_prompt_encoder is not None:
            self.answer_prompt_encoder.requires_grad_(stage.prompts == "known_answer")
        self.retriever.encoder.requires_grad_(False)
        if stage.encoder_learning_rate > 0:
            trained: nn.Module = self.retriever.encoder
            if stage.encoder_layers is not None:
                stacks = [module for module in trained.modules() if isinstance(module, nn.ModuleList)]
                trained = max(stacks, key=len)[-stage.encoder_layers :]
            trained.requires_grad_(True)
        if previous is not None and previous.prompts == "answer" and of_statements:
            with torch.no_grad():
                self.prompt_encoder.output.bias.copy_(self._center().flatten())
                self.prompt_encoder.output.weight.mul_(0.1)

    @torch.no_grad()
    def fit_standardizer(self, facts: Sequence[TrainingFact]) -> None:
        """Sets the standardisation to the features of these facts' texts."""
        features = self.retriever.text_features([*_statements(facts), *_queries(facts)])
        self.retriever.standardizer.fit(features)

    @torch.no_grad()
    def encode_all_facts(self) -> None:
        """Makes the keys anew among which negatives are mined."""
        statements = [self.sampler.own_statement(number) for number in range(len(self.sampler.examples))]
        self.fact_keys.keys.copy_(self.retriever.encode_statements(statements))

    def forward(self, batch: Sequence[TrainingFact], stage: StageConfig, step: int) -> dict[str, Tensor]:
        """The losses of a step on the batch of all processes, unweighted, by name."""
        losses: dict[str, Tensor] = {}
        facts = batch[self.process_index :: self.num_processes]
        keys = None
        if stage.contrastive_batch_size:
            if stage.trains_retriever:
                contrastive, keys = self._contrastive(facts, batch, stage)
                losses |= contrastive
            else:
                keys = self._keys(_statements(facts), stage)
            if stage.weight("read_out") > 0:
                if self._checkpoint is None:
                    losses["read_out"] = self._read_out(keys, self._labels(facts), self._labels(batch), step)
                else:
                    losses["read_out"] = distillation_loss(self.prompt_encoder(keys), self._former_prompts(facts))
        if stage.editing_batch_size:
            edited, present = facts[: stage.editing_batch_size], None
            if stage.prompts == "answer":
                prompts = self.warm_start_prompt(self._pieces(self._labels(edited)))
            elif stage.prompts == "known_answer":
                with torch.no_grad():
                    keys = self._keys(_statements(edited), stage)
                prompts, present = self.model.continuous_prompts(keys, [fact.answer for fact in edited])
            else:
                keys = self._keys(_statements(edited), stage) if keys is None else keys[: len(edited)]
                prompts = self.prompt_encoder(keys)
            losses |= self._editing(edited, prompts, present, stage)
        return losses

    def _labels(self, facts: Sequence[TrainingFact]) -> Tensor:
        return self.pool.labels[[self.pool.index[fact.answer] for fact in facts]]

    def _gather(self, values: Tensor) -> list[Tensor]:
        """The values of each process, its own first; gradients flow back to all."""
        if self.num_processes == 1:
            return [values]
        gathered = all_gather(values.contiguous())
        return [*gathered[self.process_index :], *gathered[: self.process_index]]

    def _features(self, texts: Sequence[str], stage: StageConfig, keep: Literal["start", "end"] = "start") -> Tensor:
        if stage.encoder_learning_rate == 0:
            return self.retriever.standardizer(self.cache(self.retriever, texts, keep))
        self.cache.clear()
        size = min(_ENCODER_BATCH, -(-len(texts) // self.config.length_buckets))
        return self.retriever.standardizer(self.retriever.text_features(texts, size, keep).float())

    def _keys(self, statements: Sequence[str], stage: StageConfig) -> Tensor:
        return self.retriever.mlp_k(self._features(statements, stage))

    def _contrastive(
        self, facts: Sequence[TrainingFact], batch: Sequence[TrainingFact], stage: StageConfig
    ) -> tuple[dict[str, Tensor], Tensor]:
        asked = facts[: stage.query_batch_size]
        queries, rephrases, neighbors = self.retriever.mlp_q(self._features(_queries(asked), stage, "end")).chunk(3)
        mined = self._mine(torch.cat([queries, rephrases, neighbors]), asked, stage)
        mined_statements = [self.sampler.own_statement(number) for number in mined.tolist()]
        keys, mined_keys = self._keys([*_statements(facts), *mined_statements], stage).tensor_split([len(facts)])
        shares = self._gather(keys)
        numbers = torch.tensor([fact.number for fact in batch], device=keys.device)
        by_process = numbers.view(-1, self.num_processes).T.roll(-self.process_index, 0)
        if stage.encoder_learning_rate > 0:
            self.memory.clear()
        past_keys, past_numbers = self.memory.filled()
        candidates = torch.cat([by_process.flatten(), *self._gather(mined), past_numbers])
        losses = contrastive_losses(
            queries,
            rephrases,
            neighbors,
            torch.cat(shares),
            self.retriever.encode_sentinel(),
            torch.cat([*self._gather(mined_keys), past_keys.clone()]),
            self._same_as[by_process[0, : len(asked)]].unsqueeze(1) == self._same_as[candidates],
            torch.stack([torch.isin(candidates, candidates.new_tensor(self.sampler.asked_for(f))) for f in asked]),
            self.model.config.scale,
            self.config.temperature,
            self.config.hinge_scale,
        )
        in_order = torch.stack(shares, dim=1).roll(self.process_index, 1)
        self.memory.push(in_order.flatten(0, 1), numbers)
        return losses, keys

    def _mine(self, queries: Tensor, asked: Sequence[TrainingFact], stage: StageConfig) -> Tensor:
        """Numbers of the facts that the queries `[3 * len(asked), dim]` are nearest to, but for their own."""
        if not stage.mined_negatives:
            return torch.empty(0, dtype=torch.long, device=queries.device)
        own = self._same_as[[fact.number for fact in asked]].repeat(3)
        return self.fact_keys.nearest(queries, own.unsqueeze(1) == self._same_as, stage.mined_negatives)

    @torch.no_grad()
    def _former_prompts(self, facts: Sequence[TrainingFact]) -> Tensor:
        """The prompts that the checkpoint gone on from makes of these facts, `[len(facts), num_tokens, d_llm]`."""
        assert self._checkpoint is not None
        device = self.retriever.device
        retriever, prompt_encoder = self._checkpoint[0].to(device), self._checkpoint[1].to(device)
        features = self.checkpoint_cache(retriever, _statements(facts))
        return prompt_encoder(retriever.mlp_k(retriever.standardizer(features)))

    def _pieces(self, labels: Tensor) -> Tensor:
        return self.pool.gather(labels).to(self.warm_start_prompt.offset.device)

    def _center(self) -> Tensor:
        """Mean continuous prompt of all answers, `[num_tokens, d_llm]`."""
        return self.warm_start_prompt(self.pool.mean.unsqueeze(0).to(self.warm_start_prompt.offset.device))[0]

    def _read_out(self, keys: Tensor, labels: Tensor, batch_labels: Tensor, step: int) -> Tensor:
        generator = torch.Generator().manual_seed(step)
        candidates, positions = [], []
        with torch.no_grad():
            for token, pieces in enumerate(self.pool.pieces):
                drawn = torch.randint(len(pieces), (_READ_OUT_CANDIDATES,), generator=generator)
                chosen = torch.cat([batch_labels[:, token], drawn]).unique()
                candidates.append(self.warm_start_prompt.token(token, pieces[chosen].to(keys.device)))
                positions.append(torch.searchsorted(chosen, labels[:, token].contiguous()))
            center = self._center()
        return read_out_loss(
            self.prompt_encoder(keys).float(), candidates, torch.stack(positions, dim=1).to(keys.device), center
        )

    def _editing(
        self, facts: Sequence[TrainingFact], prompts: Tensor, present: Tensor | None, stage: StageConfig
    ) -> dict[str, Tensor]:
        """Reliability, generality and locality rows (eq. 10-12) in one call of the base."""
        count = len(facts)
        answers = [fact.answer for fact in facts]
        texts: dict[str, tuple[list[str], list[str]]] = {
            "reliability": ([fact.example.prompt for fact in facts], answers),
            "generality": ([fact.example.rephrase_prompt for fact in facts], answers),
        }
        if stage.weight("locality") > 0:
            texts["locality"] = (
                [fact.example.locality_prompt for fact in facts],
                [fact.example.locality_answer for fact in facts],
            )
        questions = [
            as_chat(self.tokenizer, text) if fact.in_chat else text
            for asked, _ in texts.values()
            for fact, text in zip(facts, asked, strict=True)
        ]
        expected = [text for _, given in texts.values() for text in given]
        rows = self._rows(questions, expected)
        following = self._following(facts) * 2 if stage.weight("continuation") > 0 else []
        rows[: len(following)] = [
            replace(row, answer_ids=row.answer_ids + ids) for row, ids in zip(rows, following, strict=False)
        ]
        logits, labels = self._logits(rows, prompts, present)
        left_to_base = torch.zeros_like(labels, dtype=torch.bool)
        left_to_base[2 * count :] = True
        for row, ids in zip(left_to_base, following, strict=False):
            row[len(row) - len(ids) :] = True
        said = labels.masked_fill(left_to_base, IGNORE_INDEX)
        losses = {
            name: editing_loss(logits[i * count :][:count], said[i * count :][:count], self.config.hinge_scale)
            for i, name in enumerate(["reliability", "generality"])
        }
        for name, block in (("locality", slice(2 * count, None)), ("continuation", slice(2 * count))):
            if stage.weight(name) > 0:
                with torch.no_grad():
                    base_logits, base_labels = self._logits(rows[block])
                n = base_labels.shape[1]
                base_labels = base_labels.masked_fill(~left_to_base[block, -n:], IGNORE_INDEX)
                losses[name] = locality_loss(logits[block, -n:], base_logits, base_labels)
        return losses

    def _rows(self, prompts: Sequence[str], answers: Sequence[str]) -> list[Row]:
        return tokenize_rows(self.tokenizer, prompts, answers, self.model.config.prompt_position)

    def _logits(
        self, rows: Sequence[Row], prompts: Tensor | None = None, present: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Logits and labels at the answers of rows that have the prompts in turn, or none."""
        lm = self.model.lm
        if self.packs_rows and fits_window(lm, rows, 0 if prompts is None else prompts.shape[1]):
            return packed_answer_logits(lm, rows, prompts, present)
        blocks = 1 if prompts is None else len(rows) // len(prompts)
        prefix = None if prompts is None else prompts.repeat(blocks, 1, 1)
        prefix_mask = None if present is None else present.repeat(blocks, 1)
        return answer_logits(lm, rows, prefix, self.config.length_buckets, prefix_mask)

    def _following(self, facts: Sequence[TrainingFact]) -> list[list[int]]:
        """Tokens of an unrelated sentence: once the answer is said, the base goes on as if it had said so itself."""
        texts = [f". {fact.example.locality_prompt}" for fact in facts]
        ids = self.tokenizer(texts, add_special_tokens=False)["input_ids"]
        return [row[:_CONTINUATION_TOKENS] for row in ids]


def _statements(facts: Sequence[TrainingFact]) -> list[str]:
    return [compose_statement(fact.example.prompt, fact.answer) for fact in facts]


def _queries(facts: Sequence[TrainingFact]) -> list[str]:
    """Prompts, rephrasings and unrelated prompts, in three blocks, each after what distracts from it."""
    return [
        *(fact.distractor + fact.example.prompt for fact in facts),
        *(fact.distractor + fact.example.rephrase_prompt for fact in facts),
        *(fact.distractor + fact.example.locality_prompt for fact in facts),
    ]


def parameter_groups(objective: RecipeObjective) -> list[dict[str, Any]]:
    """Parameters by the field of [`StageConfig`] that holds their learning rate; `factor` multiplies it."""
    retriever, prompts, scale = objective.retriever, objective.prompt_encoder, objective.prompt_scale
    groups: list[dict[str, Any]] = [
        {"rate": "key_learning_rate", "factor": 1.0, "params": list(retriever.mlp_k.parameters())},
        {"rate": "learning_rate", "factor": 1.0, "params": list(retriever.mlp_q.parameters())},
        {"rate": "encoder_learning_rate", "factor": 1.0, "params": list(retriever.encoder.parameters())},
        {"rate": "sentinel_learning_rate", "factor": 1.0, "params": [retriever.sentinel_embeds]},
        {"rate": "prompt_learning_rate", "factor": 1.0, "params": list(prompts.residual.parameters())},
        {"rate": "prompt_learning_rate", "factor": scale, "params": list(prompts.output.parameters())},
    ]
    for of_answers in (objective.warm_start_prompt, objective.answer_prompt_encoder):
        if of_answers is not None:
            groups.append({"rate": "prompt_learning_rate", "factor": scale, "params": of_answers.offsets})
            groups.append({"rate": "prompt_learning_rate", "factor": 0.1, "params": [of_answers.weight]})
    return groups
