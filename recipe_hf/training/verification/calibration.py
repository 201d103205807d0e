"""How well a verifier tells what is answered, on development rows, and the calibration of what it says."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from ...modeling.configuration import RecipeConfig
from ...modeling.retriever import Retriever
from .mining import Mined
from .rows import VerificationData

_MINED_PER_STATEMENT = 3
#: The share of asks in the calibration: about one in three facts that are read for a question is the one asked for.
ASKS = 1 / 3
#: Keeps the calibration of few rows, which a verifier may tell apart wholly, near none at all.
_RIDGE = 1e-3


@dataclass(frozen=True)
class DevelopmentPair:
    """A query and a statement of a source's development rows; `kind` is `ask` if the one answers the other."""

    source: str
    query: str
    statement: str
    kind: str


def development_pairs(data: VerificationData, mined: Mined, most: int, seed: int) -> list[DevelopmentPair]:
    """The pairs of an evaluation, at most `most` of each source, drawn by `seed`."""
    by_source: dict[str, list[DevelopmentPair]] = {}
    for statement, misses in zip(data.statements, mined.misses, strict=True):
        if statement.part == "development":
            texts = [
                *((ask, "ask") for ask in statement.asks),
                *statement.misses,
                *((ask, "mined") for ask in misses[:_MINED_PER_STATEMENT]),
            ]
            pairs = [DevelopmentPair(statement.source, text, statement.text, kind) for text, kind in texts]
            by_source.setdefault(statement.source, []).extend(pairs)
    for text, near in zip(data.chat, mined.near_chat, strict=True):
        if text.part == "development":
            pairs = [DevelopmentPair(text.source, text.text, data.statements[number].text, "chat") for number in near]
            by_source.setdefault(text.source, []).extend(pairs)
    rng = random.Random(seed)
    return [pair for pairs in by_source.values() for pair in rng.sample(pairs, min(len(pairs), most))]


@torch.no_grad()
def margins(retriever: Retriever, config: RecipeConfig, pairs: Sequence[DevelopmentPair]) -> Tensor:
    """How far the retriever's score of each pair is above the query's threshold (eq. 9), `[len(pairs)]`."""
    queries = list(dict.fromkeys(pair.query for pair in pairs))
    statements = list(dict.fromkeys(pair.statement for pair in pairs))
    encoded, keys = retriever.encode_queries(queries), retriever.encode_statements(statements)
    query_of, key_of = (dict(zip(*of, strict=True)) for of in ((queries, encoded), (statements, keys)))
    sentinel = retriever.encode_sentinel()
    found = [query_of[pair.query] @ (key_of[pair.statement] - sentinel) for pair in pairs]
    return torch.stack(found).float().cpu() * config.scale


def summarise(pairs: Sequence[DevelopmentPair], logits: Tensor) -> dict[str, dict[str, Any]]:
    """For each source, in percent: the area under the curve, asks that are found, misses affirmed by their kind."""
    summary: dict[str, dict[str, Any]] = {}
    for source in dict.fromkeys(pair.source for pair in pairs):
        of_kind: dict[str, list[float]] = {}
        for pair, logit in zip(pairs, logits.tolist(), strict=True):
            if pair.source == source:
                of_kind.setdefault(pair.kind, []).append(logit)
        asks = of_kind.pop("ask", [])
        misses = [logit for found in of_kind.values() for logit in found]
        summary[source] = {
            **({"area_under_curve": round(100 * area_under_curve(asks, misses), 1)} if asks and misses else {}),
            **({"found": _affirmed(asks)} if asks else {}),
            "affirmed": {kind: _affirmed(found) for kind, found in sorted(of_kind.items())},
        }
    return summary


def area_under_curve(asks: Sequence[float], misses: Sequence[float]) -> float:
    """How often an ask is above a miss; that they are equal counts half.

    >>> area_under_curve([3.0, 1.0], [1.0, 0.0])
    0.875
    """
    sorted_misses, values = torch.tensor(misses).sort().values, torch.tensor(asks)
    below = torch.searchsorted(sorted_misses, values) + torch.searchsorted(sorted_misses, values, right=True)
    return float(below.double().mean() / (2 * len(misses)))


def _affirmed(logits: Sequence[float]) -> float:
    return round(100 * sum(logit > 0 for logit in logits) / len(logits), 1)


def weights_of(pairs: Sequence[DevelopmentPair], shares: Mapping[str, float]) -> Tensor:
    """Weights `[len(pairs)]`, 1 in all, by which sources weigh as their shares say, and asks a third of each."""
    counts = Counter((pair.source, pair.kind == "ask") for pair in pairs)
    parts = {True: ASKS, False: 1 - ASKS}
    weights = [
        shares[pair.source] * parts[is_ask] / counts[pair.source, is_ask]
        for pair, is_ask in ((pair, pair.kind == "ask") for pair in pairs)
    ]
    return torch.tensor(weights, dtype=torch.float64) / sum(weights)


def fit_calibration(logits: Tensor, margins: Tensor, answers: Tensor, weights: Tensor) -> Tensor:
    """`(a, b, c)` of the logit `a + b * logits + c * margins` that tells `answers` best: a logistic regression.

    Args:
        logits: The verifier's, `[n]`.
        margins: The retriever's, `[n]`.
        answers: 1 where the statement answers the query, otherwise 0, `[n]`.
        weights: What each pair counts, `[n]`, 1 in all.
    """
    features = torch.stack([torch.ones_like(logits), logits, margins], dim=1).double()
    answers, weights, start = answers.double(), weights.double(), torch.tensor([0.0, 1.0, 0.0], dtype=torch.float64)
    parameters = start.clone().requires_grad_()
    optimizer = torch.optim.LBFGS([parameters], max_iter=200, line_search_fn="strong_wolfe")

    def closure() -> Tensor:
        optimizer.zero_grad()
        found = F.binary_cross_entropy_with_logits(features @ parameters, answers, weight=weights, reduction="sum")
        loss = found + _RIDGE * (parameters - start).square().sum()
        loss.backward()
        return loss

    optimizer.step(closure)  # type: ignore[no-untyped-call]
    return parameters.detach().float()


def supersede_threshold(logits: Tensor, answers: Tensor, share: float) -> float | None:
    """The least logit above which at most a `share` of updates are that leave a fact where it is; None of no updates.

    Args:
        logits: The verifier's, of development pairs of newer and older statements, `[n]`.
        answers: 1 where the newer takes the older one's place, otherwise 0, `[n]`.
        share: The share.

    >>> supersede_threshold(torch.tensor([1.0, 2.0, 3.0, 4.0]), torch.tensor([0, 0, 0, 1]), 0.4)
    2.0
    """
    stays = logits[answers == 0].sort(descending=True).values
    return float(stays[min(int(share * len(stays)), len(stays) - 1)]) if len(stays) else None


def brier_score(logits: Tensor, answers: Tensor, weights: Tensor) -> float:
    """The mean squared distance of probabilities from what is so."""
    return float(((logits.double().sigmoid() - answers.double()).square() * weights).sum())
