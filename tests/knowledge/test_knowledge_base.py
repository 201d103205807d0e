from __future__ import annotations

import copy
import pickle
import random
from collections.abc import Callable

import numpy as np
import pytest
import torch

from recipe_hf.knowledge import KnowledgeBase
from recipe_hf.knowledge.facts import Fact, PastFact, parse_facts
from tests.engines import content, qdrant, random_keys

DIM = 8


@pytest.fixture(params=["memory", "qdrant"])
def empty(request: pytest.FixtureRequest) -> Callable[[], KnowledgeBase]:
    return lambda: KnowledgeBase(DIM) if request.param == "memory" else qdrant(dim=DIM)


@pytest.fixture
def filled(empty: Callable[[], KnowledgeBase]) -> Callable[..., KnowledgeBase]:
    def fill(n: int = 5, **kwargs) -> KnowledgeBase:
        base = empty()
        base.add([(f"prompt {i}", f"answer {i}") for i in range(n)], random_keys(n), **kwargs)
        return base

    return fill


def test_adding_and_reading(empty):
    base = empty()
    assert len(base) == 0 and list(base) == []
    keys = random_keys(3).requires_grad_()
    ids = base.add(["A statement.", ("prompt", "answer"), {"statement": "B", "metadata": {"source": "x"}}], keys)
    assert ids == [0, 1, 2]
    assert [fact.statement for fact in base] == ["A statement.", "prompt answer", "B"]
    assert isinstance(base[1], Fact) and (base[1].prompt, base[1].answer) == ("prompt", "answer")
    assert base[2].metadata == {"source": "x"}
    assert base[0].created_at.endswith("+00:00")
    assert 2 in base and 3 not in base and "prompt" not in base and True not in base
    assert base.get(3) is None and base.get(3, "nothing") == "nothing" and base.get(1) == base[1]
    assert torch.equal(base.keys([2, 0]), keys[[2, 0]])
    assert not base.keys([2]).requires_grad
    with pytest.raises(KeyError, match="got 3"):
        base[3]
    with pytest.raises(KeyError, match="got 7"):
        base.keys([0, 7])


def test_keys_of_any_float_type_and_outside_changes_do_not_reach_the_base(empty):
    base = empty()
    keys = random_keys(2)
    base.add(["a", "b"], keys)
    expected = keys.clone()
    keys.zero_()
    base.keys([0]).zero_()
    base.lookup(expected).keys.zero_()
    assert torch.equal(base.keys([0, 1]), expected)
    base.add(["c"], expected[:1].bfloat16())
    assert torch.equal(base.keys([2]), expected[:1].bfloat16().float())
    with torch.inference_mode():
        base.add(["d"], expected[:1] * 1)
    base.add(["e"], expected[:1])
    assert torch.equal(base.keys([3, 4]), expected[[0, 0]])


def test_a_base_made_while_a_model_is_built_on_the_meta_device_works(empty):
    with torch.device("meta"):
        base = empty()
    assert base.add(["a"], random_keys(1)) == [0]
    assert base.search(random_keys(1))[0].tolist() == [[0]]


# ---------------------------------------------------------------------- the same prompt again


def test_replace_moves_the_old_fact_to_the_history(filled):
    base = filled(3)
    old = base[1]
    new_key = random_keys(1, seed=1)
    assert base.add([{"prompt": " prompt  1", "answer": "new"}], new_key) == [3]
    assert 1 not in base and base[3].answer == "new" and len(base) == 3
    (past,) = base.history()
    assert isinstance(past, PastFact)
    assert (past.id, past.statement, past.created_at) == (old.id, old.statement, old.created_at)
    assert (past.reason, past.replaced_by) == ("replaced", 3) and past.ended_at >= past.created_at
    assert base.history("prompt 1") == [past] and base.history("prompt 2") == []
    assert base.search(new_key)[0].tolist() == [[3]]
    assert set(base.search(random_keys(3), k=3)[0].flatten().tolist()) == {0, 2, 3}


def test_keep_returns_the_id_of_the_fact_that_stays(filled):
    base = filled(2)
    batch = [("prompt 1", "other"), ("prompt 9", "new"), ("prompt 9", "x")]
    assert base.add(batch, random_keys(3), "keep") == [1, 2, 2]
    assert [fact.answer for fact in base] == ["answer 0", "answer 1", "new"]
    assert base.history() == []
    assert torch.equal(base.keys([2]), random_keys(3)[1:2])
    assert base.add([("prompt 1", "other")], random_keys(1), "keep") == [1]


