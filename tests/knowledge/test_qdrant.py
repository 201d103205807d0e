"""What is Qdrant's own: lost connections, several writers, namespaces as collections, candidates and their scores."""

from __future__ import annotations

import os
import threading
import time
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
import torch

from recipe_hf.knowledge import KnowledgeBase
from tests.engines import content, qdrant, random_keys

pytest.importorskip("qdrant_client", reason="qdrant-client is not installed: pip install 'recipe-hf[qdrant]'")

from recipe_hf.knowledge.qdrant import index as qdrant_index
from recipe_hf.knowledge.qdrant.lease import Lease
from recipe_hf.knowledge.qdrant.server import Server
from tests.qdrant_server import FakeServer

DIM = 8
URL = "http://qdrant.example:6333"


@pytest.fixture
def server() -> FakeServer:
    return FakeServer()


def connect(server: FakeServer, dim: int | None = DIM, lease_timeout: float = 30, **kwargs: Any) -> Any:
    """A knowledge base of `server`, as another machine would have it."""
    base = qdrant(URL, dim, transport=server, **kwargs)
    base._store.server.lease_timeout = lease_timeout
    return base


def lease_of_another(server: FakeServer) -> Lease:
    """The lease as another machine would take it."""
    return Lease(Server(URL, 10, transport=server), "recipe", "", "another machine")


def filled(server: FakeServer) -> Any:
    base = connect(server)
    base.add([("a", "1"), ("b", "1"), ("c", "1")], random_keys(3), encoder_fingerprint="weights")
    base.add([{"prompt": "b", "answer": "2", "metadata": {"source": "x"}}], random_keys(1, seed=1))
    return base


# ---------------------------------------------------------------------- what is sent


def test_requests_say_that_they_wait_and_see_the_latest(server: FakeServer):
    base = filled(server)
    base.lookup(random_keys(3), where={"source": "x"})
    base.remove(0)
    writes = [query for method, path, query in server.requests if path.endswith(("/points/batch", "/index"))]
    reads = [query for method, path, query in server.requests if path.endswith(("/scroll", "/query/batch"))]
    assert writes and all(query == {"wait": "true", "ordering": "strong"} for query in writes)
    assert reads and all(query == {"consistency": "majority"} for query in reads)


def test_a_collection_that_two_machines_make_at_once_is_made_once(server: FakeServer):
    exists = iter([False, False])
    carry_out = server.answer

    def answer(what: str, body: Any) -> Any:
        if what.endswith("/exists") and not next(exists, True):
            return {"exists": False}
        if what == "PUT /collections/recipe":
            carry_out(what, body)
            raise httpx.ReadTimeout("timed out")
        return carry_out(what, body)

    server.answer = answer
    assert connect(server).add(["x"], random_keys(1)) == [0]


def test_facts_are_sent_and_read_in_few_requests(server: FakeServer):
    base = connect(server)
    server.requests.clear()
    base.add([(f"prompt {i}", "x") for i in range(200)], random_keys(200))
    base.lookup(random_keys(16), k=5)
    base.keys(range(200))
    base.remove(range(100))
    base.snapshot()
    assert len(server.requests) < 40


# ---------------------------------------------------------------------- lost connections


CHANGES = {
    "add": lambda base: base.add([("a", "2"), ("d", "1"), ("d", "2")], random_keys(3, seed=2)),
    "remove": lambda base: base.remove([0, 3]),
    "restore": lambda base: base.restore(1),
    "replace keys": lambda base: base.replace_keys(random_keys(3, seed=3), "new weights"),
}


def go_on(base: KnowledgeBase) -> tuple:
    base.add([("c", "9"), ("e", "1")], random_keys(2, seed=4))
    base.remove(4)
    return content(base)


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize(("is_lost", "is_done"), [(True, False), (False, True), (False, False)])
def test_a_change_that_is_cut_off_is_made_whole_or_not_at_all(
    server: FakeServer, monkeypatch: pytest.MonkeyPatch, change: str, is_lost: bool, is_done: bool
):
    """Requests of a change fail: one, or all from one on, before or after the server carried them out."""
    monkeypatch.setattr("recipe_hf.knowledge.timestamps.now", lambda after="": "2026-01-01T00:00:00.000000+00:00")
    whole = filled(server)
    outcomes, followed = [content(whole)], [go_on(whole.snapshot())]
    CHANGES[change](whole)
    outcomes, followed = [*outcomes, content(whole)], [*followed, go_on(whole)]
    for cut in range(20):
        server = FakeServer()
        base, count, message = filled(server), 0, None

        def fault(what: str, done: bool, cut: int = cut) -> None:
            nonlocal count
            count += not done
            if done == is_done and (count > cut if is_lost else count == cut + 1):
                raise httpx.ReadTimeout("timed out")

        server.fault = fault
        try:
            CHANGES[change](base)
        except ConnectionError as error:
            message = str(error)
            assert URL in message
        server.fault = lambda what, done: None
        if count <= cut:
            assert message is None and cut > 5
            return
        outcome = outcomes.index(content(connect(server)))
        assert outcome == (message is None) or "last step" in str(message)
        # What is left over does no harm to what follows, here or elsewhere.
        assert go_on(base if cut % 2 else connect(server, lease_timeout=0.05)) == followed[outcome]
    raise AssertionError("The change takes more requests than were cut off.")


