"""Keys of clients: a file that holds a hash of each, and never the key itself.

A key has 256 random bits, so that nobody finds it by guessing, however fast the hash is. The file is read again as
soon as it is another: what is added or revoked counts from the next request on, in every server that uses it.
"""

from __future__ import annotations

import hashlib
import hmac
import json
import os
import secrets
import tempfile
import threading
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal, get_args

from ..knowledge import timestamps
from ..knowledge.checks import check_namespace
from ..knowledge.files import sync_directory, user_path

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

Role = Literal["ask", "edit", "admin"]
ROLES: tuple[Role, ...] = get_args(Role)
_PREFIX = "recipe"
_NOBODY = hashlib.sha256(b"").hexdigest()


@dataclass(frozen=True)
class Key:
    """What is kept of a key.

    Attributes:
        id: Names it, in the key too.
        role: What it may do: `"ask"`, `"edit"` facts too, or as `"admin"` manage keys too.
        namespace: Whose facts it sees; None for those of any.
        name: Whose it is, for people.
        created_at: When it was added.
        sha256: Hash of the secret part.
    """

    id: str
    role: Role
    namespace: str | None
    name: str
    created_at: str
    sha256: str


class Keys:
    """The keys in a file, which need not be there before the first is added.

    Args:
        path: The file; nobody but its owner may read it.

    Raises:
        PermissionError: If others than the owner may read or write it.
        ValueError: If it is damaged.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = user_path(path)
        self._lock = threading.Lock()
        self._seen: tuple[int, ...] | None = None
        self._keys: dict[str, Key] = {}
        self._read()

    def __len__(self) -> int:
        return len(self._current())

    def list(self) -> list[Key]:
        """All keys, oldest first."""
        return list(self._current().values())

    def find(self, token: str) -> Key | None:
        """The key that a client sent; None if it is none, or was revoked. Takes as long whether there is one or not.

        Raises:
            OSError: If the file cannot be read.
            ValueError: If it is damaged.
        """
        _, _, rest = token.partition("-")
        id, _, secret = rest.partition("-")
        key = self._current().get(id)
        expected = _NOBODY if key is None else key.sha256
        is_right = hmac.compare_digest(_hash(secret), expected)
        return key if key is not None and is_right and token.startswith(f"{_PREFIX}-") else None

    def add(self, role: Role, namespace: str | None = None, name: str = "") -> tuple[str, Key]:
        """Adds a key; gives it, which is the only time that it is told, and what is kept of it.

        Raises:
            OSError: If the file cannot be written.
            ValueError: If an argument is not as described.
        """
        if role not in ROLES:
            raise ValueError(f"role must be 'ask', 'edit' or 'admin', got {role!r}.")
        if namespace is not None:
            check_namespace(namespace)
        id, secret = secrets.token_hex(6), secrets.token_urlsafe(32)
        key = Key(id, role, namespace, name, timestamps.now(), _hash(secret))
        self._change(lambda keys: keys | {id: key})
        return f"{_PREFIX}-{id}-{secret}", key

    def revoke(self, id: str, may: Callable[[Key], bool] = lambda key: True) -> Key:
        """Takes a key back, if it is one that `may` be.

        Raises:
            KeyError: If there is none with this id.
            OSError: If the file cannot be written.
        """
        revoked: list[Key] = []

        def without(keys: dict[str, Key]) -> dict[str, Key]:
            revoked.extend(key for key in keys.values() if key.id == id and may(key))
            if not revoked:
                raise KeyError(f"id must be that of a key, got {id!r}.")
            return {other: key for other, key in keys.items() if other != id}

        self._change(without)
        return revoked[0]

    # ------------------------------------------------------------------ the file

    def _current(self) -> dict[str, Key]:
        with self._lock:
            return self._read()

    def _read(self) -> dict[str, Key]:
        try:
            state = self.path.stat()
        except FileNotFoundError:  # Nobody's key is good then.
            self._seen, self._keys = None, {}
            return self._keys
        seen = (state.st_ino, state.st_size, state.st_mtime_ns, state.st_ctime_ns)
        if seen != self._seen:
            self._seen, self._keys = None, {}
            if os.name == "posix" and state.st_mode & 0o077:
                raise PermissionError(f"{self.path} must be readable by its owner only: chmod 600 {self.path}.")
            try:
                rows = json.loads(self.path.read_bytes())["keys"]
                self._keys = {row["id"]: Key(**row) for row in rows}
            except (ValueError, KeyError, TypeError) as error:
                raise ValueError(f"{self.path} is damaged: it holds no keys ({type(error).__name__}).") from error
            self._seen = seen
        return self._keys

    def _change(self, change: Callable[[dict[str, Key]], dict[str, Key]]) -> None:
        """Replaces the file by a changed one; programs that change it do so one after the other."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        lock = os.open(self.path.with_name(self.path.name + "-lock"), os.O_CREAT | os.O_RDWR, 0o600)
        try:
            if fcntl is not None:
                fcntl.flock(lock, fcntl.LOCK_EX)
            keys = change(self._current())
            text = json.dumps({"keys": [asdict(key) for key in keys.values()]}, indent=2)
            with tempfile.NamedTemporaryFile("w", dir=self.path.parent, delete=False) as file:  # Of mode 0600.
                file.write(text)
                file.flush()
                os.fsync(file.fileno())
            os.replace(file.name, self.path)
            sync_directory(Path(self.path.parent))
        finally:
            os.close(lock)


def _hash(secret: str) -> str:
    return hashlib.sha256(secret.encode("utf-8", "surrogatepass")).hexdigest()
