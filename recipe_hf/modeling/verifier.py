"""The verifier: reads a query and a statement together, and says whether the one answers the other.

It goes beyond the paper, whose gate compares two vectors made apart (eq. 9). It depends on no base.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import AutoModel

from .configuration import RecipeConfig
from .retriever import Retriever

VERIFIER_FILE = "verifier.safetensors"
MAX_QUERY_TOKENS = 96
MAX_STATEMENT_TOKENS = 96
MAX_ANSWER_TOKENS = 16
_UPDATE_MARK = "→ "


@dataclass(frozen=True, eq=False)
class Pairs:
    """Queries and statements as token ids, `[CLS] query [SEP] statement [SEP]`.

    Attributes:
        input_ids: `[n, seq]`.
        token_type_ids: 1 for the statement and what ends it, `[n, seq]`.
        attention_mask: `[n, seq]`.
        statement_starts: Column of each statement's first token.
    """

    input_ids: Tensor
    token_type_ids: Tensor
    attention_mask: Tensor
    statement_starts: list[int]


class Verifier(nn.Module):
    """A cross-encoder over the retriever's word embeddings, which it shares, with layers of its own.

    Attributes:
        encoder: Layers like those of the retriever's encoder, without word embeddings.
        head: Reads the first token and the mean of all; positive if the statement answers the query.
        span: Scores each token as the first and as the last one of the answer.
        calibration: `(a, b, c)` of the logit `a + b * head + c * margin`, the margin being that of the retriever's
            score over its threshold.
    """

    calibration: Tensor

    def __init__(self, config: RecipeConfig) -> None:
        super().__init__()
        self.encoder: Any = AutoModel.from_config(config.encoder_config, dtype=torch.float32)
        self.encoder.pooler = None
        self.encoder.set_input_embeddings(None)
        width = config.encoder_config.hidden_size
        self.head = nn.Sequential(nn.Linear(2 * width, width), nn.GELU(), nn.Linear(width, 1))
        self.span = nn.Linear(width, 2)
        self.register_buffer("calibration", torch.tensor([0.0, 1.0, 0.0]))

    @classmethod
    def load(cls, directory: Path, config: RecipeConfig) -> Verifier:
        """The verifier of a checkpoint, in float32.

        Raises:
            FileNotFoundError: If its file is missing.
            ValueError: If that is truncated, altered, or of another model.
        """
        path, verifier = directory / VERIFIER_FILE, cls(config)
        if not path.is_file():
            raise FileNotFoundError(f"{path} is missing from the checkpoint; verifier=False does without it.")
        try:
            verifier.load_state_dict(load_file(path))
        except (SafetensorError, RuntimeError) as error:
            raise ValueError(f"The weights in {path} are truncated or altered: {error}.") from error
        return verifier.eval()

    def save(self, directory: Path) -> None:
        """Writes the weights, in float16, to a checkpoint."""
        weights = {name: tensor.half().contiguous() for name, tensor in self.state_dict().items()}
        save_file(weights, directory / VERIFIER_FILE, metadata={"format": "pt"})

    def forward(self, words: nn.Module, pairs: Pairs) -> tuple[Tensor, Tensor]:
        """Logits `[n]` before calibration, and scores `[n, seq, 2]` of each token as the answer's first and last.

        Args:
            words: The retriever's word embeddings.
            pairs: Queries and statements.
        """
        inputs = {"inputs_embeds": words(pairs.input_ids), "attention_mask": pairs.attention_mask}
        if getattr(self.encoder.config, "type_vocab_size", 0) > 1:
            inputs["token_type_ids"] = pairs.token_type_ids
        hidden = self.encoder(**inputs).last_hidden_state
        mask = pairs.attention_mask.unsqueeze(-1)
        mean = (hidden * mask).sum(1) / mask.sum(1)
        return self.head(torch.cat([hidden[:, 0], mean], dim=-1)).squeeze(-1), self.span(hidden)

    @torch.no_grad()
    def read(self, retriever: Retriever, pairs: Sequence[tuple[str, str]], batch_size: int = 64) -> Tensor:
        """What queries and statements, in any order and of any length, say to each other.

        Args:
            retriever: The retriever.
            pairs: Queries and statements.
            batch_size: How many to read at once.

        Returns:
            `[len(pairs), 3]`: the logit before calibration, and the first and the last token, among the statement's,
            of what would be the answer.
        """
        order = sorted(range(len(pairs)), key=lambda i: sum(map(len, pairs[i])))
        words = retriever.encoder.get_input_embeddings()
        readings = torch.empty(len(pairs), 3)
        for start in range(0, len(order), batch_size):
            chosen = order[start : start + batch_size]
            encoded = encode_pairs(retriever, [pairs[i] for i in chosen])
            logits, scores = self(words, encoded)
            readings[chosen] = torch.cat([logits.unsqueeze(1), _best_spans(scores, encoded)], dim=1).float().cpu()
        return readings

    def calibrated(self, logits: Tensor, margins: Tensor) -> Tensor:
        """Logits of the probability that the statement answers the query, `[n]`, `[n]` -> `[n]`."""
        offset, of_logit, of_margin = self.calibration.tolist()  # The logits are on the CPU, wherever the weights are.
        return offset + of_logit * logits + of_margin * margins


def as_update(statement: str) -> str:
    """A newer statement as a query: an older one answers it whose place it takes.

    >>> as_update("Ann Lee runs Acme.")
    '→ Ann Lee runs Acme.'
    """
    return f"{_UPDATE_MARK}{statement}"


def is_update(query: str) -> bool:
    """Whether a query is a newer statement."""
    return query.startswith(_UPDATE_MARK)


def encode_pairs(retriever: Retriever, pairs: Sequence[tuple[str, str]]) -> Pairs:
    """Token ids of queries and statements. The end of a long query is read, the start of a statement, newer or not."""
    tokenizer: Any = retriever.tokenizer
    queries, statements = (
        tokenizer(list(texts), add_special_tokens=False, verbose=False)["input_ids"]
        for texts in zip(*pairs, strict=True)
    )
    room = retriever.max_length - 3
    of_statement, of_query = min(MAX_STATEMENT_TOKENS, room // 2), min(MAX_QUERY_TOKENS, room - room // 2)
    rows, starts = [], []
    for (text, _), query, statement in zip(pairs, queries, statements, strict=True):
        kept = query[:of_query] if is_update(text) else query[-of_query:]
        query = [tokenizer.cls_token_id, *kept, tokenizer.sep_token_id]
        rows.append([*query, *statement[:of_statement], tokenizer.sep_token_id])
        starts.append(len(query))
    length = max(map(len, rows))
    ids, types, mask = (torch.zeros(len(rows), length, dtype=torch.long) for _ in range(3))
    for i, (row, start) in enumerate(zip(rows, starts, strict=True)):
        ids[i, : len(row)] = torch.tensor(row)
        types[i, start : len(row)] = 1
        mask[i, : len(row)] = 1
    device = retriever.device
    return Pairs(ids.to(device), types.to(device), mask.to(device), starts)


def answer_in(retriever: Retriever, statement: str, first: int, last: int) -> str | None:
    """The words of a statement from its token `first` to its token `last`; None where the tokenizer cannot tell."""
    tokenizer: Any = retriever.tokenizer
    if not tokenizer.is_fast:
        return None
    offsets = tokenizer(statement, add_special_tokens=False, return_offsets_mapping=True, verbose=False)
    places = offsets["offset_mapping"]
    return statement[places[first][0] : places[min(last, len(places) - 1)][1]] or None


def _best_spans(scores: Tensor, pairs: Pairs) -> Tensor:
    """First and last token `[n, 2]` of the best span of each statement, counted from its first token."""
    columns = torch.arange(scores.shape[1], device=scores.device)
    starts = torch.tensor(pairs.statement_starts, device=scores.device)
    ends = pairs.attention_mask.sum(1) - 1
    inside = (columns >= starts.unsqueeze(1)) & (columns < ends.unsqueeze(1))
    first, last = scores.float().masked_fill(~inside.unsqueeze(-1), -torch.inf).unbind(-1)
    length = columns - columns.unsqueeze(1)
    joint = first.unsqueeze(2) + last.unsqueeze(1)
    joint = joint.masked_fill((length < 0) | (length >= MAX_ANSWER_TOKENS), -torch.inf)
    best = joint.flatten(1).argmax(1)
    return torch.stack([best // len(columns), best % len(columns)], dim=1) - starts.unsqueeze(1)
