from __future__ import annotations

from pathlib import Path

import pytest
import torch

from recipe_hf.modeling.verifier import MAX_STATEMENT_TOKENS, Verifier, encode_pairs
from recipe_hf.training.verification.objective import answer_spans, losses
from recipe_hf.training.verification.sampling import Pair
from tests.tiny_recipe import tiny_recipe
from tests.tiny_verifier import tiny_config

PAIRS = [
    Pair("Where?", "Oslo is where Ann lives: OSLO.", True, "Oslo", True),
    Pair("Who?", "Ann lives in Oslo.", False, None, True),
    Pair("What?", "Snow is white", True, None, False),
    Pair("What is so very white?", "Snow is white", False, "white", False),
]


@pytest.fixture(scope="module")
def retriever():
    return tiny_recipe().retriever


def test_spans_are_those_of_the_last_answer_in_the_statement(retriever):
    encoded = encode_pairs(retriever, [(pair.query, pair.statement) for pair in PAIRS])
    spans = answer_spans(retriever, PAIRS, encoded.statement_starts).tolist()
    assert spans[1:] == [[-100, -100]] * 3  # Of a miss no answer counts.
    first, last = spans[0]
    assert retriever.tokenizer.decode(encoded.input_ids[0, first : last + 1]) == "OSLO"


def test_answer_beyond_what_is_read_is_not_sought(retriever):
    long = Pair("Where?", "x" * MAX_STATEMENT_TOKENS + " Oslo", True, "Oslo", False)
    assert answer_spans(retriever, [long], [9]).tolist() == [[-100, -100]]


def test_losses_are_what_they_are_called(retriever, tmp_path: Path):
    torch.manual_seed(0)
    model = tiny_recipe()
    verifier = Verifier(model.config).eval()
    config = tiny_config(tmp_path, tmp_path, label_smoothing=0.1, pair_weight=0.5, answer_weight=2.0)
    found = losses(verifier, retriever, PAIRS, config)
    encoded = encode_pairs(retriever, [(pair.query, pair.statement) for pair in PAIRS])
    logits, places = verifier(retriever.encoder.get_input_embeddings(), encoded)
    right = logits.sigmoid() * torch.tensor([1.0, -1, 1, -1]) + torch.tensor([0.0, 1, 0, 1])
    assert found["answers"].item() == pytest.approx(
        (-0.95 * right.log() - 0.05 * (1 - right).log()).mean().item(), rel=1e-4
    )
    assert found["pairs"].item() == pytest.approx(-(logits[0] - logits[1]).sigmoid().log().item(), rel=1e-4)
    start = encoded.statement_starts[0]
    ends = start + len("Oslo is where Ann lives: "), start + len("Oslo is where Ann lives: OSL")
    length = int(encoded.attention_mask[0].sum())
    chances = places[0, start:length].log_softmax(0)
    place = -chances[ends[0] - start, 0] - chances[ends[1] - start, 1]
    assert found["place"].item() == pytest.approx(place.item(), rel=1e-4)
    total = found["answers"] + 0.5 * found["pairs"] + 2 * found["place"]
    assert found["loss"].item() == pytest.approx(total.item(), rel=1e-5)


def test_without_a_known_answer_its_place_costs_nothing(retriever, tmp_path: Path):
    found = losses(Verifier(tiny_recipe().config), retriever, PAIRS[2:], tiny_config(tmp_path, tmp_path))
    assert found["place"].item() == 0 and found["pairs"].item() == 0
    found["loss"].backward()
