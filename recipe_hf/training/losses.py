"""The losses of RECIPE (paper eq. 10-17), and the read-out loss of the warm start."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from ..teacher_forcing import IGNORE_INDEX


def editing_loss(logits: Tensor, labels: Tensor, hinge_scale: float | None = None) -> Tensor:
    """Negative log-likelihood of the answers (eq. 10 and 11), averaged within each row, then over rows.

    Shapes: logits `[batch, n, vocab]`, labels `[batch, n]` with `IGNORE_INDEX` where there is no answer token. With
    `hinge_scale`, tokens that are already this many times likelier than the next best count as 0.
    """
    logits = logits.float()
    losses = F.cross_entropy(logits.flatten(0, 1), labels.flatten(), reduction="none", ignore_index=IGNORE_INDEX)
    losses = losses.view_as(labels)
    if hinge_scale is not None:
        losses = losses * _within_margin(logits, labels.clamp_min(0), hinge_scale)
    return _mean_over_targets(losses, labels)


def _within_margin(logits: Tensor, labels: Tensor, hinge_scale: float) -> Tensor:
    """Whether the right choice is not yet `hinge_scale` times likelier than the best wrong one."""
    index = labels.unsqueeze(-1)
    right = logits.detach().gather(-1, index).squeeze(-1)
    best_wrong = logits.detach().scatter(-1, index, -torch.inf).amax(-1)
    return right < best_wrong + math.log(hinge_scale)


def locality_loss(logits: Tensor, base_logits: Tensor, labels: Tensor) -> Tensor:
    """KL divergence of the edited from the unedited model on unrelated rows (eq. 12), shapes as in `editing_loss`."""
    log_p, log_q = base_logits.float().log_softmax(-1), logits.float().log_softmax(-1)
    return _mean_over_targets((log_p.exp() * (log_p - log_q)).sum(-1), labels)


def _mean_over_targets(values: Tensor, labels: Tensor) -> Tensor:
    kept = labels != IGNORE_INDEX
    return ((values * kept).sum(1) / kept.sum(1)).mean()


def contrastive_losses(
    queries: Tensor,
    rephrases: Tensor,
    neighbors: Tensor,
    keys: Tensor,
    sentinel: Tensor,
    extra_keys: Tensor,
    same_fact: Tensor,
    asked_fact: Tensor,
    scale: float,
    temperature: float = 1.0,
    hinge_scale: float | None = None,
) -> dict[str, Tensor]:
    """Neighbour- and sentinel-oriented InfoNCE losses (eq. 14-17).

    Args:
        queries, rephrases, neighbors: Representations of the prompts, their rephrasings and the unrelated prompts,
            `[batch, knowledge_dim]`.
        keys: Keys of the facts, those of the batch first, `[n, knowledge_dim]`.
        sentinel: Key of the sentinel, `[knowledge_dim]`.
        extra_keys: Further keys that serve as negatives, `[m, knowledge_dim]`; `m` may be 0.
        same_fact: Whether key `j` is the fact of row `i` or one it cannot be told from, `[batch, n + m]`.
        asked_fact: Whether the unrelated prompt of row `i` in truth asks for the fact of key `j`, `[batch, n + m]`:
            such keys are no wrong choice.
        scale: Factor on dot products.
        temperature: Temperature of the softmax, `tau`.
        hinge_scale: Leave out rows whose right candidate is already this many times likelier than the best wrong
            one, as in the authors' code; `None` keeps all rows.

    Returns:
        The four terms: `neighbor_reliability` and `neighbor_generality` draw a query to its fact among all facts and
        the sentinel (eq. 14); `sentinel_locality` draws an unrelated query to the sentinel, `sentinel_edit` a query
        whose own fact is absent (eq. 15).
    """
    batch = queries.shape[0]
    candidates = torch.cat([sentinel.unsqueeze(0), keys, extra_keys])
    own = torch.arange(1, batch + 1, device=keys.device)
    to_sentinel = torch.zeros_like(own)
    own_fact = F.pad(same_fact, (1, 0))
    twins = own_fact.scatter(1, own.unsqueeze(1), False)

    def info_nce(anchors: Tensor, target: Tensor, absent: Tensor | None = None) -> Tensor:
        with torch.autocast(anchors.device.type, enabled=False):
            logits = (anchors.float() @ candidates.float().T) * (scale / temperature)
        if absent is not None:
            logits = logits.masked_fill(absent, -torch.inf)
        losses = F.cross_entropy(logits, target, reduction="none")
        return (losses if hinge_scale is None else losses * _within_margin(logits, target, hinge_scale)).mean()

    return {
        "neighbor_reliability": info_nce(queries, own, twins),
        "neighbor_generality": info_nce(rephrases, own, twins),
        "sentinel_locality": info_nce(neighbors, to_sentinel, F.pad(asked_fact, (1, 0))),
        "sentinel_edit": (info_nce(queries, to_sentinel, own_fact) + info_nce(rephrases, to_sentinel, own_fact)) / 2,
    }


def read_out_loss(prompts: Tensor, candidates: list[Tensor], labels: Tensor, center: Tensor) -> Tensor:
    """How far continuous prompts are from the ones made of the answer's own tokens (see [`AnswerPrompt`]).

    The sum of a relative squared error and, on average over prompt tokens, a cross-entropy over the cosine with the
    tokens that other answers would give.

    Args:
        prompts: Continuous prompts of the statements, `[batch, num_tokens, d_llm]`.
        candidates: For each prompt token, the vectors to choose from, `[num_candidates, d_llm]`.
        labels: The right candidate, `[batch, num_tokens]`.
        center: The mean of all answers' prompts, `[num_tokens, d_llm]`; it is taken off before comparing.
    """
    error, variance, choice = torch.zeros(3, device=prompts.device).unbind()
    for token, (guess, vectors) in enumerate(zip((prompts - center).unbind(1), candidates, strict=True)):
        vectors, label = vectors - center[token], labels[:, token]
        error = error + (guess - vectors[label]).square().mean()
        variance = variance + vectors.square().mean()
        cosine = F.normalize(guess, dim=-1) @ F.normalize(vectors, dim=-1).T
        choice = choice + F.cross_entropy(cosine / 0.05, label)
    return error / variance + choice / len(candidates)


def distillation_loss(prompts: Tensor, targets: Tensor) -> Tensor:
    """Squared error of continuous prompts, relative to the variance of `targets` over the batch.

    Both `[batch, num_tokens, d_llm]`.
    """
    variance = (targets - targets.mean(0)).square().mean()
    return (prompts.float() - targets).square().mean() / variance
