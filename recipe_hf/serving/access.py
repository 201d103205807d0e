"""Who may do what: keys, roles, namespaces, and how much of it."""

from __future__ import annotations

import logging
import math
import re
import time
from dataclasses import dataclass
from http import HTTPStatus
from ipaddress import ip_address
from typing import Annotated, Any

from fastapi import Depends, Request, Security
from fastapi.security import HTTPAuthorizationCredentials, HTTPBearer
from limits import RateLimitItem, parse
from limits.storage import MemoryStorage
from limits.strategies import MovingWindowRateLimiter
from starlette.concurrency import run_in_threadpool

from .keys import ROLES, Key, Keys, Role
from .problems import Problem, busy

logger = logging.getLogger(__name__)

_bearer = HTTPBearer(auto_error=False, description="A key that `recipe-hf keys add` gave.")


@dataclass(frozen=True)
class Principal:
    """Who asks.

    Attributes:
        name: Names the key.
        role: What it may do.
        namespace: Whose facts it sees; None for those of any.
    """

    name: str
    role: Role
    namespace: str | None


LOCAL = Principal("local", "admin", None)


def check_address(host: str, keys: Keys | None) -> None:
    """Refuses to listen where others can reach it while nobody needs a key.

    Raises:
        ValueError: If `host` is no address of loopback, and there are no keys.
    """
    if not is_loopback(host) and not keys:
        raise ValueError(
            f"host must be one of loopback, such as 127.0.0.1, as long as there are no keys, got {host!r}: "
            f"`recipe-hf keys add` makes them."
        )


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach what listens on `host`."""
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return host.lower() == "localhost"


class Rates:
    """How many requests a key may make, and how many without a good key may come from one address.

    Args:
        rate: Such as `"600/minute"`; None for any number.

    Raises:
        ValueError: If it is not.
    """

    def __init__(self, rate: str | None) -> None:
        self._limiter = MovingWindowRateLimiter(MemoryStorage())
        try:
            self._rate = None if rate is None else parse(rate)
        except ValueError as error:
            raise ValueError(f"rate must be one such as '600/minute' or '20/second', got {rate!r}.") from error
        self._of_strangers = parse("60/minute")

    def count(self, principal: Principal) -> None:
        """Counts a request; raises a problem if there were too many."""
        if self._rate is not None:
            self._hit(self._rate, "key", principal.name)

    def count_stranger(self, address: str) -> None:
        """Counts a request without a good key."""
        self._hit(self._of_strangers, "address", address)

    def _hit(self, rate: RateLimitItem, *who: str) -> None:
        if not self._limiter.hit(rate, *who):
            window = self._limiter.get_window_stats(rate, *who)
            after = max(1, math.ceil(window.reset_time - time.time()))
            raise busy(f"At most {rate} are answered: try again later.", HTTPStatus.TOO_MANY_REQUESTS, after)


def principal(
    request: Request, sent: Annotated[HTTPAuthorizationCredentials | None, Security(_bearer)] = None
) -> Principal:
    """Who asks; a problem if it cannot be told."""
    keys: Keys | None = request.app.state.keys
    rates: Rates = request.app.state.rates
    if keys is None:
        _check_local(request)
        request.state.principal = LOCAL
        return LOCAL
    key = _key_of(keys, sent)
    if key is None:
        raise _stranger(request)
    found = request.state.principal = Principal(key.id, key.role, key.namespace)
    rates.count(found)
    return found


async def admit(request: Request) -> None:
    """Refuses who has no good key before the body of the request is read, as FastAPI does before any dependency."""
    keys: Keys | None = request.app.state.keys
    if keys is not None and await run_in_threadpool(_key_of, keys, await _bearer(request)) is None:
        raise _stranger(request)


def _stranger(request: Request) -> Problem:
    """The refusal of a request without a good key, which is counted."""
    rates: Rates = request.app.state.rates
    rates.count_stranger(request.client.host if request.client else "")
    needed = "A valid key is needed: `Authorization: Bearer KEY`."
    return Problem(HTTPStatus.UNAUTHORIZED, needed, {"WWW-Authenticate": "Bearer"})


def _key_of(keys: Keys, sent: HTTPAuthorizationCredentials | None) -> Key | None:
    try:
        return None if sent is None else keys.find(sent.credentials)
    except (OSError, ValueError) as error:
        logger.error("Keys cannot be read, so nobody is let in: %s", error)
        raise busy("Keys cannot be read now; the log of the server says why.") from error


def _check_local(request: Request) -> None:
    """Where nobody needs a key, keeps out the pages of other sites that a browser on this machine shows."""
    # Read by hand: what is no address at all must be refused, too.
    host, origin = request.headers.get("host", ""), request.headers.get("origin")
    name = re.sub(r":\d*$", "", host).removeprefix("[").removesuffix("]")
    is_own = origin is None or origin.partition("://")[2] == host
    is_own &= request.headers.get("sec-fetch-site") not in ("cross-site", "same-site")
    if not is_loopback(name) or not is_own:
        raise Problem(
            HTTPStatus.FORBIDDEN,
            "Without keys only this machine is answered, by its own name: `recipe-hf keys add` makes keys.",
        )


def _at_least(role: Role) -> Any:
    def allowed(who: Annotated[Principal, Depends(principal)]) -> Principal:
        if ROLES.index(who.role) < ROLES.index(role):
            raise Problem(HTTPStatus.FORBIDDEN, f"This takes a key with the role {role}, got one with {who.role}.")
        return who

    return Depends(allowed)


Asks = Annotated[Principal, _at_least("ask")]
Edits = Annotated[Principal, _at_least("edit")]
Admins = Annotated[Principal, _at_least("admin")]


def namespace_of(principal: Principal, wanted: str | None) -> str:
    """The namespace that a request is about: the one wanted, or else the key's own.

    Raises:
        Problem: If it is not the key's.
    """
    if principal.namespace is not None and wanted not in (None, principal.namespace):
        raise Problem(HTTPStatus.FORBIDDEN, f"namespace must be {principal.namespace!r}, the key's, got {wanted!r}.")
    return wanted if wanted is not None else principal.namespace or ""
