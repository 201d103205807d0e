"""The verifier's losses: whether a statement answers, above its miss, and where in it the answer stands."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from ...modeling.retriever import Retriever
from ...modeling.verifier import MAX_STATEMENT_TOKENS, Verifier, encode_pairs
from .config import VerifierConfig
from .sampling import Pair

_NOWHERE = -100


def losses(
    verifier: Verifier, retriever: Retriever, pairs: Sequence[Pair], config: VerifierConfig
) -> dict[str, Tensor]:
    """Losses by name; `loss` is what is minimised.

    Args:
        verifier: The verifier.
        retriever: The retriever, whose tokenizer and word embeddings it shares.
        pairs: Asks and misses in turn, as [`PairSampler`] draws them.
        config: The run's.
    """
    encoded = encode_pairs(retriever, [(pair.query, pair.statement) for pair in pairs])
    logits, places = verifier(retriever.encoder.get_input_embeddings(), encoded)
    logits, places = logits.float(), places.float()
    answers = torch.tensor([float(pair.answers) for pair in pairs], device=logits.device)
    smoothed = answers * (1 - config.label_smoothing) + config.label_smoothing / 2
    parts = {"answers": F.binary_cross_entropy_with_logits(logits, smoothed)}
    mates = torch.tensor([float(pair.has_mate) for pair in pairs[::2]], device=logits.device)
    above = F.softplus(logits[1::2] - logits[::2])
    parts["pairs"] = (above * mates).sum() / mates.sum().clamp_min(1)
    spans = answer_spans(retriever, pairs, encoded.statement_starts).to(logits.device)
    known = spans[:, 0] != _NOWHERE
    if known.any():
        outside = encoded.token_type_ids[known].unsqueeze(-1) == 0
        scores = places[known].masked_fill(outside, torch.finfo(places.dtype).min)
        # Scores are [n, seq, 2], and classes come second.
        parts["place"] = F.cross_entropy(scores, spans[known], reduction="sum") / known.sum()
    else:
        parts["place"] = places.sum() * 0
    total = parts["answers"] + config.pair_weight * parts["pairs"] + config.answer_weight * parts["place"]
    return {"loss": total, **parts}


def answer_spans(retriever: Retriever, pairs: Sequence[Pair], statement_starts: Sequence[int]) -> Tensor:
    """Columns of the first and the last token of each answer, `[len(pairs), 2]`; -100 where it is not known or read.

    Args:
        retriever: The retriever.
        pairs: The pairs.
        statement_starts: Columns in which their statements start.
    """
    tokenizer: Any = retriever.tokenizer
    spans = torch.full((len(pairs), 2), _NOWHERE)
    for row, (pair, column) in enumerate(zip(pairs, statement_starts, strict=True)):
        # The last place: a prompt may say the answer's words too.
        start = pair.statement.lower().rfind(pair.answer.lower()) if pair.answers and pair.answer else -1
        if start < 0:
            continue
        end = start + len(str(pair.answer))
        encoded = tokenizer(pair.statement, add_special_tokens=False, return_offsets_mapping=True, verbose=False)
        offsets = encoded["offset_mapping"][:MAX_STATEMENT_TOKENS]
        inside = [token for token, (begin, stop) in enumerate(offsets) if begin < end and stop > start]
        if inside:
            spans[row] = torch.tensor([column + inside[0], column + inside[-1]])
    return spans
