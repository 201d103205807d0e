"""Any sequence of operations, by every engine, against a plain dict."""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path

import torch
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from recipe_hf.knowledge import KnowledgeBase
from tests.engines import ENGINES, open_base

DIM = 4
facts = st.lists(
    st.tuples(st.integers(0, 5), st.text(min_size=1).filter(str.strip), st.sampled_from([None, "x", 1, True])),
    min_size=1,
    max_size=4,
)


class Comparison(RuleBasedStateMachine):
    @initialize(engine=st.sampled_from(ENGINES))
    def begin(self, engine: str) -> None:
        self.engine, self.directory = engine, Path(tempfile.mkdtemp())
        self.place = self.directory
        self.base = open_base(engine, self.place, DIM)
        self.present: dict[int, tuple] = {}
        self.past: list[tuple[int, tuple]] = []
        self.keys: dict[int, torch.Tensor] = {}
        self.seed = 0

    def new_key(self) -> torch.Tensor:
        self.seed += 1
        return torch.randn(1, DIM, generator=torch.Generator().manual_seed(self.seed))

    def end(self, ids: list[int]) -> None:
        self.past += [(id, self.present.pop(id)) for id in ids]

    def take(self, fact: tuple, key: torch.Tensor) -> None:
        id = len(self.present) + len(self.past)
        replaced = [old for old, (number, *_) in self.present.items() if number == fact[0]]
        self.present[id], self.keys[id] = fact, key
        self.end(replaced)

    @rule(batch=facts, on_conflict=st.sampled_from(["replace", "keep", "error"]))
    def add(self, batch: list[tuple], on_conflict: str) -> None:
        keys = [self.new_key() for _ in batch]
        told = [
            {"prompt": f"prompt {number}", "answer": answer, "metadata": {} if label is None else {"label": label}}
            for number, answer, label in batch
        ]
        numbers = [number for number, *_ in batch]
        taken = {number for number, *_ in self.present.values()}
        refused = on_conflict == "error" and (taken & set(numbers) or len(set(numbers)) < len(numbers))
        try:
            ids = self.base.add(told, torch.cat(keys), on_conflict)
            assert not refused and len(ids) == len(batch)
        except ValueError:
            assert refused
            return
        for fact, key in zip(batch, keys, strict=True):
            if on_conflict != "keep" or fact[0] not in {number for number, *_ in self.present.values()}:
                self.take(fact, key)

    @rule(data=st.data())
    def remove(self, data: st.DataObject) -> None:
        ids = data.draw(st.lists(st.sampled_from([*self.present, 99]), unique=True))
        try:
            self.base.remove(ids)
            self.end(ids)
        except KeyError:
            assert 99 in ids

    @rule(data=st.data())
    def restore(self, data: st.DataObject) -> None:
        id = data.draw(st.sampled_from([*(id for id, _ in self.past), 99]))
        try:
            self.base.restore(id)
            self.take(dict(self.past)[id], self.keys[id])
        except KeyError:
            assert id == 99

    @rule()
    def open_again(self) -> None:
        if self.engine != "memory":
            self.base.close()
            self.base = open_base(self.engine, self.place)

    @rule()
    def save_and_load(self) -> None:
        self.base.save(self.directory / "saved")
        loaded = KnowledgeBase.load(self.directory / "saved")
        self.base.close()
        self.place = self.directory / f"copy-{len(list(self.directory.iterdir()))}"
        if self.engine in ("file", "codes"):
            loaded.copy_to(self.place / "facts.db").close()
            loaded = open_base(self.engine, self.place)
        elif self.engine == "qdrant":
            copy = open_base(self.engine, self.place, DIM)
            copy.copy_from(loaded)
            loaded = copy
        self.base = loaded

    @invariant()
    def holds_what_it_should(self) -> None:
        if not hasattr(self, "base"):
            return
        found = {f.id: (int(f.prompt.split()[1]), f.answer, f.metadata.get("label")) for f in self.base}
        assert found == self.present and len(self.base) == len(self.present)
        assert [fact.id for fact in self.base.history()] == [id for id, _ in self.past]
        assert all(torch.equal(self.base.keys([id]), self.keys[id]) for id in self.present)
        query = torch.ones(1, DIM)
        for label in (None, "x", 1, True, "y"):
            where = None if label is None else {"label": label}
            among = [id for id, fact in self.present.items() if label is None or repr(fact[2]) == repr(label)]
            want = max(among, key=lambda id: float(query[0] @ self.keys[id][0]), default=-1)
            assert self.base.search(query, where=where)[0].item() == want

    def teardown(self) -> None:
        if hasattr(self, "base"):
            self.base.close()
            shutil.rmtree(self.directory)


TestComparison = Comparison.TestCase
TestComparison.settings = settings(max_examples=20, stateful_step_count=20, deadline=None)