@pytest.mark.parametrize("facts", [[("new", "x"), ("prompt 1", "y")], [("new", "x"), ("new", "y")]])
def test_error_refuses_the_whole_batch(filled, facts):
    base = filled(2)
    before = content(base)
    with pytest.raises(ValueError, match=r"facts\[1\] must have a new prompt under on_conflict='error'"):
        base.add(facts, random_keys(2), on_conflict="error")
    assert content(base) == before
    assert base.add([("new", "x")], random_keys(1), on_conflict="error") == [2]


def test_the_same_statement_is_a_conflict_but_not_with_a_prompt(empty):
    base = empty()
    assert base.add(["a  b", ("a b", "c"), "a b"], random_keys(3)) == [0, 1, 2]
    assert [fact.id for fact in base] == [1, 2]
    assert base.history()[0].replaced_by == 2


@pytest.mark.parametrize("on_conflict", ["replace", "keep"])
def test_a_batch_is_the_same_as_one_after_the_other(filled, on_conflict):
    rng = random.Random(0)
    facts = [(f"prompt {rng.randrange(12)}", f"answer {i}") for i in range(40)]
    keys = random_keys(40)
    together, apart = filled(5), filled(5)
    ids = together.add(facts, keys, on_conflict)
    assert ids == [apart.add([fact], keys[i : i + 1], on_conflict)[0] for i, fact in enumerate(facts)]
    strip = [{**fact.to_dict(), "created_at": "", "ended_at": ""} for fact in [*together, *together.history()]]
    assert strip == [{**fact.to_dict(), "created_at": "", "ended_at": ""} for fact in [*apart, *apart.history()]]
    queries = random_keys(20, seed=3)
    assert all(torch.equal(a, b) for a, b in zip(together.search(queries, 3), apart.search(queries, 3), strict=True))


@pytest.mark.parametrize("on_conflict", ["replace", "keep", "error"])
def test_what_is_over_is_in_nobodys_way(empty, tmp_path, on_conflict):
    base = empty()
    ended = {"prompt": "p", "answer": "old", "valid_until": "2020-01-01"}
    assert base.add([ended], random_keys(1)) == [0]
    assert base.add([("p", "new")], random_keys(1), on_conflict) == [1]
    assert base.search(random_keys(1))[0].item() == 1
    # Nor does one that is over when it is added drive out another.
    assert base.add([{**ended, "answer": "older"}], random_keys(1), on_conflict) == [2]
    assert [fact.answer for fact in base] == ["old", "new", "older"] and base.history() == []
    base.save(tmp_path)
    assert content(KnowledgeBase.load(tmp_path)) == content(base)
    assert base.add([("p", "newest")], random_keys(1)) == [3] and [past.id for past in base.history()] == [1]


# ---------------------------------------------------------------------- leaving


def test_remove_and_clear(filled):
    base = filled(4)
    base.remove([1, 3, 1])
    base.remove(0)
    base.remove([])
    assert [fact.id for fact in base] == [2]
    assert [(past.id, past.reason, past.replaced_by) for past in base.history()] == [
        (1, "removed", None),
        (3, "removed", None),
        (0, "removed", None),
    ]
    assert base.add([("prompt 1", "again")], random_keys(1), "error") == [4]
    base.clear()
    assert len(base) == 0 and len(base.history()) == 5
    assert base.search(random_keys(1))[0].tolist() == [[-1]]
    assert base.add(["x"], random_keys(1)) == [5]
    assert base.search(random_keys(1))[0].tolist() == [[5]]


@pytest.mark.parametrize("ids", [[0, 9], [-1], ["0"], [None], [True], 9, [0.0]])
def test_removing_an_unknown_id_changes_nothing(filled, ids):
    base = filled(3)
    before = content(base)
    with pytest.raises(KeyError, match="id must be that of a fact in the knowledge base, got"):
        base.remove(ids)
    assert content(base) == before


def test_search_after_a_removal_is_as_before_the_fact_came(filled):
    base = filled(6)
    queries = random_keys(30, seed=5)
    ids, scores = base.search(queries, 2)
    keys = base.lookup(queries, 2).keys
    base.remove(base.add(["new 1", "new 2"], queries[:2] * 10))
    after = base.lookup(queries, 2)
    assert torch.equal(after.ids, ids) and torch.equal(after.scores, scores) and torch.equal(after.keys, keys)


# ---------------------------------------------------------------------- searching


