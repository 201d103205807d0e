"""Which facts a model may use: metadata, namespaces, times, several at once; and why it used them."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
import torch

from recipe_hf import KnowledgeBase, RecipeConfig, RecipeForCausalLM
from recipe_hf.knowledge.exchange import read_facts
from recipe_hf.modeling.weights import key_fingerprint
from tests.engines import ENGINES, open_base
from tests.tiny_recipe import FACTS, GREEDY, MIXED, PROMPTS, UNRELATED, batch_of, edited_recipe, tiny_recipe

TOMORROW = datetime.now(UTC) + timedelta(days=1)


def told(source: str, **more: object) -> list[dict]:
    return [{"prompt": prompt, "answer": answer, "metadata": {"source": source}, **more} for prompt, answer in FACTS]


def add_with_one_key(model: RecipeForCausalLM, statement: str, facts: list[dict]) -> None:
    """Facts that are all as close as `statement` is to any query, so that the oldest comes first."""
    key = model.encode_statements([statement])
    model.knowledge.add(facts, key.expand(len(facts), -1), encoder_fingerprint=key_fingerprint(model.retriever))


def outputs(model: RecipeForCausalLM, **kwargs: object) -> torch.Tensor:
    return model.generate(**batch_of(model, MIXED), **GREEDY, **kwargs)


@pytest.fixture
def model() -> RecipeForCausalLM:
    return tiny_recipe()


@pytest.fixture
def base_outputs(model: RecipeForCausalLM) -> torch.Tensor:
    return outputs(model)


@pytest.mark.parametrize("engine", ENGINES)
def test_metadata_decide_what_is_found(model, base_outputs, tmp_path: Path, engine: str):
    model.knowledge = open_base(engine, tmp_path, model.config.knowledge_dim)
    model.add_knowledge(told("wiki"))
    with_facts = outputs(model)
    assert not torch.equal(with_facts, base_outputs)
    assert torch.equal(outputs(model, where={"source": "wiki"}), with_facts)
    assert torch.equal(outputs(model, where={}), with_facts)
    for where in ({"source": "press"}, {"source": "wiki", "year": 2024}, {"source": None}, {"source": ["wiki"]}):
        assert torch.equal(outputs(model, where=where), base_outputs)
        assert [hit.id for hit in model.retrieve(PROMPTS, where=where)] == [None] * len(PROMPTS)
    batch = batch_of(model, MIXED)
    assert torch.equal(model(**batch, where={"source": "wiki"}).logits, model(**batch).logits)
    assert [hit.fired for hit in model(**batch, where={"source": "x"}).retrievals] == [False] * len(MIXED)


def test_the_best_that_matches_is_found_though_another_is_closer(model):
    model.add_knowledge(told("wiki"))
    (other,) = model.add_knowledge([{"statement": UNRELATED[0], "metadata": {"source": "press"}}])
    hits = model.retrieve(PROMPTS, where={"source": "press"})
    assert [hit.id for hit in hits] == [other] * len(PROMPTS)


@pytest.mark.parametrize("where", ["wiki", ["source"], {1: "x"}, {"source": {1, 2}}, {"source": float("nan")}])
def test_a_bad_filter_is_refused(model, where):
    model.add_knowledge(told("wiki"))
    for use in (lambda: model.retrieve(PROMPTS, where=where), lambda: outputs(model, where=where)):
        with pytest.raises(ValueError, match=r"where must be a dict of names and JSON values, such as .*, got"):
            use()


@pytest.mark.parametrize("engine", ENGINES)
def test_namespaces_are_apart(model, base_outputs, tmp_path: Path, engine: str):
    model.knowledge = open_base(engine, tmp_path, model.config.knowledge_dim)
    ids = model.add_knowledge(FACTS[:2], namespace="a")
    assert model.add_knowledge(FACTS, namespace="b") == [0, 1, 2, 3]
    assert len(model.knowledge) == 0 and model.knowledge.namespaces() == ["a", "b"]
    a, b = model.knowledge.namespace("a"), model.knowledge.namespace("b")
    before = list(b), b.history(), outputs(model, namespace="b")
    assert torch.equal(outputs(model), base_outputs)
    assert torch.equal(outputs(model, namespace="nobody's"), base_outputs)
    assert not torch.equal(outputs(model, namespace="a"), base_outputs)
    # Replaced, removed, cleared and restored in one: nothing of it is seen in the other.
    model.add_knowledge([(FACTS[0][0], "someone else")], namespace="a")
    with pytest.raises(KeyError):
        model.remove_knowledge([3], namespace="a")
    with pytest.raises(KeyError):
        a.restore(3)
    model.remove_knowledge(ids[1:], namespace="a")
    a.clear()
    a.restore(0)
    assert list(b)[:] == before[0] and b.history() == before[1]
    assert torch.equal(outputs(model, namespace="b"), before[2])
    assert [fact.statement for fact in a] == [" ".join(FACTS[0])]
    assert {hit.id for hit in model.retrieve(PROMPTS, namespace="a")} == {3}
    with pytest.raises(ValueError, match="namespace must be a string, got 3"):
        model.retrieve(PROMPTS, namespace=3)
    if engine == "file":
        model.knowledge.close()
        model.open_knowledge(tmp_path / "facts.db", namespace="b")
        assert (list(model.knowledge), model.knowledge.history()) == before[:2]
        assert torch.equal(outputs(model), before[2])


@pytest.mark.parametrize("engine", ENGINES)
def test_facts_are_used_within_their_time_only(model, base_outputs, tmp_path: Path, engine: str):
    model.knowledge = open_base(engine, tmp_path, model.config.knowledge_dim)
    ids = model.add_knowledge(told("wiki", valid_from=TOMORROW))
    assert torch.equal(outputs(model), base_outputs)
    yesterday = TOMORROW - timedelta(days=2)
    model.add_knowledge(told("wiki", valid_from="2020-01-01", valid_until=yesterday.isoformat()))
    assert torch.equal(outputs(model), base_outputs)
    model.add_knowledge(told("wiki", valid_from=yesterday, valid_until=TOMORROW))
    assert [hit.id for hit in model.retrieve(PROMPTS)][:4] == [8, 9, 10, 11]
    # What is true at another time is another fact, and no conflict.
    assert len(model.knowledge) == 12 and model.knowledge.history() == []
    model.add_knowledge([FACTS[0]])
    assert [past.id for past in model.knowledge.history()] == [0, 8] and ids[1] in model.knowledge


@pytest.mark.parametrize("num_answer_prompt_tokens", [0, 3])
def test_two_facts_are_prefixed_together_if_asked(num_answer_prompt_tokens: int):
    model = tiny_recipe(num_answer_prompt_tokens=num_answer_prompt_tokens)
    if model.answer_prompt_encoder is not None:
        for weights in model.answer_prompt_encoder.parameters():
            torch.nn.init.normal_(weights, std=0.3)
    model.add_knowledge(FACTS)
    model.config.top_k_facts = 2
    assert [hit.fired for hit in model.retrieve(MIXED)] == [True, False, True, False]
    model.add_knowledge([(PROMPTS[0] + " ", "Ann Lee"), f"{FACTS[0][0]} Ann Lee"])
    (hit,) = model.retrieve(PROMPTS[0])
    (other,) = hit.others
    assert {hit.id, other.id} == {4, 5} and other.fired and other.score <= hit.score and other.others == ()
    # As if both prompts stood before the text, the best nearest to it.
    ids = model.tokenizer(PROMPTS[0])["input_ids"]
    with torch.no_grad():
        both = [model.knowledge[id].answer for id in (other.id, hit.id)]
        prompts, mask = model.continuous_prompts(model.knowledge.keys([other.id, hit.id]), both)
        prefix = prompts[mask]
        assert len(prefix) == 6 + num_answer_prompt_tokens
        text = model.lm.get_input_embeddings()(torch.tensor(ids))
        expected = model.lm(inputs_embeds=torch.cat([prefix, text])[None]).logits[0, len(prefix) :]
        missed = model.lm(input_ids=torch.tensor([model.tokenizer(UNRELATED[0])["input_ids"]])).logits[0]
        found = model(**batch_of(model, [PROMPTS[0], UNRELATED[0], PROMPTS[1]], "right")).logits
    torch.testing.assert_close(found[0, : len(ids)], expected, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(found[1, : len(missed)], missed, atol=1e-4, rtol=1e-4)
    assert model.generate(**batch_of(model, MIXED), max_new_tokens=4, num_beams=2).shape[0] == len(MIXED)


def test_top_k_facts_is_kept_with_the_checkpoint(model, tmp_path: Path):
    model.config.top_k_facts = 2
    model.save_pretrained(tmp_path)
    assert RecipeForCausalLM.from_pretrained(tmp_path, base_model=False).config.top_k_facts == 2
    assert RecipeConfig().top_k_facts == 1
    for wrong in (0, -1, 1.5, True, None):
        with pytest.raises(ValueError, match="top_k_facts must be a positive integer, got"):
            RecipeConfig(top_k_facts=wrong)


# ---------------------------------------------------------------------- why


def test_an_explanation_names_the_nearest_and_what_fired():
    model = edited_recipe()
    explanation = model.explain(PROMPTS[1])
    (hit,) = model.retrieve(PROMPTS[1])
    assert explanation.threshold == pytest.approx(hit.threshold) and len(explanation.candidates) == 4
    best, *rest = explanation.candidates
    assert (best.fact.id, best.fired, best.reason) == (1, True, "used") and best.score == pytest.approx(hit.score)
    assert [c.score for c in rest] == sorted([c.score for c in rest], reverse=True)
    low, crowded = "not used: not above the threshold", "not used: top_k_facts is 1, and as many are closer"
    assert [c.reason for c in rest] == [low if c.score <= explanation.threshold else crowded for c in rest]
    assert not any(c.fired for c in rest) and {c.reason for c in rest} == {low, crowded}
    lines = str(explanation).splitlines()
    assert lines[0] == PROMPTS[1] and lines[1].startswith("  threshold ") and lines[2].startswith("* ")
    assert f"fact 1: {best.fact.statement} (used)" in lines[2] and len(lines) == 6
    unrelated = model.explain(UNRELATED[0])
    assert not any(c.fired for c in unrelated.candidates)


def test_an_explanation_says_why_not(model):
    prompt, answer = FACTS[0]
    fact = {"prompt": prompt, "answer": answer}
    add_with_one_key(
        model,
        f"{prompt} {answer}",
        [
            {**fact, "valid_from": TOMORROW},
            {**fact, "valid_until": "2020-01-01"},
            {**fact, "valid_from": "2021-01-01", "valid_until": TOMORROW, "metadata": {"source": "press"}},
            {"statement": "A", "metadata": {"source": "wiki"}},
            {"statement": "B", "metadata": {"source": "wiki"}},
        ],
    )
    found = {c.fact.id: c for c in model.explain(prompt, where={"source": "wiki"}).candidates}
    assert {id: c.fired for id, c in found.items()} == {0: False, 1: False, 2: False, 3: True, 4: False}
    assert found[0].reason == f"not used: valid from {TOMORROW.isoformat(timespec='microseconds')}"
    assert found[1].reason == "not used: valid until 2020-01-01T00:00:00.000000+00:00"
    assert found[2].reason == "not used: its metadata are not those of where, {'source': 'wiki'}"
    assert found[4].reason == "not used: top_k_facts is 1, and as many are closer"
    model.config.top_k_facts = 2
    assert [c.fact.id for c in model.explain(prompt, where={"source": "wiki"}).candidates if c.fired] == [3, 4]


def test_what_fired_is_named_though_five_are_nearer(model):
    facts = [{"statement": f"{i}", "metadata": {"source": "wiki" if i == 7 else "press"}} for i in range(8)]
    add_with_one_key(model, " ".join(FACTS[0]), facts)
    explanation = model.explain(PROMPTS[0], where={"source": "wiki"})
    assert [(c.fact.id, c.fired) for c in explanation.candidates] == [(i, False) for i in range(5)] + [(7, True)]
    assert len(model.explain(PROMPTS[0], k=2).candidates) == 2


def test_there_may_be_nothing_to_explain(model):
    assert model.explain(PROMPTS[0]).candidates == () and str(model.explain(PROMPTS[0])).endswith("no facts")
    assert model.explain("  ").candidates == ()
    model.add_knowledge(FACTS)
    for k in (0, 1.5, None):
        with pytest.raises(ValueError, match="k must be a positive integer"):
            model.explain(PROMPTS[0], k=k)
    with pytest.raises(ValueError, match="queries must be strings"):
        model.explain(3)


# ---------------------------------------------------------------------- kept in a file


def test_facts_kept_in_a_file_are_there_for_another_model(model, tmp_path: Path):
    knowledge = model.open_knowledge(tmp_path / "facts.db")
    assert knowledge is model.knowledge and knowledge.dim == model.config.knowledge_dim
    model.add_knowledge(FACTS)
    expected = outputs(model)
    with pytest.raises(BlockingIOError, match="It is being written by process"):
        tiny_recipe().open_knowledge(tmp_path / "facts.db")
    reader = tiny_recipe()
    reader.open_knowledge(tmp_path / "facts.db", read_only=True)
    assert torch.equal(outputs(reader), expected)
    with pytest.raises(PermissionError, match="was opened to be read only"):
        reader.add_knowledge(["More."])
    model.remove_knowledge([0])
    assert [hit.id for hit in reader.retrieve(PROMPTS)] == [hit.id for hit in model.retrieve(PROMPTS)]
    model.save_pretrained(tmp_path / "checkpoint")
    loaded = RecipeForCausalLM.from_pretrained(tmp_path / "checkpoint", base_model=model.lm)
    assert torch.equal(outputs(loaded), outputs(model))
    with pytest.raises(ValueError, match="dim must be 64, the width of the keys in .*, got 32"):
        KnowledgeBase.open(tmp_path / "facts.db", 32, read_only=True)
    model.knowledge.close()


def test_an_empty_file_can_be_read_before_anything_is_written(model, tmp_path: Path):
    with KnowledgeBase.open(tmp_path / "facts.db"):
        model.open_knowledge(tmp_path / "facts.db", read_only=True)
        assert model.retrieve(PROMPTS[0])[0].id is None


def test_keys_of_other_weights_in_a_file_that_is_read_only(model, tmp_path: Path):
    with KnowledgeBase.open(tmp_path / "facts.db", 64) as base:
        base.add(["A fact."], torch.ones(1, 64), encoder_fingerprint="other weights")
        model.open_knowledge(tmp_path / "facts.db", read_only=True)
        with pytest.raises(PermissionError, match=r"facts.db'\) were made by other weights .*read_only=False"):
            model.retrieve(PROMPTS)
    model.open_knowledge(tmp_path / "facts.db")
    assert model.retrieve(PROMPTS)[0].id == 0 and not (model.knowledge.keys([0]) == 1).all()
    model.knowledge.close()


def test_facts_move_between_models_by_files(model, tmp_path: Path):
    model.add_knowledge(told("wiki", valid_until="2100-01-01"))
    for name in ("facts.jsonl", "facts.parquet"):
        model.knowledge.export(tmp_path / name)
        other = tiny_recipe()
        assert other.import_knowledge(tmp_path / name) == [0, 1, 2, 3]
        assert [fact.metadata for fact in other.knowledge] == [{"source": "wiki"}] * 4
        assert torch.equal(outputs(other), outputs(model)) and len(read_facts(tmp_path / name)) == 4


def test_restored_with_keys_of_weights_that_changed(model):
    model.add_knowledge(FACTS)
    model.remove_knowledge(0)
    with torch.no_grad():
        model.retriever.mlp_k.input.weight.mul_(1.01)
    model.retrieve(PROMPTS[0])
    id = model.knowledge.restore(0, encode=model.encode_statements)
    torch.testing.assert_close(model.knowledge.keys([id]), model.encode_statements([" ".join(FACTS[0])]))
    assert model.retrieve(PROMPTS[0])[0].id == id
