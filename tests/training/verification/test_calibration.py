from __future__ import annotations

from collections import Counter

import pytest
import torch

from recipe_hf.training.verification.calibration import (
    DevelopmentPair,
    brier_score,
    development_pairs,
    fit_calibration,
    margins,
    summarise,
    weights_of,
)
from recipe_hf.training.verification.mining import Mined
from recipe_hf.training.verification.rows import Chat, VerificationData
from recipe_hf.training.verification.written import Statement
from tests.tiny_recipe import FACTS, PROMPTS, UNRELATED, tiny_recipe


def test_calibration_improves_what_is_told_of_facts_not_fitted_to():
    torch.manual_seed(0)
    logits, above = 4 * torch.randn(4000), torch.randn(4000)
    answers = (torch.rand(4000) < (0.3 * logits + 0.8 * above - 0.5).sigmoid()).float()
    even = torch.full((2000,), 1 / 2000)
    fitted = fit_calibration(logits[:2000], above[:2000], answers[:2000], even)
    assert fitted.tolist() == pytest.approx([-0.5, 0.3, 0.8], abs=0.15)
    calibrated = fitted[0] + fitted[1] * logits + fitted[2] * above
    before, after = (brier_score(found[2000:], answers[2000:], even) for found in (logits, calibrated))
    assert after < 0.8 * before
    sure = calibrated[2000:].sigmoid() > 0.9
    assert answers[2000:][sure].mean().item() == pytest.approx(
        calibrated[2000:].sigmoid()[sure].mean().item(), abs=0.05
    )


def test_calibration_stays_finite_where_all_are_told_apart():
    answers = torch.tensor([1.0, 0.0])
    fitted = fit_calibration(torch.tensor([3.0, -3.0]), torch.zeros(2), answers, torch.full((2,), 0.5))
    assert fitted.isfinite().all() and fitted.abs().max() < 10


def test_weights_follow_shares_whatever_the_number_of_pairs():
    pairs = [DevelopmentPair(source, "q", "s", "ask") for source in "aaab"]
    weights = weights_of(pairs, {"a": 3.0, "b": 1.0, "absent": 4.0})
    assert weights.tolist() == pytest.approx([0.25] * 4)
    pairs = [DevelopmentPair("a", "q", "s", kind) for kind in ("ask", "ask", "name", "mined", "mined", "mined")]
    assert weights_of(pairs, {"a": 2.0}).tolist() == pytest.approx([1 / 6] * 6)


def test_development_pairs_are_of_development_rows_alone():
    data = VerificationData(
        [
            Statement("a", "S0", ("ask 0",), (("near 0", "name"),), "development"),
            Statement("a", "S1", ("ask 1",), (("near 1", "name"),), "training"),
        ],
        [Chat("c", "hi", "development"), Chat("c", "ho", "training")],
    )
    mined = Mined([["m0", "m1", "m2", "m3"], ["m4"]], [[0], [1]])
    pairs = development_pairs(data, mined, 100, 0)
    assert Counter(pair.kind for pair in pairs) == {"ask": 1, "name": 1, "mined": 3, "chat": 1}
    assert {pair.statement for pair in pairs} == {"S0"}
    assert len(development_pairs(data, mined, 2, 0)) == 3 and development_pairs(
        data, mined, 2, 0
    ) == development_pairs(data, mined, 2, 0)


def test_margins_are_those_by_which_facts_fire():
    model = tiny_recipe()
    model.add_knowledge(FACTS)
    statements = [f"{prompt} {answer}" for prompt, answer in FACTS]
    asked = [*zip(PROMPTS, statements, strict=True), *((text, statements[0]) for text in UNRELATED)]
    found = margins(model.retriever, model.config, [DevelopmentPair("a", *texts, "ask") for texts in asked])
    hits = model.retrieve(PROMPTS)
    assert found[:4].tolist() == pytest.approx([hit.score - hit.threshold for hit in hits], rel=1e-4)
    assert (found[:4] > 0).all() and (found[4:] < 0).all()


def test_summary_tells_kinds_apart():
    pairs = [DevelopmentPair("a", "q", "s", kind) for kind in ("ask", "ask", "name", "name", "mined")]
    pairs.append(DevelopmentPair("c", "q", "s", "chat"))
    summary = summarise(pairs, torch.tensor([2.0, -1.0, 1.0, -2.0, -3.0, -1.0]))
    assert summary == {
        "a": {"area_under_curve": 83.3, "found": 50.0, "affirmed": {"mined": 0.0, "name": 50.0}},
        "c": {"affirmed": {"chat": 0.0}},
    }
