"""Every loss against sums written out with `math`, row by row."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from recipe_hf.teacher_forcing import IGNORE_INDEX
from recipe_hf.training.losses import contrastive_losses, distillation_loss, editing_loss, locality_loss, read_out_loss

X = IGNORE_INDEX
SCALE = 0.5


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def negative_log_softmax(logits: list[float], right: int) -> float:
    return -logits[right] + math.log(sum(math.exp(logit) for logit in logits))


# ---------------------------------------------------------------------- editing and locality


def test_editing_loss_is_averaged_within_rows_then_over_rows():
    logits, labels = random(2, 3, 5), torch.tensor([[X, 4, 1], [X, X, 2]])
    first = [negative_log_softmax(logits[0, i].tolist(), right) for i, right in ((1, 4), (2, 1))]
    second = negative_log_softmax(logits[1, 2].tolist(), 2)
    assert editing_loss(logits, labels).item() == pytest.approx((sum(first) / 2 + second) / 2, rel=1e-5)
    assert editing_loss(logits, labels).item() != pytest.approx((sum(first) + second) / 3, rel=1e-3)


def test_editing_loss_ignores_columns_without_an_answer():
    logits, labels = random(2, 3, 5), torch.tensor([[X, 4, 1], [X, X, 2]])
    changed = logits.clone()
    changed[labels == X] = 100 * random(3, 5, seed=1)
    assert torch.equal(editing_loss(logits, labels), editing_loss(changed, labels))


def test_editing_loss_with_a_hinge_drops_tokens_predicted_by_a_margin():
    logits = torch.tensor([[[2.0, 0.0, 1.0], [2.0, 0.0, 1.9]]])
    labels = torch.tensor([[0, 0]])
    every = [negative_log_softmax(row, 0) for row in logits[0].tolist()]
    # Likelier than the next best by e^1 and e^0.1: the first is dropped if 2 is enough, but stays in the average.
    assert editing_loss(logits, labels, hinge_scale=2.0).item() == pytest.approx(every[1] / 2, rel=1e-5)
    assert editing_loss(logits, labels, hinge_scale=3.0).item() == pytest.approx(sum(every) / 2, rel=1e-5)
    assert editing_loss(logits, labels, hinge_scale=1.0).item() == 0
    # A wrong token that is likelier is never dropped.
    assert editing_loss(logits, torch.tensor([[1, 1]]), hinge_scale=1.0).item() > 2


def test_locality_loss_is_zero_for_equal_logits_up_to_a_shift():
    logits, labels = random(2, 3, 5), torch.tensor([[X, 4, 1], [X, X, 2]])
    assert locality_loss(logits + 3, logits, labels).item() == pytest.approx(0, abs=1e-6)


def test_locality_loss_is_the_divergence_from_the_base_to_the_edited_model():
    edited, base, labels = random(2, 2, 4), random(2, 2, 4, seed=1), torch.tensor([[3, 1], [X, 2]])

    def divergence(p_logits: Tensor, q_logits: Tensor) -> float:
        p, q = p_logits.softmax(-1).tolist(), q_logits.softmax(-1).tolist()
        return sum(a * math.log(a / b) for a, b in zip(p, q, strict=True))

    first = (divergence(base[0, 0], edited[0, 0]) + divergence(base[0, 1], edited[0, 1])) / 2
    second = divergence(base[1, 1], edited[1, 1])
    assert locality_loss(edited, base, labels).item() == pytest.approx((first + second) / 2, rel=1e-4)
    assert locality_loss(edited, base, labels).item() != pytest.approx(locality_loss(base, edited, labels).item())


def test_editing_losses_of_half_precision_logits_are_computed_in_float32():
    logits, labels = random(2, 3, 5).bfloat16(), torch.tensor([[X, 4, 1], [X, X, 2]])
    assert editing_loss(logits, labels).dtype == torch.float32
    assert torch.equal(editing_loss(logits, labels), editing_loss(logits.float(), labels))
    assert torch.equal(locality_loss(logits, logits, labels), torch.tensor(0.0))


# ---------------------------------------------------------------------- InfoNCE

# Two facts, numbers 7 and 8; the memory holds an old key of fact 7, and one of fact 9.
QUERIES, REPHRASES, NEIGHBORS, KEYS = (random(2, 4, seed=seed) for seed in range(4))
SENTINEL, MEMORY = random(4, seed=4), random(2, 4, seed=5)
SAME_FACT = torch.tensor([[True, False, True, False], [False, True, False, False]])


def losses(**changes: Any) -> dict[str, float]:
    arguments = {
        "queries": QUERIES,
        "rephrases": REPHRASES,
        "neighbors": NEIGHBORS,
        "keys": KEYS,
        "sentinel": SENTINEL,
        "extra_keys": MEMORY,
        "same_fact": SAME_FACT,
        "asked_fact": torch.zeros_like(SAME_FACT),
        "scale": SCALE,
    }
    return {name: loss.item() for name, loss in contrastive_losses(**arguments | changes).items()}


def info_nce(anchor: Tensor, right: Tensor, wrong: list[Tensor], factor: float = SCALE) -> float:
    products = [factor * sum(a * b for a, b in zip(anchor.tolist(), v.tolist(), strict=True)) for v in [right, *wrong]]
    return negative_log_softmax(products, 0)


def expected(factor: float = SCALE) -> dict[str, float]:
    def to_own_fact(anchors: Tensor) -> float:
        """The twin of fact 7 in the memory is no negative of it, but one of fact 8."""
        first = info_nce(anchors[0], KEYS[0], [SENTINEL, KEYS[1], MEMORY[1]], factor)
        second = info_nce(anchors[1], KEYS[1], [SENTINEL, KEYS[0], MEMORY[0], MEMORY[1]], factor)
        return (first + second) / 2

    def to_sentinel_where_absent(anchors: Tensor) -> float:
        first = info_nce(anchors[0], SENTINEL, [KEYS[1], MEMORY[1]], factor)
        second = info_nce(anchors[1], SENTINEL, [KEYS[0], MEMORY[0], MEMORY[1]], factor)
        return (first + second) / 2

    everything = [*KEYS, *MEMORY]
    return {
        "neighbor_reliability": to_own_fact(QUERIES),
        "neighbor_generality": to_own_fact(REPHRASES),
        "sentinel_locality": sum(info_nce(n, SENTINEL, everything, factor) for n in NEIGHBORS) / 2,
        "sentinel_edit": (to_sentinel_where_absent(QUERIES) + to_sentinel_where_absent(REPHRASES)) / 2,
    }


def test_contrastive_losses_with_memory_and_twins():
    assert losses() == pytest.approx(expected(), rel=1e-5)


def test_contrastive_losses_scale_and_temperature():
    assert losses(scale=2.0) == pytest.approx(expected(2.0), rel=1e-5)
    assert losses(temperature=0.25) == pytest.approx(expected(SCALE / 0.25), rel=1e-5)


def test_contrastive_losses_without_memory():
    found = losses(extra_keys=MEMORY[:0], same_fact=SAME_FACT[:, :2], asked_fact=torch.zeros(2, 2, dtype=torch.bool))
    first = info_nce(QUERIES[0], KEYS[0], [SENTINEL, KEYS[1]])
    second = info_nce(QUERIES[1], KEYS[1], [SENTINEL, KEYS[0]])
    assert found["neighbor_reliability"] == pytest.approx((first + second) / 2, rel=1e-5)
    absent = [info_nce(a[i], SENTINEL, [KEYS[1 - i]]) for a in (QUERIES, REPHRASES) for i in (0, 1)]
    assert found["sentinel_edit"] == pytest.approx(sum(absent) / 4, rel=1e-5)


def test_a_fact_that_an_unrelated_prompt_asks_for_is_no_wrong_choice_of_it():
    found = losses(asked_fact=torch.tensor([[True, False, True, False], [False, False, False, False]]))
    first = info_nce(NEIGHBORS[0], SENTINEL, [KEYS[1], MEMORY[1]])
    second = info_nce(NEIGHBORS[1], SENTINEL, [*KEYS, *MEMORY])
    assert found == pytest.approx(expected() | {"sentinel_locality": (first + second) / 2}, rel=1e-5)


def test_contrastive_losses_with_a_hinge_drop_rows_decided_by_a_margin():
    queries = torch.stack([10 * KEYS[0], -KEYS[1]])
    wrong = [SENTINEL, KEYS[0], MEMORY[0], MEMORY[1]]
    assert losses(queries=queries, hinge_scale=1.5)["neighbor_reliability"] == pytest.approx(
        info_nce(queries[1], KEYS[1], wrong) / 2, rel=1e-5
    )


def test_sentinel_edit_of_a_single_fact_has_no_other_candidate():
    found = losses(
        queries=QUERIES[:1],
        rephrases=REPHRASES[:1],
        neighbors=NEIGHBORS[:1],
        keys=KEYS[:1],
        extra_keys=MEMORY[:0],
        same_fact=torch.tensor([[True]]),
        asked_fact=torch.tensor([[False]]),
    )
    assert found["sentinel_edit"] == 0


def test_contrastive_losses_reach_queries_keys_and_sentinel():
    parts = [t.clone().requires_grad_() for t in (QUERIES, REPHRASES, NEIGHBORS, KEYS, SENTINEL)]
    sum(contrastive_losses(*parts, MEMORY, SAME_FACT, ~SAME_FACT, SCALE).values()).backward()
    assert all(part.grad.isfinite().all() and part.grad.abs().max() > 0 for part in parts)


# ---------------------------------------------------------------------- read-out


def test_read_out_loss_of_one_token_written_out():
    offset = torch.tensor([[1.0, 0.0]])
    prompts, vectors = torch.tensor([[[2.0, 1.0]]]), torch.tensor([[5.0, 0.0], [1.0, 2.0]])
    # Without the offset, the prompt is (1, 1) and the candidates are (4, 0) and (0, 2).
    squared = (1 + 1) / (16 + 4) * 2
    cosine = 1 / math.sqrt(2)
    choice = negative_log_softmax([cosine / 0.05, cosine / 0.05], 1)
    found = read_out_loss(prompts, [vectors], torch.tensor([[1]]), offset)
    assert found.item() == pytest.approx(squared + choice, rel=1e-5)


def test_read_out_loss_averages_the_choice_over_tokens_and_is_least_at_the_target():
    offset, targets = random(2, 4), random(3, 2, 4, seed=1)
    candidates, labels = [targets[:, 0], targets[:, 1]], torch.arange(3).unsqueeze(1).expand(3, 2)
    least = read_out_loss(targets, candidates, labels, offset)
    choices = 0.0
    for token in range(2):
        rows = [
            [torch.cosine_similarity(a, b, dim=0).item() / 0.05 for b in side]
            for side in [targets[:, token] - offset[token]]
            for a in side
        ]
        choices += sum(negative_log_softmax(row, i) for i, row in enumerate(rows)) / 3
    assert least.item() == pytest.approx(choices / 2, rel=1e-3, abs=1e-6)
    assert read_out_loss(targets + 0.3, candidates, labels, offset) > least


def test_distillation_loss_is_relative_to_the_variance_of_the_targets():
    targets = torch.tensor([[[1.0, 5.0]], [[3.0, 5.0]]])
    assert distillation_loss(targets, targets) == 0
    # Deviations from the mean are 1, 0, 1 and 0; the errors 0.5 everywhere.
    assert distillation_loss(targets + 0.5, targets).item() == pytest.approx(0.25 / 0.5)
    assert distillation_loss(10 * targets + 5, 10 * targets).item() == pytest.approx(0.25 / 0.5)