def test_an_unreachable_server_is_named_in_time(server: FakeServer):
    start = time.monotonic()
    with pytest.raises(
        ConnectionError, match=r"Qdrant at http://127.0.0.1:9 cannot be reached, or .* in 2 s: .*refused"
    ):
        qdrant("http://127.0.0.1:9", DIM, timeout=2)
    assert time.monotonic() - start < 4
    base = filled(server)
    before = content(base)

    def fault(what: str, done: bool) -> None:
        raise httpx.ConnectError("no route")

    works, server.fault = server.fault, fault
    for use in (lambda: base.add(["x"], random_keys(1)), lambda: base.search(random_keys(1)), lambda: len(base)):
        with pytest.raises(ConnectionError, match=URL):
            use()
    server.fault = works
    assert content(base) == before


def test_a_server_that_is_too_old_is_refused(server: FakeServer):
    server.version = "1.9.2"
    with pytest.raises(ValueError, match="must be version 1.16 or newer, got 1.9.2"):
        connect(server)


# ---------------------------------------------------------------------- several writers


def test_machines_write_in_turn(server: FakeServer):
    one, other = filled(server), connect(server, None)
    reader = connect(server, None, read_only=True)
    ids = [base.add([f"Fact {i}."], random_keys(1, seed=i))[0] for i in range(6) for base in (one, other)]
    assert ids == list(range(4, 4 + len(ids)))
    assert content(one) == content(other) == content(reader) and len(reader) == 3 + 6
    with pytest.raises(PermissionError, match="read_only=True"):
        reader.remove(0)


def test_a_writer_that_was_taken_for_dead_changes_nothing(server: FakeServer):
    one, other = filled(server), connect(server, lease_timeout=0.05)
    taken_over = pytest.raises(
        BlockingIOError, match="was taken over by another writer meanwhile, and nothing was chang"
    )
    with taken_over, one._store.change():
        one.add([("late", "1")], random_keys(1))
        assert other.add([("early", "1")], random_keys(1)) == [4]
    assert [fact.prompt for fact in other] == ["a", "c", "b", "early"] and content(one) == content(other)
    assert one.add([("late", "2")], random_keys(1)) == [5]


def test_a_writer_that_is_alive_is_waited_for(server: FakeServer):
    filled(server)
    other, lease = connect(server, lease_timeout=0.2), lease_of_another(server)
    header, _ = lease.acquire()
    carry_out = server.answer

    def answer(what: str, body: Any) -> Any:
        """Between any two requests of the other, there is a sign of life."""
        nonlocal header
        server.answer = carry_out
        header = lease.renew(header)
        server.answer = answer
        return carry_out(what, body)

    server.answer = answer
    with pytest.raises(BlockingIOError, match=f"is being changed by process {os.getpid()} on .*try again later"):
        other.add(["other"], random_keys(1))
    server.answer = carry_out
    lease.release(header)
    assert other.add(["other"], random_keys(1)) == [4]


def test_lookups_go_on_while_another_thread_waits_to_write(server: FakeServer):
    base = filled(server)
    lease = lease_of_another(server)
    header, _ = lease.acquire()
    writers = [threading.Thread(target=base.add, args=([f"late {i}"], random_keys(1))) for i in range(3)]
    for writer in writers:
        writer.start()
    for _ in range(20):
        start = time.monotonic()
        assert len(base) == 3 and base.search(random_keys(1))[0].shape == (1, 1)
        assert time.monotonic() - start < 5
    assert all(writer.is_alive() for writer in writers)
    lease.release(header)
    for writer in writers:
        writer.join()
    assert sorted(fact.id for fact in base) == [0, 2, 3, 4, 5, 6]


# ---------------------------------------------------------------------- places


def test_local_mode_keeps_facts_in_a_directory(tmp_path: Path):
    with qdrant(tmp_path / "q", DIM) as base:
        base.add([("a", "1"), ("b", "1")], random_keys(2), encoder_fingerprint="weights")
        base.add([("a", "2")], random_keys(1, seed=1))
        before = content(base)
        with pytest.raises(BlockingIOError, match="is in use"):
            qdrant(tmp_path / "q", DIM)
    with pytest.raises(ValueError, match="is closed: open it again"):
        len(base)
    assert "closed" in repr(base)
    with qdrant(tmp_path / "q") as base:
        assert content(base) == before and base.dim == DIM
        assert base.add(["x"], random_keys(1)) == [3]


