"""Search in Qdrant, which names candidates; float32 dot products with the keys themselves decide."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray
from qdrant_client import models

from .. import timestamps
from ..search.key_index import Found, nothing
from .server import MAJORITY
from .space import QdrantSpace
from .store import KEY

_MARGIN = 7  # Candidates beyond those asked for.
_QUERIES = 16  # In one request.


class QdrantIndex:
    """Finds keys among the facts of a namespace. The counterpart of [`..search.live_index`].

    Args:
        space: The namespace.
        exact: Whether Qdrant compares a query with every key, rather than search its HNSW graph.
    """

    def __init__(self, space: QdrantSpace, exact: bool) -> None:
        self.space = space
        self._exact = exact

    def search(
        self,
        queries: NDArray[np.float32],
        k: int,
        threads: int,
        where: Mapping[str, Any] | None = None,
        valid_only: bool = True,
    ) -> Found:
        """As [`Index.search`][recipe_hf.knowledge.engine.Index.search], always `k` of them.

        If there are fewer facts, the rest is -1, -inf and 0. Qdrant chooses its threads itself.
        """
        ids, scores, keys = nothing(len(queries), k, queries.shape[1])
        condition = self.space.usable(where, timestamps.now() if valid_only else None)
        limit, rows = k + _MARGIN, np.arange(len(queries))
        while len(rows):
            doubtful = []
            for start in range(0, len(rows), _QUERIES):
                asked = rows[start : start + _QUERIES]
                for row, points in zip(asked, self._candidates(queries[asked], limit, condition), strict=True):
                    found = np.array([self.space.take(point, True) for point in points], np.int64)
                    if not len(found):
                        continue
                    found.sort()
                    vectors = self.space.keys(found.tolist())
                    products = (vectors * queries[row]).sum(-1)
                    best = np.argsort(-products, kind="stable")[:k]
                    n = len(best)
                    ids[row, :n], scores[row, :n], keys[row, :n] = found[best], products[best], vectors[best]
                    if len(found) == limit and products[best[-1]] <= products.min() + _rounding(queries[row], vectors):
                        doubtful.append(row)
            rows, limit = np.array(doubtful, np.int64), 4 * limit
        return ids, scores, keys

    def _candidates(
        self, queries: NDArray[np.float32], limit: int, condition: models.Filter
    ) -> list[list[models.ScoredPoint]]:
        store = self.space.store
        params = models.SearchParams(exact=self._exact, hnsw_ef=max(256, 4 * limit))
        requests = [
            models.QueryRequest(
                query=query.tolist(),
                using=KEY,
                filter=condition,
                params=params if store.server.is_remote else None,  # Local mode is always exact.
                limit=limit,
                with_payload=True,
                with_vector=[KEY],
            )
            for query in queries
        ]
        with store.server.client() as client:
            found = client.query_batch_points(store.collection, requests, consistency=MAJORITY)
        return [response.points for response in found]


def _rounding(query: NDArray[np.float32], keys: NDArray[np.float32]) -> float:
    """How much two float32 dot products of the same vectors may differ because they are summed in another order."""
    largest = np.linalg.norm(keys, axis=1).max() * np.linalg.norm(query)
    return float(2 * len(query) * np.finfo(np.float32).eps * largest)
