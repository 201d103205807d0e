"""The header of a namespace in Qdrant, and the lease that lets one writer at a time change what it says.

Qdrant promises that a change of one point is whole, and no more. So one point, the *header*, holds the state of the
namespace, and says what counts: a fact whose id is not below `next_id` is not there yet, and one whose departure is
not below `num_past` has not left yet. It is only ever replaced if it is still as it was read.

It also names the writer that holds the *lease*. A writer takes the lease if nobody has it, renews it while it writes,
and releases it at the end. A lease that has not been renewed for long has expired, and others may take it.
"""

from __future__ import annotations

import logging
import os
import socket
import time
import uuid
from typing import Any

from qdrant_client import models

from ..engine import State
from .server import MAJORITY, STRONG, Server

logger = logging.getLogger(__name__)

Header = dict[str, Any]

NOBODY = "nobody"
_POINT = str(uuid.UUID(int=2**128 - 1))


def read_header(server: Server, collection: str, namespace: str) -> Header:
    """The header of a collection that is there; that of an empty namespace where it has none yet."""
    with server.client() as client:
        found = client.retrieve(collection, [_POINT], consistency=MAJORITY)
    return found[0].payload or {} if found else first_header(namespace)


def first_header(namespace: str) -> Header:
    """The header of an empty namespace."""
    counts = {"generation_now": 0, "version": 0}
    return {**vars(State()), "namespace": namespace, **counts, "writer": NOBODY, "is_tidy": True}


class Lease:
    """The right to change a namespace.

    Args:
        server: The connection. Other threads may use it while this one waits.
        collection: The namespace's.
        namespace: Its name.
        path: What to call it in messages.
    """

    def __init__(self, server: Server, collection: str, namespace: str, path: str) -> None:
        self._server, self._collection, self._namespace, self._path = server, collection, namespace, path
        self._writer = f"process {os.getpid()} on {socket.gethostname()}, {uuid.uuid4().hex}"
        self._renewed_at = 0.0

    def header(self) -> Header:
        """The header as it is now."""
        return read_header(self._server, self._collection, self._namespace)

    def replace(self, header: Header, **changes: Any) -> Header:
        """Replaces the header that was read, unless another writer did so meanwhile; gives the new one."""
        new = {**header, **changes, "version": header["version"] + 1}
        point = models.PointStruct(id=_POINT, vector={}, payload=new)
        same = models.FieldCondition(key="version", match=models.MatchValue(value=header["version"]))
        unchanged = models.Filter(must=[same])
        with self._server.client() as client:
            result = client.upsert(self._collection, [point], update_filter=unchanged, wait=True, ordering=STRONG)
        self._server.check_completed(result)
        return new

    def acquire(self) -> tuple[Header, bool]:
        """Waits for the lease, and takes it.

        Returns:
            The header that says so, and whether the writer before may have left something unfinished.

        Raises:
            BlockingIOError: If others keep it for too long.
        """
        seen, since, start = -1, time.monotonic(), time.monotonic()
        while True:
            header = self.header()
            writer = header["writer"]
            if header["version"] != seen:
                seen, since = header["version"], time.monotonic()
            if writer in (NOBODY, self._writer) or time.monotonic() - since > self._server.lease_timeout:
                new = self.replace(header, writer=self._writer)
                if self.header() == new:
                    self._renewed_at = time.monotonic()
                    return new, writer != NOBODY or not header["is_tidy"]
            elif time.monotonic() - start > 4 * self._server.lease_timeout:
                raise BlockingIOError(f"{self._path} is being changed by {writer}, and others: try again later.")
            self._server.turn.wait(0.02)

    def renew(self, header: Header) -> Header:
        """Shows that this writer is alive; gives the new header.

        Raises:
            BlockingIOError: If another writer took the lease.
        """
        new = self.replace(header)
        if self.header() != new:
            raise self.lost()
        self._renewed_at = time.monotonic()
        return new

    def check(self) -> None:
        """Raises what `lost` gives if the lease was not renewed for so long that others may have taken it."""
        if time.monotonic() - self._renewed_at > self._server.lease_deadline:
            raise self.lost()

    def release(self, header: Header, **changes: Any) -> None:
        """Gives the lease back. If that fails, others wait until it expires; this writer need not."""
        try:
            self.replace(header, writer=NOBODY, **changes)
        except OSError as error:
            logger.warning(f"{self._path} is not released yet: {error}")

    def lost(self) -> OSError:
        """What to raise if another writer took the lease."""
        return BlockingIOError(f"{self._path} was taken over by another writer meanwhile, and nothing was changed.")