def test_lookup_gives_facts_keys_and_raw_dot_products(filled):
    base = filled(20)
    base.remove([4, 7])
    queries = random_keys(6, seed=2)
    hits = base.lookup(queries, k=3)
    present = [fact.id for fact in base]
    products = queries @ base.keys(present).T
    best, rows = products.topk(3)
    assert hits.ids.tolist() == [[present[row] for row in line] for line in rows.tolist()]
    torch.testing.assert_close(hits.scores, best)
    assert hits.facts == [[base[i] for i in line] for line in hits.ids.tolist()]
    assert torch.equal(hits.keys, base.keys(hits.ids.flatten().tolist()).view(6, 3, DIM))
    ids, scores = base.search(queries, k=3)
    assert torch.equal(ids, hits.ids) and torch.equal(scores, hits.scores)
    assert ids.dtype == torch.int64 and scores.dtype == torch.float32


def test_fewer_facts_than_asked_for(empty, filled):
    hits = empty().lookup(random_keys(2), k=2)
    assert hits.ids.tolist() == [[-1, -1]] * 2 and hits.facts == [[None, None]] * 2
    assert hits.scores.tolist() == [[float("-inf")] * 2] * 2 and hits.keys.shape == (2, 2, DIM)
    hits = filled(1).lookup(random_keys(2), k=2)
    assert hits.ids.tolist() == [[0, -1]] * 2 and hits.scores[:, 1].tolist() == [float("-inf")] * 2
    assert filled(3).search(torch.empty(0, DIM))[0].shape == (0, 1)


# ---------------------------------------------------------------------- bad input


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"facts": []}, "facts must hold at least one"),
        ({"facts": ["a", 3]}, r"facts\[1\] must be"),
        ({"keys": torch.ones(3, DIM)}, r"keys must have the shape \[2, 8\], got \[3, 8\]"),
        ({"keys": torch.ones(2, DIM + 1)}, r"keys must have the shape \[2, 8\], got \[2, 9\]"),
        ({"keys": torch.ones(DIM)}, r"keys must have the shape \[2, 8\], got \[8\]"),
        ({"keys": [[0.0] * DIM] * 2}, "keys must be a floating point tensor .* got list"),
        ({"keys": torch.ones(2, DIM, dtype=torch.long)}, "keys must be a floating point tensor .* got torch.int64"),
        ({"keys": torch.tensor([[1.0] * DIM, [1.0] * 7 + [float("nan")]])}, "keys must be finite, .* row 1"),
        ({"keys": torch.tensor([[float("-inf")] * DIM, [1.0] * DIM])}, "keys must be finite, .* row 0"),
        ({"keys": torch.full((2, DIM), 1e300, dtype=torch.float64)}, "keys must be finite, .* row 0"),
        ({"on_conflict": "merge"}, "on_conflict must be 'replace', 'keep' or 'error', got 'merge'"),
        ({"encoder_fingerprint": "other"}, "encoder_fingerprint must be 'weights', .* got 'other'"),
    ],
)
def test_bad_additions_change_nothing(filled, arguments, message):
    base = filled(3, encoder_fingerprint="weights")
    before = content(base)
    with pytest.raises(ValueError, match=message):
        base.add(**{"facts": ["a", "b"], "keys": torch.ones(2, DIM), **arguments})
    assert content(base) == before


@pytest.mark.parametrize("k", [0, -1, 1.0, True, None])
def test_bad_k(filled, k):
    with pytest.raises(ValueError, match="k must be a positive integer, got"):
        filled(3).search(random_keys(1), k=k)


def test_bad_queries_and_dim(filled):
    with pytest.raises(ValueError, match="queries must be finite, .* got nan in row 1"):
        filled(3).search(torch.tensor([[1.0] * DIM, [float("nan")] * DIM]))
    with pytest.raises(ValueError, match=r"queries must have the shape \[b, 8\], got \[8\]"):
        filled(3).search(torch.ones(DIM))
    for dim in (0, -8, 8.0, True, "8"):
        with pytest.raises(ValueError, match="dim must be a positive integer, got"):
            KnowledgeBase(dim)


# ---------------------------------------------------------------------- weights that changed


def test_replacing_keys(filled):
    base = filled(4, encoder_fingerprint="old")
    base.remove(1)
    new = random_keys(3, seed=9)
    base.replace_keys(new, "new", ids=[0, 2, 3])
    assert torch.equal(base.keys([0, 2, 3]), new) and base.encoder_fingerprint == "new"
    assert base.search(new[1:2] * 100)[0].tolist() == [[2]]
    base.add(["more"], random_keys(1), encoder_fingerprint="new")
    before = content(base)
    for keys, ids in ((new, None), (random_keys(4) * float("nan"), None), (random_keys(4), [0, 2, 3, 5])):
        with pytest.raises(ValueError, match="must"):
            base.replace_keys(keys, "newer", ids)
    assert content(base) == before


