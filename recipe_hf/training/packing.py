"""Rows packed as trees: what rows of one prefix have in common at their beginning is computed once, without padding.

In a causal model, the states of tokens with the same tokens before them are the same. So the rows of a fact become a
tree, which begins with the fact's continuous prompt, or with the tokens that this stands behind, and a few trees one
row of a call, in which a token sees its ancestors alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedModel

from ..modeling.frozen_base import input_device
from ..modeling.prefix import accepts
from ..teacher_forcing import IGNORE_INDEX, Row, answer_logits

_TREES_IN_A_ROW = 4
_TOLERANCE = 1e-3


@dataclass
class _Tree:
    """Tokens that follow one prefix; the parent of each stands before it, and is -1 where there is none."""

    tokens: list[int] = field(default_factory=list)
    parents: list[int] = field(default_factory=list)
    children: dict[tuple[int, int], int] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.tokens)

    def add(self, parent: int, token: int) -> int:
        """The node of `token` after `parent`, a new one if there is none yet."""
        node = self.children.setdefault((parent, token), len(self.tokens))
        if node == len(self.tokens):
            self.tokens.append(token)
            self.parents.append(parent)
        return node

    def sight(self) -> np.ndarray:
        """Which nodes each node sees, itself and its ancestors, `[len(self), len(self)]`."""
        sees = np.eye(len(self), dtype=bool)
        for node, parent in enumerate(self.parents):
            if parent >= 0:
                sees[node] |= sees[parent]
        return sees


def packed_answer_logits(
    lm: PreTrainedModel, rows: Sequence[Row], prefix: Tensor | None = None, prefix_mask: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """What [`~recipe_hf.teacher_forcing.answer_logits`] gives, for rows that share prefixes, with fewer tokens.

    Args:
        lm: A causal LM that takes `position_ids` and masks `[batch, 1, seq, seq]`; see [`check_packing`].
        rows: Prompts and answers. Row `i` has the prefix `i % num_prefixes`.
        prefix: Continuous prompts, `[num_prefixes, num_tokens, d_llm]`; without it, all rows are of one tree.
        prefix_mask: Which tokens of `prefix` are there, `[num_prefixes, num_tokens]`; all by default.

    Returns:
        Logits `[batch, n, vocab]` and labels `[batch, n]`, as `answer_logits` gives them.
    """
    device = input_device(lm)
    embeddings: Any = lm.get_input_embeddings()
    if prefix is None:
        prefix = torch.empty(1, 0, 0, device=device)
    present = torch.ones(prefix.shape[:2], dtype=torch.bool) if prefix_mask is None else prefix_mask.cpu()
    trees, targets = _grow(rows, present)
    packs = _share_out([len(tree) for tree in trees])

    num_targets = max(len(row.answer_ids) for row in rows)
    asked = [sorted({node for nodes in targets[i :: len(trees)] for node in nodes}) for i in range(len(trees))]
    # The nodes asked about stand last in every row, so that the LM head runs over the same few columns of all.
    kept = max(sum(len(asked[i]) for i in pack) for pack in packs)
    length = max(sum(len(trees[i]) for i in pack) for pack in packs)
    tokens = np.zeros((len(packs), length), dtype=np.int64)
    positions = np.zeros_like(tokens)
    sees = np.tile(np.eye(length, dtype=bool), (len(packs), 1, 1))
    place: list[dict[int, int]] = [{} for _ in trees]
    for number, pack in enumerate(packs):
        first = length - sum(len(trees[i]) for i in pack)
        last = length - sum(len(asked[i]) for i in pack)
        for i in pack:
            inner = np.setdiff1d(np.arange(len(trees[i])), asked[i])
            columns = np.empty(len(trees[i]), dtype=np.int64)
            columns[inner] = np.arange(first, first + len(inner))
            columns[asked[i]] = np.arange(last, last + len(asked[i]))
            first, last = first + len(inner), last + len(asked[i])
            sight = trees[i].sight()
            tokens[number, columns] = trees[i].tokens
            positions[number, columns] = sight.sum(1) - 1
            sees[number][np.ix_(columns, columns)] = sight
            place[i] = {node: number * kept + columns[node] - (length - kept) for node in asked[i]}

    # A token of the prefix is written as a negative number: -1 for the first of the first prefix.
    ids = torch.from_numpy(tokens).to(device)
    embeds = embeddings(ids.clamp_min(0))
    if prefix.shape[1]:
        prompts = prefix.to(embeds).flatten(0, 1)[(-ids - 1).clamp_min(0)]
        embeds = torch.where((ids < 0).unsqueeze(-1), prompts, embeds)
    hidden = torch.from_numpy(~sees).unsqueeze(1).to(device)
    mask = torch.zeros(hidden.shape, dtype=embeds.dtype, device=device).masked_fill(
        hidden, torch.finfo(embeds.dtype).min
    )
    outputs: Any = lm(
        inputs_embeds=embeds,
        attention_mask=mask,
        position_ids=torch.from_numpy(positions).to(device),
        logits_to_keep=torch.arange(length - kept, length, device=device),
        use_cache=False,
        return_dict=True,
    )
    where = torch.zeros(len(rows), num_targets, dtype=torch.long)
    labels = torch.full((len(rows), num_targets), IGNORE_INDEX)
    for i, (row, nodes) in enumerate(zip(rows, targets, strict=True)):
        where[i, -len(nodes) :] = torch.tensor([place[i % len(trees)][node] for node in nodes])
        labels[i, -len(nodes) :] = torch.tensor(row.answer_ids)
    return outputs.logits.flatten(0, 1)[where.to(device)], labels.to(device)


def fits_window(lm: PreTrainedModel, rows: Sequence[Row], num_prompt_tokens: int = 0) -> bool:
    """Whether no row is longer than the sliding window of `lm`, which the masks of packed rows take no account of."""
    window = getattr(lm.config.get_text_config(), "sliding_window", None)
    return window is None or num_prompt_tokens + max(map(len, rows)) <= window


def _grow(rows: Sequence[Row], present: Tensor) -> tuple[list[_Tree], list[list[int]]]:
    """A tree for each prefix, and for each row the nodes that predict its answer."""
    trees: list[_Tree] = [_Tree() for _ in present]
    prompts = [
        [-1 - number * len(tokens) - token for token, there in enumerate(tokens) if there]
        for number, tokens in enumerate(present.tolist())
    ]
    targets = []
    for i, row in enumerate(rows):
        tree, node, path = trees[i % len(trees)], -1, []
        text = (row.prompt_ids + row.answer_ids)[:-1]
        for token in text[: row.behind] + prompts[i % len(trees)] + text[row.behind :]:
            node = tree.add(node, token)
            path.append(node)
        targets.append(path[-len(row.answer_ids) :])
    return trees, targets


def _share_out(sizes: Sequence[int]) -> list[list[int]]:
    """Trees shared out over rows that are about equally long: the largest first, each to the shortest row."""
    packs: list[list[int]] = [[] for _ in range(-(-len(sizes) // _TREES_IN_A_ROW))]
    for i in sorted(range(len(sizes)), key=lambda i: -sizes[i]):
        min(packs, key=lambda pack: sum(sizes[j] for j in pack)).append(i)
    return packs


@torch.no_grad()
def check_packing(lm: PreTrainedModel, rows: Sequence[Row]) -> None:
    """Whether `lm` gives the same logits for packed rows, as models with positions and masks of their own may not.

    Args:
        lm: A causal LM.
        rows: Rows to try it with, in two blocks: the `i`-th of both share a prefix.

    Raises:
        ValueError: If it does not.
    """
    refusal = f"objective.pack_rows must be False for a base of type {lm.config.model_type!r}"
    if not accepts(lm, "position_ids"):
        raise ValueError(f"{refusal}: it takes no position_ids.")
    embeddings: Any = lm.get_input_embeddings()
    count = len(rows) // 2
    prefix = embeddings(torch.arange(3 * count, device=input_device(lm))).view(count, 3, -1)
    expected, labels = answer_logits(lm, rows, prefix.repeat(2, 1, 1))
    found, _ = packed_answer_logits(lm, rows, prefix)
    kept = labels != IGNORE_INDEX
    error = (expected - found)[kept].float().norm() / expected[kept].float().norm()
    tolerance = max(_TOLERANCE, 20 * torch.finfo(expected.dtype).eps)
    if not error < tolerance:
        raise ValueError(
            f"{refusal}: its logits for packed rows differ by {error:.2g} of their norm, at most {tolerance:.2g} is "
            "allowed."
        )
