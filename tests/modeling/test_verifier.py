"""The verifier behind the retriever, on tiny models of the real classes with random or fixed weights."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from recipe_hf import RecipeConfig, RecipeForCausalLM
from recipe_hf.modeling.verifier import VERIFIER_FILE, answer_in, as_update, encode_pairs
from tests.tiny_recipe import FACTS, GREEDY, MIXED, PROMPTS, UNRELATED, batch_of, edited_recipe, verified_recipe

PAIRS = [
    ("Who runs Acme?", "The CEO of Acme is Ann Lee"),
    ("Dogs", "The capital of Ruritania is Strelsau."),
    ("a", "b"),
]


def test_pairs_are_read_alike_alone_and_together() -> None:
    model = verified_recipe()
    together = model.verifier.read(model.retriever, PAIRS)
    for row, pair in zip(together, PAIRS, strict=True):
        torch.testing.assert_close(model.verifier.read(model.retriever, [pair])[0], row, rtol=1e-4, atol=1e-4)


def test_pairs_hold_the_end_of_a_long_query_and_the_start_of_a_long_statement() -> None:
    model = verified_recipe()
    encoded = encode_pairs(model.retriever, [("q" * 500 + "!", "s" * 500), ("q", "s")])
    text = model.retriever.tokenizer.decode(encoded.input_ids[0])
    assert encoded.input_ids.shape[1] <= model.retriever.max_length and "q![SEP]s" in text
    assert encoded.token_type_ids.sum(1).tolist()[1] == 2 and encoded.statement_starts[1] == 3


def test_the_answer_is_words_of_the_statement() -> None:
    model = verified_recipe(offset=9.0)
    logit, first, last = model.verifier.read(model.retriever, PAIRS[:1])[0].tolist()
    assert 0 <= first <= last < len(PAIRS[0][1])
    assert answer_in(model.retriever, PAIRS[0][1], int(first), int(last)) in PAIRS[0][1]
    assert answer_in(model.retriever, "The CEO of Acme is Ann Lee", 19, 25) == "Ann Lee"


def test_a_verifier_that_repeats_the_retriever_changes_nothing() -> None:
    model, plain = verified_recipe(of_margin=3.0), edited_recipe()
    queries = [*PROMPTS, *UNRELATED, ""]
    found, expected = model.retrieve(queries), plain.retrieve(queries)
    assert [(hit.id, hit.fired, hit.score) for hit in found] == [(hit.id, hit.fired, hit.score) for hit in expected]


def test_what_it_affirms_fires_and_what_it_denies_does_not() -> None:
    prompts = [*PROMPTS, *UNRELATED]
    assert all(hit.fired and hit.probability > 0.99 for hit in verified_recipe(offset=9.0).retrieve(prompts))
    assert not any(hit.fired or hit.probability > 0.01 for hit in verified_recipe(offset=-9.0).retrieve(prompts))


def test_facts_far_below_the_threshold_are_not_read() -> None:
    model = verified_recipe(offset=9.0)
    model.config.verifier_margin = 0.0
    assert [hit.fired for hit in model.retrieve([*PROMPTS, *UNRELATED])] == [True] * 4 + [False] * 5


def test_of_facts_that_answer_the_same_the_newest_is_used() -> None:
    model = verified_recipe(offset=9.0)
    model.config.supersede_threshold = -1e3
    (newest,) = model.add_knowledge(["Ann Lee's successor runs Acme: Bo Roe."])
    assert model.retrieve(PROMPTS[0])[0].id == newest
    model.config.supersede_threshold = 1e3
    assert model.retrieve(PROMPTS[0])[0].id == model.explain(PROMPTS[0]).candidates[0].fact.id != newest


def test_a_batch_is_one_call_and_repeats_are_remembered() -> None:
    model = verified_recipe(of_logit=1.0)
    calls: list[int] = []
    model.verifier.encoder.register_forward_hook(lambda *_: calls.append(1))
    first = model.retrieve([*PROMPTS, *UNRELATED])
    assert len(calls) == 1
    assert model.retrieve([*PROMPTS, *UNRELATED]) == first and len(calls) == 1
    with torch.no_grad():
        model.verifier.head[-1].bias += 5
    assert model.retrieve(PROMPTS)[0].probability > first[0].probability and len(calls) == 2


def test_a_statement_is_prefixed_with_the_answer_found_in_it() -> None:
    model = verified_recipe(offset=9.0)
    statement = "The river through Gotham is the Sprang."
    (id_,) = model.add_knowledge([statement])
    (hit,) = model.retrieve(PROMPTS[3])
    assert hit.id == id_ and hit.answer and hit.answer in statement and hit.answer != statement


def test_explanations_say_what_the_verifier_makes_of_each() -> None:
    explanation = verified_recipe(offset=-9.0).explain(PROMPTS[0])
    assert not any(candidate.fired for candidate in explanation.candidates)
    assert all("the verifier takes it for the answer with 0% only" in c.reason for c in explanation.candidates)
    used = verified_recipe(offset=9.0).explain(PROMPTS[0]).candidates
    assert sum(candidate.fired for candidate in used) == 1
    assert all(candidate.probability > 0.99 for candidate in used)


def test_a_checkpoint_keeps_it_apart_and_can_leave_it_out(tmp_path: Path) -> None:
    model = verified_recipe(of_logit=1.0, of_margin=1.0)
    model.save_pretrained(tmp_path / "with")
    loaded = RecipeForCausalLM.from_pretrained(tmp_path / "with", base_model=model.lm)
    for hit, expected in zip(loaded.retrieve(PROMPTS), model.retrieve(PROMPTS), strict=True):
        assert hit.probability == pytest.approx(expected.probability, abs=5e-3)  # Its weights are kept in 16 bits.
    batch = batch_of(loaded, MIXED)
    assert loaded.generate(**batch, **GREEDY).tolist() == model.generate(**batch, **GREEDY).tolist()

    paper = RecipeForCausalLM.from_pretrained(tmp_path / "with", base_model=model.lm, verifier=False)
    assert paper.verifier is None and paper.retrieve(PROMPTS) == edited_recipe().retrieve(PROMPTS)
    paper.save_pretrained(tmp_path / "with")
    assert not (tmp_path / "with" / VERIFIER_FILE).exists()
    assert RecipeForCausalLM.from_pretrained(tmp_path / "with", base_model=False).verifier is None


def test_a_damaged_or_missing_file_is_named(tmp_path: Path) -> None:
    verified_recipe().save_pretrained(tmp_path)
    (tmp_path / "checksums.json").unlink()
    path = tmp_path / VERIFIER_FILE
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(ValueError, match=r"verifier.safetensors are truncated or altered"):
        RecipeForCausalLM.from_pretrained(tmp_path, base_model=False)
    path.unlink()
    with pytest.raises(FileNotFoundError, match=r"verifier.safetensors is missing .* verifier=False does without"):
        RecipeForCausalLM.from_pretrained(tmp_path, base_model=False)


def test_it_shares_the_word_embeddings_and_needs_no_base() -> None:
    model = verified_recipe()
    names = {name for name, _ in model.verifier.named_parameters()}
    assert not any("word_embeddings" in name or "pooler" in name for name in names)
    assert not any(name.startswith("verifier") for name in model.state_dict())
    assert len(FACTS) == len(model.knowledge)


def test_only_what_is_near_the_best_is_read() -> None:
    model = verified_recipe(offset=9.0)
    scores = sorted((candidate.score for candidate in model.explain(PROMPTS[0]).candidates), reverse=True)
    for gap, num_read in ((0.0, 1), (scores[0] - scores[2] + 0.1, 3), (None, 4)):
        model.config.verifier_gap = gap
        read = [c for c in model.explain(PROMPTS[0]).candidates if c.probability > 0.99 and "below" not in c.reason]
        assert len(read) == num_read
    with pytest.raises(ValueError, match="verifier_gap must be None, or at least 0 and finite, got -1"):
        RecipeConfig(verifier_gap=-1)


def test_none_to_be_read_is_the_form_of_the_paper() -> None:
    model = verified_recipe(offset=-9.0)
    model.config.num_verified_facts = 0
    queries = [*PROMPTS, *UNRELATED]
    assert model.retrieve(queries) == edited_recipe().retrieve(queries)
    explained, expected = model.explain(PROMPTS[0]), edited_recipe().explain(PROMPTS[0])
    assert [c.reason for c in explained.candidates] == [c.reason for c in expected.candidates]


def test_explanations_tell_what_the_verifier_did_not_read() -> None:
    model = verified_recipe(offset=9.0)
    model.config.num_verified_facts = 1
    used, *others = model.explain(PROMPTS[0]).candidates
    assert used.fired and all("for the verifier to read it" in other.reason for other in others)
    model.config.num_verified_facts = 2
    assert "as many are more probable, or newer" in model.explain(PROMPTS[0]).candidates[1].reason


def test_a_long_update_keeps_its_mark() -> None:
    model = verified_recipe()
    encoded = encode_pairs(model.retriever, [(as_update("s" * 500), "q"), ("s", "q")])
    text = model.retriever.tokenizer.decode(encoded.input_ids[0])
    mark = model.retriever.tokenizer.decode(
        model.retriever.tokenizer(as_update(""), add_special_tokens=False)["input_ids"]
    )
    assert text.startswith(f"[CLS]{mark}")


def test_texts_of_several_lines_go_by_the_threshold() -> None:
    model, plain = verified_recipe(offset=9.0), edited_recipe()
    queries = [f"{text}\nAnswer:" for text in [*PROMPTS, *UNRELATED]] + ["word " * 200]
    assert model.retrieve(queries) == plain.retrieve(queries)
    assert any(hit.fired for hit in model.retrieve(UNRELATED)) and not any(
        hit.fired for hit in plain.retrieve(UNRELATED)
    )