def test_namespaces_are_collections(server: FakeServer):
    base = filled(server)
    acme = base.namespace("acme/../&?")
    assert len(acme) == 0 and list(acme) == [] and acme.search(random_keys(1))[0].item() == -1
    assert base.namespaces() == [""] and len(server.local.get_collections().collections) == 1
    assert acme.add(["x"], random_keys(1)) == [0]
    assert base.namespaces() == ["", "acme/../&?"] and len(base) == 3
    (other,) = {it.name for it in server.local.get_collections().collections} - {"recipe"}
    server.local.delete_collection("recipe")
    assert [fact.statement for fact in acme] == ["x"] and acme.search(random_keys(1))[0].item() == 0
    again = connect(server, namespace="acme/../&?")
    assert content(again) == content(acme) and other.startswith("recipe-ns-")


def test_bad_arguments(server: FakeServer):
    with pytest.raises(ValueError, match="dim must be given for a new collection, and 'recipe' is one, got None"):
        connect(server, None)
    for name in ("dim", "timeout", "replication_factor"):
        with pytest.raises(ValueError, match=f"{name} must be a positive integer, got 0"):
            qdrant(**{name: 0, **({} if name == "dim" else {"dim": DIM})})
    with pytest.raises(ValueError, match="namespace must be a string, got 3"):
        connect(server, namespace=3)
    assert server.local.get_collections().collections == []
    filled(server)
    with pytest.raises(ValueError, match="dim must be 8, the width of the keys in http.* recipe, got 9"):
        connect(server, 9)
    from qdrant_client import models

    server.local.create_collection("other", models.VectorParams(size=DIM, distance=models.Distance.DOT))
    with pytest.raises(ValueError, match="collection must be that of a knowledge base, got 'other', which is not"):
        connect(server, collection="other")


def test_copies_to_and_from_other_engines_are_exact(server: FakeServer, tmp_path: Path):
    base = filled(server)
    base.remove(0)
    with base.copy_to(tmp_path / "facts.db") as file:
        assert type(file) is KnowledgeBase and content(file) == content(base)
        copy = connect(server, collection="copy")
        copy.copy_from(file)
    assert content(copy) == content(base)
    with pytest.raises(ValueError, match="copy_from needs an empty knowledge base, got KnowledgeBase.2 facts"):
        copy.copy_from(base)
    with pytest.raises(ValueError, match="knowledge must have keys of width 8, got 3"):
        connect(server, collection="third").copy_from(KnowledgeBase(3))


def test_all_namespaces_are_copied(server: FakeServer):
    memory = KnowledgeBase(DIM)
    memory.add(["x"], random_keys(1))
    memory.namespace("acme").add(["y", "z"], random_keys(2))
    base = connect(server)
    base.copy_from(memory)
    assert base.namespaces() == ["", "acme"] and content(base.namespace("acme")) == content(memory.namespace("acme"))
    with pytest.raises(ValueError, match="copy_from needs an empty knowledge base, got .*namespace='acme'"):
        connect(server, namespace="acme").copy_from(memory, "")
    other = connect(server, namespace="other")
    with pytest.raises(ValueError, match="copy_from needs an empty knowledge base"):
        other.copy_from(memory)
    other.copy_from(memory, "acme")
    assert list(other) == list(memory.namespace("acme")) and base.namespaces() == ["", "acme", "other"]


def test_a_key_that_was_altered_is_not_given_out(server: FakeServer):
    base = filled(server)
    point = server.local.scroll("recipe", with_vectors=True)[0][0]
    point.vector["key"][0] += 1
    server.local.upsert("recipe", [point])
    with pytest.raises(ValueError, match=r"recipe is damaged \(the key of fact 0 is not as it was written\)"):
        base.search(random_keys(1))


# ---------------------------------------------------------------------- candidates


@pytest.mark.parametrize("margin", [0, 7])
@pytest.mark.parametrize("noise", [0, 1e-7, 1e-3])
def test_near_ties_come_in_the_order_of_their_float32_scores(
    server: FakeServer, monkeypatch: pytest.MonkeyPatch, margin: int, noise: float
):
    monkeypatch.setattr(qdrant_index, "_MARGIN", margin)
    keys = random_keys(1) + noise * random_keys(150, seed=5)
    base = connect(server)
    base.add([f"Fact {i}." for i in range(150)], keys)
    candidates = qdrant_index.QdrantIndex._candidates

    def shuffled(self, queries, limit, condition):
        """Candidates as a server gives them that rounds otherwise: near ones are in no order."""
        found = candidates(self, queries, 150, condition)
        return [
            sorted(points, key=lambda point: (-round(point.score, 6), -point.payload["id"]))[:limit]
            for points in found
        ]

    monkeypatch.setattr(qdrant_index.QdrantIndex, "_candidates", shuffled)
    queries = random_keys(4, seed=6)
    products = (keys.numpy() * queries.numpy()[:, None]).sum(-1)
    expected = np.argsort(-products, axis=1, kind="stable")[:, :3]
    found = base.lookup(queries, 3)
    assert found.ids.tolist() == expected.tolist()
    assert found.scores.tolist() == np.take_along_axis(products, expected, 1).tolist()
    assert torch.equal(found.keys, keys[found.ids])
