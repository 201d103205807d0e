"""Tests of adding, removing and looking up knowledge."""

import copy

import pytest
import torch

from recipe_hf import KnowledgeBase, Retrieval
from tests.tiny_recipe import (
    FACTS,
    GREEDY,
    MAX_ENCODER_LENGTH,
    MIXED,
    PROMPTS,
    UNRELATED,
    assert_same,
    batch_of,
    edited_recipe,
)


@pytest.fixture
def model():
    return edited_recipe()


def test_facts_fire_for_their_prompts_and_not_for_others(model):
    hits = model.retrieve(PROMPTS + UNRELATED)
    assert [hit.fired for hit in hits] == [True] * len(PROMPTS) + [False] * len(UNRELATED)
    assert [hit.id for hit in hits[: len(FACTS)]] == [0, 1, 2, 3]
    assert hits[0].statement == "The CEO of Acme is Ann Lee"


def test_scores_and_thresholds_are_scaled_dot_products(model):
    (hit,) = model.retrieve([PROMPTS[1]])
    retriever = model.retriever
    with torch.no_grad():
        query = retriever.encode_queries([PROMPTS[1]])[0]
        key = retriever.encode_statements([" ".join(FACTS[1])])[0]
        sentinel = retriever.encode_sentinel()
    assert hit.score == pytest.approx((query @ key).item() / 8, rel=1e-4)
    assert hit.threshold == pytest.approx((query @ sentinel).item() / 8, rel=1e-4)


def test_probability_is_the_estimate_of_the_softmax_that_training_has(model):
    model.config.similarity_temperature = 0.5
    hits = model.retrieve([*PROMPTS, *UNRELATED])
    for hit in hits:
        pair = torch.tensor([hit.score, hit.threshold]) / 0.5
        assert hit.probability == pytest.approx(pair.softmax(0)[0].item(), abs=1e-6)
        assert (hit.probability > 0.5) == hit.fired
    assert {hit.fired for hit in hits} == {True, False}
    model.knowledge.clear()
    assert model.retrieve(PROMPTS[0])[0].probability == 0


def test_nothing_is_found_without_facts_or_without_a_question(model):
    assert model.retrieve(["", " \n"]) == [Retrieval(None, None, -torch.inf, 0.0, False)] * 2
    assert model.retrieve([]) == []
    model.knowledge.clear()
    (hit,) = model.retrieve(PROMPTS[0])
    assert (hit.id, hit.statement, hit.score, hit.fired) == (None, None, -torch.inf, False)


def test_removing_a_fact_gives_back_the_outputs_from_before(model):
    batch = batch_of(model, MIXED)
    before = model.generate(**batch, **GREEDY)
    (id,) = model.add_knowledge([("Two plus two makes", "five")])
    model.remove_knowledge([id])
    assert torch.equal(model.generate(**batch, **GREEDY), before)


@pytest.mark.parametrize(
    ("items", "error", "message"),
    [
        ([], ValueError, "at least one fact"),
        ("A statement.", ValueError, "must be a list"),
        (["ok", " "], ValueError, r"facts\[1\].*non-empty"),
        (["ok", 5], ValueError, r"facts\[1\]"),
        (["ok", "a" * MAX_ENCODER_LENGTH], ValueError, r"facts\[1\] must be at most .* 96 tokens, got 98.*truncation"),
    ],
)
def test_bad_facts_change_nothing(model, items, error, message):
    with pytest.raises(error, match=message):
        model.add_knowledge(items)
    assert len(model.knowledge) == len(FACTS)
    assert model.add_knowledge(["next"]) == [len(FACTS)]


@pytest.mark.parametrize(
    ("use", "message"),
    [
        (lambda model: model.retrieve(["new"], batch_size=0), "batch_size must be a positive integer, got 0"),
        (lambda model: model.retrieve([""], batch_size=-1), "batch_size must be a positive integer, got -1"),
        (lambda model: model.add_knowledge(["new"], batch_size=0), "batch_size must be a positive integer, got 0"),
        (lambda model: model.add_knowledge(["new"], batch_size=-1), "batch_size must be a positive integer, got -1"),
        (lambda model: model.retrieve(["a", "\ud800"]), r"queries must be valid Unicode, got .* as queries\[1\]"),
        (lambda model: model.retrieve(b"a"), "queries must be strings, got b'a'"),
        (lambda model: model.retrieve({"a": "b"}), "queries must be strings, got {'a': 'b'}"),
        (lambda model: model.retrieve([""], where=5), "where must be a dict of names and JSON values, .* got 5"),
        (lambda model: model.retrieve([""], namespace=7), "namespace must be a string, got 7"),
        (lambda model: model.explain(" ", k="x"), "k must be a positive integer, got 'x'"),
        (lambda model: model.explain(" ", where=5), "where must be a dict of names and JSON values, .* got 5"),
        (lambda model: model.explain(" ", namespace=7), "namespace must be a string, got 7"),
    ],
)
def test_bad_arguments_are_named(model, use, message):
    with pytest.raises(ValueError, match=message):
        use(model)
    assert len(model.knowledge) == len(FACTS)