def test_an_empty_base_takes_keys_of_any_weights(filled):
    base = filled(2, encoder_fingerprint="old")
    base.clear()
    base.add(["a"], random_keys(1), encoder_fingerprint="new")
    assert base.encoder_fingerprint == "new"


# ---------------------------------------------------------------------- saving


def test_save_and_load_are_exact(filled, tmp_path):
    base = filled(6, encoder_fingerprint="weights")
    base.add([{"statement": "Żółw \u2028 line\nbreak \x85", "metadata": {"a": [1, {"b": None}]}}], random_keys(1))
    base.add([("prompt 2", "new")], random_keys(1))
    base.remove([0, 7])
    base.save(tmp_path / "checkpoint" / "knowledge")
    loaded = KnowledgeBase.load(tmp_path / "checkpoint" / "knowledge")
    assert content(loaded) == content(base) and loaded.dim == DIM
    queries = random_keys(10, seed=4)
    assert all(torch.equal(a, b) for a, b in zip(loaded.search(queries, 3), base.search(queries, 3), strict=True))
    assert loaded.add([("prompt 3", "new")], random_keys(1)) == [8]
    assert loaded.history("prompt 3")[0].replaced_by == 8


def test_ids_are_not_given_again_after_loading(filled, tmp_path):
    base = filled(3)
    base.clear()
    base.save(tmp_path)
    loaded = KnowledgeBase.load(tmp_path)
    assert len(loaded) == 0 and [past.id for past in loaded.history()] == [0, 1, 2]
    assert loaded.add(["x"], random_keys(1)) == [3]


def test_an_empty_base_saves_and_loads(empty, tmp_path):
    empty().save(tmp_path)
    assert content(KnowledgeBase.load(tmp_path)) == content(empty())


@pytest.mark.parametrize("duplicate", [copy.deepcopy, lambda base: pickle.loads(pickle.dumps(base))])
def test_copies_are_independent(filled, duplicate):
    base = filled(4)
    base.remove(2)
    other = duplicate(base)
    assert content(other) == content(base)
    before = content(base)
    other.add([("prompt 0", "new")], random_keys(1))
    other.replace_keys(random_keys(3, seed=8), "new")
    assert content(base) == before


# ---------------------------------------------------------------------- against a plain model of what must be true


def test_random_operations_agree_with_a_plain_dict(empty, tmp_path):
    rng = random.Random(1)
    base, expected, left = empty(), {}, []
    next_id = 0
    for step in range(300):
        action = rng.random()
        if action < 0.5:
            batch = [(f"p{rng.randrange(30)}", f"a{step}-{i}") for i in range(rng.randrange(1, 5))]
            keys = random_keys(len(batch), seed=step)
            ids = []
            for (prompt, answer), key in zip(batch, keys, strict=True):
                gone = [i for i, (old, _, _) in expected.items() if old == prompt]
                for i in gone:
                    left.append(i)
                    del expected[i]
                expected[next_id] = prompt, answer, key
                ids.append(next_id)
                next_id += 1
            assert base.add(batch, keys) == ids
        elif action < 0.7 and expected:
            ids = rng.sample(list(expected), rng.randrange(len(expected) // 3 + 1))
            base.remove(ids)
            for i in ids:
                left.append(i)
                del expected[i]
        elif action < 0.72:
            base.clear()
            left += list(expected)
            expected = {}
        elif action < 0.8:
            base.save(tmp_path)
            base = KnowledgeBase.load(tmp_path)
        found = {fact.id: (fact.prompt, fact.answer) for fact in base}
        assert found == {i: (prompt, answer) for i, (prompt, answer, _) in expected.items()}
        assert [past.id for past in base.history()] == left
        query = random_keys(1, seed=-step - 1)
        want = max(expected, key=lambda i: float(query[0] @ expected[i][2])) if expected else -1
        assert base.search(query)[0].item() == want


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda base: base.remove(None), "ids must be the ids of facts, got None"),
        (lambda base: base.keys(0), "ids must be the ids of facts, got 0"),
        (lambda base: base.replace_keys(random_keys(3), None, ids=5), "ids must be the ids of facts, got 5"),
        (lambda base: base.history(3), "prompt must be a string, got 3"),
        (lambda base: base.history("\ud800"), "prompt must be a string, got"),
        (lambda base: base.search(random_keys(1), where={"\ud800": 1}), "where must be a dict of names"),
        (
            lambda base: base.add(["Huge."], torch.full((1, DIM), 1e20)),
            "keys must be finite, and at most 1e.15 in size",
        ),
    ],
)
def test_bad_arguments_are_named(filled, call, message):
    base = filled(3)
    with pytest.raises(ValueError, match=message):
        call(base)
    assert len(base) == 3


