"""What a prefixed model should answer: loops of their own, row by row, without padding, cache, mask or `generate`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor
from transformers import LogitsProcessor, PreTrainedModel

from recipe_hf.modeling.prefix import hidden_prefix, install_prefix_hook
from tests.tiny import HIDDEN_SIZE, PAD_TOKEN_ID, VOCAB_SIZE, tiny_causal_lm

NEW_TOKENS = 6
SIDES = ("left", "right")
CLOSE = {"atol": 1e-5, "rtol": 1e-5}


@lru_cache
def hooked_lm(architecture: str) -> PreTrainedModel:
    """A tiny model that can be prefixed; one for all tests, so leave it as it is."""
    lm = tiny_causal_lm(architecture)
    install_prefix_hook(lm)
    return lm


@dataclass
class Batch:
    """Rows that hit (whole or shorter prefix) and rows that miss, of different lengths, padded on one side."""

    embeds: Tensor
    mask: Tensor
    texts: list[list[int]]
    input_ids: Tensor
    attention_mask: Tensor

    @property
    def inputs(self) -> dict[str, Tensor]:
        return {"input_ids": self.input_ids, "attention_mask": self.attention_mask}

    def prefix(self, row: int) -> Tensor:
        return self.embeds[row][self.mask[row]]

    def generate(self, lm: PreTrainedModel, **kwargs: object) -> Tensor:
        kwargs.setdefault("max_new_tokens", NEW_TOKENS)
        with hidden_prefix(self.embeds, self.mask):
            return lm.generate(**self.inputs, **kwargs)


def make_batch(
    side: str = "left",
    lengths: Sequence[int] = (6, 3, 1, 5),
    seed: int = 0,
    slots: Sequence[str] = ("111", "000", "011", "110"),
) -> Batch:
    generator = torch.Generator().manual_seed(seed)
    rows, columns = len(lengths), max(lengths)
    embeds = 2 * torch.randn(rows, 3, HIDDEN_SIZE, generator=generator)
    mask = torch.tensor([[slot == "1" for slot in slots[row]] for row in range(rows)])
    texts = [torch.randint(3, VOCAB_SIZE, (length,), generator=generator).tolist() for length in lengths]
    input_ids = torch.full((rows, columns), PAD_TOKEN_ID)
    attention_mask = torch.zeros(rows, columns, dtype=torch.long)
    for row, text in enumerate(texts):
        place = slice(columns - len(text), None) if side == "left" else slice(len(text))
        input_ids[row, place] = torch.tensor(text)
        attention_mask[row, place] = 1
    return Batch(embeds, mask, texts, input_ids, attention_mask)


def next_logits(lm: PreTrainedModel, prefix: Tensor, ids: list[int]) -> Tensor:
    """The reference's one building block: no padding, no cache, no ids, no mask."""
    text = lm.get_input_embeddings()(torch.tensor(ids))
    return lm(inputs_embeds=torch.cat([prefix, text]).unsqueeze(0), use_cache=False).logits[0, -1]


def greedy(scores: Tensor) -> Tensor:
    return scores.argmax(-1)


def sampled(scores: Tensor) -> Tensor:
    return torch.multinomial(scores.softmax(-1), 1).squeeze(1)


@torch.no_grad()
def reference(
    lm: PreTrainedModel,
    batch: Batch,
    processors: Sequence[LogitsProcessor] = (),
    choose: Callable[[Tensor], Tensor] = greedy,
    new_tokens: int = NEW_TOKENS,
    repeats: int = 1,
) -> Tensor:
    """What `generate` should return: every row alone, prefix and text concatenated. Processors see ids only."""
    rows = [row for row in range(len(batch.texts)) for _ in range(repeats)]
    output = batch.input_ids[rows]
    continuations: list[list[int]] = [[] for _ in rows]
    for _ in range(new_tokens):
        logits = [
            next_logits(lm, batch.prefix(row), batch.texts[row] + new)
            for row, new in zip(rows, continuations, strict=True)
        ]
        scores = torch.stack(logits)
        for processor in processors:
            scores = processor(output, scores)
        chosen = choose(scores)
        output = torch.cat([output, chosen.unsqueeze(1)], 1)
        for new, token in zip(continuations, chosen.tolist(), strict=True):
            new.append(token)
    return output


@torch.no_grad()
def reference_beams(
    lm: PreTrainedModel, batch: Batch, num_beams: int, processors: Sequence[LogitsProcessor] = ()
) -> Tensor:
    """All beams of every row, best first, without an end token."""
    output = []
    for row, text in enumerate(batch.texts):
        beams: list[tuple[float, list[int]]] = [(0.0, [])]
        for _ in range(NEW_TOKENS):
            candidates = []
            for score, new in beams:
                log_probs = next_logits(lm, batch.prefix(row), text + new).log_softmax(-1).unsqueeze(0)
                ids = torch.tensor([batch.input_ids[row].tolist() + new])
                for processor in processors:
                    log_probs = processor(ids, log_probs)
                best = log_probs[0].topk(num_beams)
                candidates += [(score + float(s), [*new, int(t)]) for s, t in zip(*best, strict=True)]
            beams = sorted(candidates, key=lambda beam: -beam[0])[:num_beams]
        output += [torch.cat([batch.input_ids[row], torch.tensor(new)]) for _, new in beams]
    return torch.stack(output)