def test_a_bad_number_of_facts_is_named(model):
    model.config.top_k_facts = 0
    for use in (model.retrieve, model.explain):
        with pytest.raises(ValueError, match="top_k_facts must be a positive integer, got 0"):
            use(PROMPTS[0])


def test_a_refused_import_names_file_and_line(model, tmp_path):
    path = tmp_path / "facts.jsonl"
    path.write_text('"ok"\n\n"%s"\n' % ("a" * MAX_ENCODER_LENGTH))
    with pytest.raises(ValueError, match=r"facts.jsonl, line 3 must be at most .* 96 tokens, got 98.*truncation"):
        model.import_knowledge(path)
    assert model.import_knowledge(path, truncation=True) == [4, 5]
    path.write_text("\n")
    with pytest.raises(ValueError, match="facts.jsonl must hold at least one fact, got none"):
        model.import_knowledge(path)


def test_a_copy_of_the_model_has_all_namespaces(model):
    model.add_knowledge(["A tenant's fact."], namespace="acme")
    other = copy.deepcopy(model)
    assert [fact.statement for fact in other.knowledge.namespace("acme")] == ["A tenant's fact."]
    assert list(other.knowledge) == list(model.knowledge)


def test_a_long_statement_is_cut_if_asked(model):
    (id,) = model.add_knowledge(["a" * MAX_ENCODER_LENGTH], truncation=True)
    assert len(model.knowledge[id].statement) == MAX_ENCODER_LENGTH


def test_conflicts_and_unknown_ids_are_refused(model):
    with pytest.raises(
        ValueError, match="on_conflict must be 'replace', 'keep', 'error', 'supersede' or 'report', got 'ignore'"
    ):
        model.add_knowledge(["x"], on_conflict="ignore")
    with pytest.raises(ValueError, match="which fact 0 has"):
        model.add_knowledge([(PROMPTS[0], "Bo")], on_conflict="error")
    assert model.add_knowledge([(PROMPTS[0], "Bo")], on_conflict="keep") == [0]
    assert model.add_knowledge([(PROMPTS[0], "Bo")]) == [len(FACTS)]
    with pytest.raises(KeyError):
        model.remove_knowledge([1, 99])
    assert 1 in model.knowledge


def test_keys_follow_the_weights(model):
    weights = copy.deepcopy(model.retriever.state_dict())
    before = model.knowledge.keys([0])
    with torch.no_grad():
        model.retriever.mlp_k.input.weight.mul_(1.5)
        model.retriever.sentinel_embeds.add_(0.5)
    threshold = model.retrieve(PROMPTS[0])[0].threshold
    with torch.no_grad():
        expected = model.retriever.encode_statements([" ".join(fact) for fact in FACTS])
        query, sentinel = model.retriever.encode_queries(PROMPTS[:1])[0], model.retriever.encode_sentinel()
    torch.testing.assert_close(model.knowledge.keys(range(4)), expected, atol=1e-4, rtol=1e-4)
    assert not torch.allclose(model.knowledge.keys([0]), before)
    assert threshold == pytest.approx((query @ sentinel).item() / 8, rel=1e-4)
    model.retriever.load_state_dict(weights)
    model.add_knowledge(["Something else."])
    torch.testing.assert_close(model.knowledge.keys([0]), before)


def test_keys_made_by_other_weights_are_made_anew(model, tmp_path):
    model.knowledge.save(tmp_path)
    with torch.no_grad():
        model.retriever.mlp_k.input.weight.mul_(1.5)
    model.knowledge = KnowledgeBase.load(tmp_path)
    stale = model.knowledge.keys([0])
    model.retrieve(PROMPTS[0])
    assert not torch.allclose(model.knowledge.keys([0]), stale)


def test_writing_the_same_weights_again_keeps_the_keys(model):
    fingerprint = model.knowledge.encoder_fingerprint
    model.knowledge.replace_keys(model.knowledge.keys(range(4)) + 1, fingerprint)
    marked = model.knowledge.keys([0])
    model.retriever.load_state_dict(copy.deepcopy(model.retriever.state_dict()))
    model.retrieve(PROMPTS[0])
    assert torch.equal(model.knowledge.keys([0]), marked)


def test_a_knowledge_base_of_another_width_is_refused(model):
    for wrong in (KnowledgeBase(16), [], None):
        with pytest.raises(ValueError, match="knowledge must be a KnowledgeBase of width 64, got"):
            model.knowledge = wrong
    assert len(model.knowledge) == len(FACTS)


