from __future__ import annotations

import numpy as np
import pytest
import torch

from recipe_hf.knowledge.search.key_index import KeyIndex


def reference(keys: dict[int, np.ndarray], queries: np.ndarray) -> list[int]:
    matrix = torch.from_numpy(np.stack(list(keys.values())))
    return [list(keys)[row] for row in (torch.from_numpy(queries) @ matrix.T).argmax(1).tolist()]


@pytest.mark.parametrize("scale", [1e-5, 1.0, 1e3])
def test_top_1_is_that_of_a_matrix_product_after_adds_and_removals(scale):
    rng = np.random.default_rng(0)
    index, kept = KeyIndex(24), {}
    next_id = 0
    for _ in range(30):
        new = list(range(next_id, next_id + int(rng.integers(0, 40))))
        next_id += len(new)
        vectors = (rng.standard_normal((len(new), 24)) * scale).astype(np.float32)
        index.add(new, vectors)
        kept.update(zip(new, vectors, strict=True))
        gone = rng.choice(list(kept), size=len(kept) // 5, replace=False).tolist()
        index.remove(gone)
        for i in gone:
            del kept[i]
        assert len(index) == len(kept)
        if kept:
            queries = (rng.standard_normal((5, 24)) * scale).astype(np.float32)
            ids, scores, keys = index.search(queries, 1, threads=1)
            assert ids[:, 0].tolist() == reference(kept, queries)
            expected = [float(q.astype(np.float64) @ kept[i]) for q, i in zip(queries, ids[:, 0], strict=True)]
            np.testing.assert_allclose(scores[:, 0], expected, rtol=1e-4)
            assert index.ids.tolist() == list(kept)
            assert np.array_equal(keys[:, 0], np.stack([kept[id] for id in ids[:, 0].tolist()]))


@pytest.mark.parametrize("threads", [1, 3])
def test_of_equal_keys_the_smallest_id_wins(threads):
    rng = np.random.default_rng(1)
    distinct = rng.standard_normal((7, 16)).astype(np.float32)
    keys = distinct[rng.integers(0, 7, 500)]
    index = KeyIndex(16)
    index.add(range(500), keys)
    queries = rng.standard_normal((20, 16)).astype(np.float32)
    best = (queries @ distinct.T).argmax(1)
    first = [int(np.flatnonzero((keys == distinct[b]).all(1))[0]) for b in best]
    assert index.search(queries, 1, threads)[0][:, 0].tolist() == first
    equal = np.flatnonzero((keys == distinct[best[0]]).all(1))
    assert index.search(queries[:1], 9, threads)[0][0].tolist() == equal[:9].tolist()
    index.remove([first[0]])
    second = int(np.flatnonzero((keys == distinct[best[0]]).all(1))[1])
    assert index.search(queries[:1], 1, threads)[0].tolist() == [[second]]


@pytest.mark.parametrize("of_keys", [1e-30, 1e-15, 1.0, 1e13, 1e15])
@pytest.mark.parametrize("of_query", [1e-30, 1.0, 1e13, 1e15])
def test_magnitudes_do_not_matter(of_keys: float, of_query: float):
    index = KeyIndex(256)
    index.add(range(3), np.float32(of_keys) * np.array([[0.1], [0.9], [0.5]], np.float32).repeat(256, 1))
    queries = np.full((2, 256), of_query, np.float32)
    queries[1] = 0
    assert index.search(queries[:1], 1, threads=1)[0].tolist() == [[1]]
    assert index.search(queries, 3, threads=1)[0][1].tolist() == [0, 1, 2]
    for id in (1, 2):  # Not even where a key that was there before was larger.
        index.remove([id])
    assert index.search(queries[:1], 1, threads=1)[0].tolist() == [[0]]


def test_k_best_in_order():
    rng = np.random.default_rng(2)
    keys = rng.standard_normal((300, 16)).astype(np.float32)
    queries = rng.standard_normal((9, 16)).astype(np.float32)
    index = KeyIndex(16)
    index.add(range(300), keys)
    ids, scores, found = index.search(queries, 10, threads=1)
    assert ids.tolist() == np.argsort(-(queries @ keys.T), axis=1)[:, :10].tolist()
    assert (np.diff(scores, axis=1) <= 0).all() and np.array_equal(found, keys[ids])
    assert index.search(queries, 500, threads=1)[0].shape == (9, 300)


def test_nothing_to_find():
    index = KeyIndex(4)
    assert index.search(np.ones((2, 4), np.float32), 3, threads=1)[0].shape == (2, 0)
    index.add([0], np.ones((1, 4), np.float32))
    index.remove([0])
    assert index.search(np.ones((2, 4), np.float32), 3, threads=1)[0].shape == (2, 0)
