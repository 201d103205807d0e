"""One namespace as a collection of Qdrant, whose changes happen whole or not at all.

Qdrant has no transactions. A change is a unit of work: it collects what is to be written, sends the points of its
facts, which nobody sees yet, and then replaces the header ([`lease`]), which makes them count. What a change that did
not get that far left behind is deleted before the next one. New keys get points of another generation, which count
when the header says so.

Facts carry the version of the header under which they were written, so that a writer that lost its lease cannot
overwrite newer ones. Only a mark that a fact left has no such guard, against a request that arrives long after its
sender gave it up.
"""

from __future__ import annotations

import hashlib
import uuid
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray
from qdrant_client import models

from ..engine import State
from ..rows import ENDING
from .lease import NOBODY, Header, Lease, first_header, read_header
from .server import MAJORITY, STRONG, Server

KEY = "key"
_INDEXES = {
    "id": models.PayloadSchemaType.INTEGER,
    "departure": models.PayloadSchemaType.INTEGER,
    "generation": models.PayloadSchemaType.INTEGER,
    "version": models.PayloadSchemaType.INTEGER,
    "about": models.PayloadSchemaType.KEYWORD,
    "labels": models.PayloadSchemaType.KEYWORD,
    "valid_from": models.PayloadSchemaType.DATETIME,
    "valid_until": models.PayloadSchemaType.DATETIME,
}


@dataclass
class Row:
    """A fact's point: its payload, and its key if that was read."""

    columns: dict[str, Any]
    key: NDArray[np.float32] | None = None
    key_was_read: bool = False


@dataclass
class UnitOfWork:
    """What one view or change has read, and what it is to write.

    Attributes:
        committed: The state in which the namespace was found.
        generation: The generation of the points that were found.
        state: The state in which it is to be left.
        is_change: Whether anything may be written.
        rows: What was read or written of facts, by id.
        subjects: Ids of present facts by prompt or statement, for those of which all were read.
        written: Ids of facts whose points are to be written.
        ended: What is to be added to the points of facts that left.
        is_rekeyed: Whether the points to be written are of the next generation, and all others become void.
    """

    committed: State
    generation: int
    state: State
    is_change: bool
    rows: dict[int, Row] = field(default_factory=dict)
    subjects: dict[str, list[int]] = field(default_factory=dict)
    written: dict[int, None] = field(default_factory=dict)
    ended: dict[int, dict[str, Any]] = field(default_factory=dict)
    is_rekeyed: bool = False

    @property
    def next_generation(self) -> int:
        """The generation of the points to be written."""
        return self.generation + self.is_rekeyed