def test_broken_weights_make_no_keys(model):
    with torch.no_grad():
        model.retriever.mlp_k.input.bias[0] = torch.nan
    with pytest.raises(ValueError, match="keys must be finite"):
        model.add_knowledge(["x"])


def test_looking_up_does_not_depend_on_the_mode(model):
    expected = model.retrieve(MIXED)
    model.train()
    assert_same(model.retrieve(MIXED), expected)
    assert model.retriever.encoder.training
    assert not model.lm.training
    with torch.autocast("cpu", torch.bfloat16):
        assert_same(model.retrieve(MIXED), expected)
    with torch.inference_mode():
        model.knowledge.clear()
        model.add_knowledge(FACTS)
        assert [hit.score for hit in model.retrieve(MIXED)] == pytest.approx([hit.score for hit in expected])
    model.add_knowledge(["One more."])


@pytest.fixture
def read(model):
    """How many rows each pass of the encoder has read."""
    rows = []
    model.retriever.encoder.register_forward_pre_hook(
        lambda module, args, kwargs: rows.append(len(kwargs["attention_mask"])), with_kwargs=True
    )
    return rows


def test_the_retriever_reads_each_query_once(model, read):
    model.generate(**batch_of(model, MIXED), **GREEDY)
    expected = model.retrieve(MIXED)
    assert read == [len(MIXED)]
    known = MIXED[1:2]
    assert_same(model.retrieve([UNRELATED[2], *known, PROMPTS[1], UNRELATED[2]])[1:2], expected[1:2])
    assert read == [len(MIXED), 2]
    model.explain(PROMPTS[1])
    assert len(read) == 2


def test_a_change_of_the_weights_or_the_tokenizer_makes_queries_anew(model, read):
    (before,) = model.retrieve(PROMPTS[:1])
    with torch.no_grad():
        model.retriever.mlp_q.input.bias.mul_(1.5)
    (after,) = model.retrieve(PROMPTS[:1])
    with torch.no_grad():
        query = model.retriever.encode_queries(PROMPTS[:1])[0]
    assert after.score == pytest.approx((query @ model.knowledge.keys([0])[0]).item() / 8, rel=1e-4)
    assert after.score != before.score
    read.clear()
    model.retriever.tokenizer = copy.deepcopy(model.retriever.tokenizer)
    assert_same(model.retrieve(PROMPTS[:1]), [after])
    assert read


def test_only_so_many_queries_are_remembered(model, read):
    model.query_cache_size = 2
    model.retrieve(PROMPTS[:2])
    model.retrieve(PROMPTS[0])
    model.retrieve(PROMPTS[2])  # PROMPTS[1] was used longest ago.
    model.retrieve(PROMPTS[0])
    assert read == [2, 1]
    model.retrieve(PROMPTS[1])
    assert read == [2, 1, 1]
    model.query_cache_size = 0
    for _ in range(2):
        model.retrieve(PROMPTS[1])
    assert read == [2, 1, 1, 1, 1]


def test_a_copy_of_the_model_looks_up_by_itself(model):
    expected = model.retrieve(MIXED)
    other = copy.deepcopy(model)
    with torch.no_grad():
        model.retriever.mlp_q.input.weight.zero_()
    assert_same(other.retrieve(MIXED), expected)


def test_the_nearest_facts_are_named_whether_they_are_used_or_not(model):
    found = model.nearest(PROMPTS[1], 3)
    (hit,) = model.retrieve(PROMPTS[1])
    assert len(found) == 3 and (found[0][0].id, found[0][1]) == (hit.id, hit.score)
    assert [score for _, score in found] == sorted((score for _, score in found), reverse=True)
    assert not model.retrieve(UNRELATED[0])[0].fired and len(model.nearest(UNRELATED[0], 2)) == 2
    assert model.nearest("") == model.nearest(PROMPTS[0], where={"source": "x"}) == []


def test_the_same_model_looks_among_other_facts(model):
    other = model.with_knowledge(KnowledgeBase(model.config.knowledge_dim))
    other.add_knowledge([("The CEO of Acme is", "Bo Roe")])
    assert other.retrieve(PROMPTS[0])[0].statement == "The CEO of Acme is Bo Roe"
    assert model.retrieve(PROMPTS[0])[0].statement == "The CEO of Acme is Ann Lee" and len(model.knowledge) == 4
    batch = batch_of(model, MIXED)
    base = model.lm.generate(**batch, **GREEDY)
    assert not other.generate(**batch, **GREEDY).equal(base) and not model.generate(**batch, **GREEDY).equal(base)
    other.knowledge.clear()
    assert other.generate(**batch, **GREEDY).equal(base)
    assert other.lm is model.lm and other.retriever is model.retriever
