"""A connection to Qdrant: a server or cluster by its URL, or its local mode, for tests."""

from __future__ import annotations

import os
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import grpc
import httpx
from qdrant_client import QdrantClient
from qdrant_client.common.client_exceptions import QdrantException
from qdrant_client.http.exceptions import ApiException, ResponseHandlingException
from qdrant_client.models import ReadConsistencyType, UpdateResult, UpdateStatus, WriteOrdering

from ..files import user_path

#: With this consistency, a read sees every change that was acknowledged,
MAJORITY = ReadConsistencyType.MAJORITY
#: and in this order, with `wait=True`, a change is made when the request returns.
STRONG = WriteOrdering.STRONG

_LEAST_VERSION = (1, 16)  # The first with conditional updates.


class Server:
    """The client, and what all who use it share.

    Args:
        location: A URL, a directory, or ":memory:".
        timeout: Seconds that a request may take. A connection that fails is tried once more.
        client_options: Further arguments of `QdrantClient`.

    Attributes:
        is_remote: Whether it is a server, rather than local mode.
        lock: Held during every use.
        turn: A condition of the lock, to wait on while other threads use the connection.
        lease_timeout: After so many seconds without being renewed, a lease has expired.
        lease_deadline: After so many, its writer no longer counts on it.

    Raises:
        BlockingIOError: If the directory is in use.
        ConnectionError: If the server cannot be reached.
        ValueError: If the server is too old.
    """

    def __init__(self, location: str | os.PathLike[str], timeout: int, **client_options: Any) -> None:
        self.location = os.fspath(location)
        self.is_remote = "://" in self.location
        self.timeout = timeout
        self.lease_timeout = 3.0 * timeout
        self.lease_deadline = self.lease_timeout - timeout
        self.lock = threading.RLock()
        self.turn = threading.Condition(self.lock)
        self._client: QdrantClient | None = None
        if self.is_remote:
            client_options.setdefault("transport", httpx.HTTPTransport(retries=1))
            client_options |= {"url": self.location, "timeout": timeout, "check_compatibility": False}
            self._client = QdrantClient(**client_options)
            self._check_version()
        else:
            in_memory = self.location == ":memory:"
            place: dict[str, Any] = {"location": self.location} if in_memory else {"path": str(user_path(location))}
            try:
                self._client = QdrantClient(**place, force_disable_check_same_thread=True)
            except RuntimeError as error:
                raise BlockingIOError(f"{self.location} is in use: Qdrant's local mode serves one process.") from error

    @contextmanager
    def client(self) -> Iterator[QdrantClient]:
        """Context that gives the client, and turns its failures into errors that say where they happened."""
        if self._client is None:
            raise ValueError(f"Qdrant at {self.location} is closed: open it again to use it.")
        try:
            yield self._client
        except (ResponseHandlingException, grpc.RpcError) as error:
            raise ConnectionError(
                f"Qdrant at {self.location} cannot be reached, or did not answer in {self.timeout} s: {error}"
            ) from error
        except (ApiException, QdrantException) as error:
            raise OSError(f"Qdrant at {self.location} refused a request: {error}") from error

    def check_completed(self, *results: UpdateResult) -> None:
        """Raises an OSError unless all these changes, made with `wait=True`, are complete."""
        for result in results:
            if result.status != UpdateStatus.COMPLETED:
                raise OSError(f"Qdrant at {self.location} did not complete a change: it says {result.status}.")

    @property
    def is_open(self) -> bool:
        """Whether it can still be used."""
        return self._client is not None

    def close(self) -> None:
        """Closes the connection. May be called more than once."""
        with self.lock:
            client, self._client = self._client, None
            if client is not None:
                client.close()

    def _check_version(self) -> None:
        with self.client() as client:
            version = client.info().version
        numbers = tuple(int(number) for number in re.findall(r"\d+", version)[:2])
        if numbers < _LEAST_VERSION:
            least = ".".join(map(str, _LEAST_VERSION))
            raise ValueError(f"Qdrant at {self.location} must be version {least} or newer, got {version}.")