@pytest.mark.parametrize("number", [np.int64, np.uint8, np.array, torch.tensor])
@pytest.mark.parametrize("several", [np.array, torch.tensor])
def test_ids_of_numpy_and_torch_are_ids(filled, number, several):
    base = filled(6)
    base.remove(number(0))
    base.remove([number(1), number(1)])
    base.remove(several([2, 2]))
    assert [fact.id for fact in base] == [3, 4, 5] and number(3) in base and base[number(3)].id == 3
    assert torch.equal(base.keys(several([3])), base.keys([3]))
    base.remove(base.search(random_keys(6)[3:4], k=1)[0][:, 0])
    assert len(base) == 2 and base.restore(number(1)) == 6 and base[6].prompt == "prompt 1"


@pytest.mark.parametrize(
    "ids", [b"0", bytearray(b"0"), memoryview(b"0"), "0", {0: "x"}, torch.tensor(1.0), np.array(1.0), np.array(True)]
)
def test_what_is_no_collection_of_ids_is_refused(filled, ids):
    base = filled(2)
    for use in (base.remove, base.keys):
        with pytest.raises(ValueError, match="ids must be the ids of facts, got"):
            use(ids)
    for use in (base.remove, base.keys):
        with pytest.raises(KeyError, match="id must be that of a fact in the knowledge base, got"):
            use([[0]])
    with pytest.raises(ValueError, match="ids must be the ids of facts, got"):
        base.keys(np.array(0))
    assert len(base) == 2


def test_copies_keep_the_threshold(filled, tmp_path):
    base = KnowledgeBase(DIM, full_scan_threshold=77)
    copies = [base.snapshot(), copy.deepcopy(base), pickle.loads(pickle.dumps(base)), base.copy_to(tmp_path / "a.db")]
    assert [made.full_scan_threshold for made in copies] == [77] * 4


def test_a_width_given_later_is_that_of_the_file(tmp_path):
    KnowledgeBase.open(tmp_path / "facts.db").close()
    with KnowledgeBase.open(tmp_path / "facts.db", 8) as base:
        assert base.dim == 8
    with pytest.raises(ValueError, match="dim must be 8"):
        KnowledgeBase.open(tmp_path / "facts.db", 5)


def test_changes_of_one_transaction_are_made_together_or_not_at_all(filled):
    base = filled(3)
    before = content(base)
    with pytest.raises(RuntimeError), base.transaction():
        base.add(["new"], random_keys(1))
        base.remove([0, 1])
        raise RuntimeError
    assert content(base) == before
    with base.transaction():
        base.remove(0)
        (id_,) = base.add(["new"], random_keys(1))
        assert base[id_].statement == "new" and 0 not in base
    assert base.ids() == [1, 2, id_] and [past.id for past in base.history()] == [0]


def test_present_and_past_facts_are_found_by_id(filled):
    base = filled(2)
    fact = base[0]
    base.remove(0)
    assert isinstance(base.find(0), PastFact) and base.find(0).statement == fact.statement
    assert base.find(1) == base[1] and base.find(7) is None and base.find("1") is None
    assert base.ids() == [1]


def test_facts_in_the_way_are_named_before_anything_is_added(filled):
    base = filled(2)
    new = parse_facts([("prompt 1", "another"), "prompt 1", ("prompt 9", "x")])
    assert [[fact.id for fact in found] for found in base.conflicts(new)] == [[1], [], []]


def test_an_excerpt_holds_some_facts_as_they_are_and_goes_on_with_their_ids(filled):
    base = filled(5)
    base.remove(4)
    before, part = content(base), base.excerpt([3, 1, 4, 99])
    assert list(part) == [base[1], base[3]] and not part.history()
    assert part.keys([1, 3]).equal(base.keys([1, 3]))
    assert part.add([("prompt 3", "another")], random_keys(1)) == base.add(["x"], random_keys(1)) == [5]
    assert [past.id for past in part.history()] == [3]
    base.remove(5)
    assert list(base) == list(before[1])