class QdrantStore:
    """The collection of a namespace.

    Attributes:
        path: What to call it in messages.
        read_only: Whether changes are refused.
        dim: Width of the keys; None if there is no collection yet and none was given.
    """

    def __init__(
        self, server: Server, name: str, dim: int | None, namespace: str, read_only: bool, replication_factor: int
    ) -> None:
        self.server, self.name, self.namespace = server, name, namespace
        self.dim, self.read_only, self.replication_factor = dim, read_only, replication_factor
        self.collection = name if not namespace else f"{name}-ns-{_digest(namespace)}"
        self.path = f"{server.location} {name}"
        self._unit: UnitOfWork | None = None
        self._exists = self._is_prepared = False
        self._lease = Lease(server, self.collection, namespace, self.path)
        if self._found():
            self._check_collection()

    def of(self, namespace: str) -> QdrantStore:
        """The store of another namespace."""
        return QdrantStore(self.server, self.name, self.dim, namespace, self.read_only, self.replication_factor)

    @property
    def unit(self) -> UnitOfWork:
        """The unit of work of the surrounding `view` or `change`."""
        assert self._unit is not None
        return self._unit

    @property
    def is_open(self) -> bool:
        """Whether it can still be used."""
        return self.server.is_open

    def close(self) -> None:
        """Closes the connection, for all namespaces."""
        self.server.close()

    @contextmanager
    def view(self) -> Iterator[None]:
        """Context in which everything read is as of one moment."""
        with self.server.lock:
            if self._unit is not None:
                yield
                return
            self._unit = _unit_of_work(self._header())
            try:
                yield
            finally:
                self._unit = None

    @contextmanager
    def change(self) -> Iterator[None]:
        """Context whose changes are all made when it ends; if it raises, none is.

        Raises:
            BlockingIOError: If others keep changing it.
            ConnectionError: If the server cannot be reached.
            PermissionError: If the store is read only.
        """
        with self.server.lock:
            if self.read_only:
                raise PermissionError(f"{self.path} was opened to be read only, with read_only=True.")
            if self._unit is not None:
                assert self._unit.is_change
                yield
                return
            self.create()
            header, is_untidy = self._lease.acquire()
            if is_untidy:
                self._tidy(header)
            self._unit = _unit_of_work(header, is_change=True)
            try:
                try:
                    yield
                except BaseException:
                    self._lease.release(header)
                    raise
                self._lease.release(self._commit(header))
            finally:
                self._unit = None

    def create(self) -> None:
        """Makes the collection and its indexes, as far as they do not exist."""
        if self._is_prepared:
            return
        if not self._found():
            assert self.dim is not None
            try:
                with self.server.client() as client:
                    client.create_collection(
                        self.collection,
                        vectors_config={KEY: models.VectorParams(size=self.dim, distance=models.Distance.DOT)},
                        replication_factor=self.replication_factor,
                        write_consistency_factor=self.replication_factor // 2 + 1,
                    )
            except OSError:
                if not self._found():  # Otherwise another machine made it at the same time.
                    raise
                self._check_collection()
        if self.server.is_remote:  # Local mode has no indexes, and warns.
            for name, kind in _INDEXES.items():
                with self.server.client() as client:
                    result = client.create_payload_index(self.collection, name, kind, wait=True, ordering=STRONG)
                self.server.check_completed(result)
        self._exists = self._is_prepared = True

    def namespaces(self) -> list[str]:
        """The names of all namespaces that hold or held facts."""
        with self.server.lock:
            with self.server.client() as client:
                names = [collection.name for collection in client.get_collections().collections]
            own = [name for name in names if name == self.name or name.startswith(f"{self.name}-ns-")]
            headers = [read_header(self.server, name, self.namespace) for name in own]
        return sorted(header["namespace"] for header in headers if header["next_id"])

    # ------------------------------------------------------------------ points

    def retrieve(self, ids: Sequence[int], with_keys: bool) -> list[models.Record]:
        """The points of facts."""
        if not self._found():
            return []
        points = [_point_id(self.unit.generation, id) for id in ids]
        with self.server.client() as client:
            return client.retrieve(self.collection, points, with_vectors=with_keys, consistency=MAJORITY)

    def scroll(self, condition: models.Filter, with_keys: bool) -> Iterator[models.Record]:
        """All points that match a filter."""
        offset, limit = None, 256 if with_keys else 4096
        while self._found():
            with self.server.client() as client:
                records, offset = client.scroll(
                    self.collection,
                    condition,
                    limit=limit,
                    offset=offset,
                    with_vectors=with_keys,
                    consistency=MAJORITY,
                )
            yield from records
            if offset is None:
                return

    # ------------------------------------------------------------------ writing

    def _header(self) -> Header:
        return self._lease.header() if self._found() else first_header(self.namespace)

    def _commit(self, header: Header) -> Header:
        """Writes the change; returns the header that made it count."""
        unit = self.unit
        try:
            header = self._write_points(header)
        except BaseException:
            self._lease.release(header, is_tidy=False)
            raise
        changes = {
            **vars(unit.state),
            "generation_now": unit.next_generation,
            "is_tidy": not unit.is_rekeyed,
        }
        failure: OSError | None = None
        try:
            self._lease.replace(header, **changes)
        except OSError as error:
            failure = error
        try:
            found = self._header()
            if failure is not None and found == header:
                # What was sent may still be on its way. With another header in place, it will come too late.
                self._lease.replace(header, writer=NOBODY, is_tidy=False)
                found = self._header()
        except OSError as error:
            raise ConnectionError(
                f"Qdrant at {self.server.location} was lost in the last step of a change: it was made whole or not at "
                f"all, and reading will show which, when it can be reached again."
            ) from error
        new = {**header, **changes, "version": header["version"] + 1}
        if found != new:
            raise failure or self._lease.lost()
        return new

    def _write_points(self, header: Header) -> Header:
        for number, batch in enumerate(self._batches(header["version"])):
            if number:
                header = self._lease.renew(header)
            self._lease.check()
            with self.server.client() as client:
                results = client.batch_update_points(self.collection, batch, wait=True, ordering=STRONG)
            self.server.check_completed(*results)
        return header

    def _batches(self, version: int) -> Iterator[list[Any]]:
        """The operations of each request: one request for all but the largest changes."""
        unit, step = self.unit, max(1, 2**18 // (self.dim or 1))
        written = list(unit.written)
        endings = [
            models.SetPayloadOperation(
                set_payload=models.SetPayload(payload=ending, points=[_point_id(unit.generation, id)])
            )
            for id, ending in unit.ended.items()
        ]
        are_few = 0 < len(written) <= step and len(endings) < 1000
        # A writer that lost its lease without noticing must not overwrite newer points.
        older = models.FieldCondition(key="version", range=models.Range(lte=version))
        for start in range(0, len(written), step):
            points = [self._point(id, unit.rows[id], version) for id in written[start : start + step]]
            upsert = models.PointsList(points=points, update_filter=models.Filter(must=[older]))
            yield [models.UpsertOperation(upsert=upsert), *(endings if are_few else [])]
        for start in range(0, 0 if are_few else len(endings), 1000):
            yield endings[start : start + 1000]

    def _point(self, id: int, row: Row, version: int) -> models.PointStruct:
        payload = {name: value for name, value in row.columns.items() if value is not None}
        payload |= {"generation": self.unit.next_generation, "version": version}
        vector: dict[str, Any] = {} if row.key is None else {KEY: row.key.tolist()}
        return models.PointStruct(id=_point_id(self.unit.next_generation, id), vector=vector, payload=payload)

    def _tidy(self, header: Header) -> None:
        """Deletes what unfinished changes left behind, and points of former generations."""
        is_fact = models.FieldCondition(key="id", range=models.Range(gte=0))
        is_new = models.FieldCondition(key="id", range=models.Range(gte=header["next_id"]))
        is_current = models.FieldCondition(key="generation", match=models.MatchValue(value=header["generation_now"]))
        has_not_left = models.FieldCondition(key="departure", range=models.Range(gte=header["num_past"]))
        ending = [*ENDING, "ending_sum"]
        with self.server.client() as client:
            results = [
                client.delete(self.collection, models.FilterSelector(filter=void), wait=True, ordering=STRONG)
                for void in (models.Filter(must=[is_new]), models.Filter(must=[is_fact], must_not=[is_current]))
            ]
            results.append(
                client.delete_payload(
                    self.collection, ending, models.Filter(must=[has_not_left]), wait=True, ordering=STRONG
                )
            )
        self.server.check_completed(*results)

    # ------------------------------------------------------------------ the collection

    def _found(self) -> bool:
        if not self._exists:
            with self.server.client() as client:
                self._exists = client.collection_exists(self.collection)
        return self._exists

    def _check_collection(self) -> None:
        with self.server.client() as client:
            vectors = client.get_collection(self.collection).config.params.vectors
        params = vectors.get(KEY) if isinstance(vectors, dict) else None
        if params is None or params.distance != models.Distance.DOT:
            raise ValueError(f"collection must be that of a knowledge base, got {self.collection!r}, which is not.")
        if self.dim not in (None, params.size):
            raise ValueError(f"dim must be {params.size}, the width of the keys in {self.path}, got {self.dim}.")
        self.dim = params.size


def _unit_of_work(header: Header, is_change: bool = False) -> UnitOfWork:
    state = State(**{name: header[name] for name in vars(State())})
    return UnitOfWork(state, header["generation_now"], state, is_change)


def _point_id(generation: int, id: int) -> str:
    return str(uuid.UUID(int=generation << 64 | id))


def _digest(namespace: str) -> str:
    return hashlib.sha256(namespace.encode()).hexdigest()[:32]
