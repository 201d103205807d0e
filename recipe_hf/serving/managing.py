"""Keys over HTTP: the routes under /v1/keys, for admins."""

from __future__ import annotations

from http import HTTPStatus
from typing import Annotated

from fastapi import APIRouter, Depends, Request
from pydantic import BaseModel, ConfigDict, Field

from .access import Admins, Principal, namespace_of
from .keys import Key, Keys, Role
from .limits import MAX_NAMESPACE
from .problems import Problem, TellingRoute, responses

router = APIRouter(
    prefix="/v1/keys",
    tags=["keys"],
    route_class=TellingRoute,
    responses=responses(
        HTTPStatus.BAD_REQUEST,
        HTTPStatus.UNAUTHORIZED,
        HTTPStatus.FORBIDDEN,
        HTTPStatus.NOT_FOUND,
        HTTPStatus.UNPROCESSABLE_ENTITY,
        HTTPStatus.TOO_MANY_REQUESTS,
        HTTPStatus.INTERNAL_SERVER_ERROR,
        HTTPStatus.SERVICE_UNAVAILABLE,
    ),
)


class NewKey(BaseModel):
    """A key to add."""

    model_config = ConfigDict(extra="forbid")

    role: Role
    namespace: Annotated[str, Field(max_length=MAX_NAMESPACE)] | None = Field(
        None, description="Whose facts it sees; by default those of the key that adds it, or of all."
    )
    name: str = Field("", max_length=256, description="Whose it is, for people.")


class KeyOut(BaseModel):
    """What is known of a key."""

    id: str
    role: Role
    namespace: str | None
    name: str
    created_at: str

    @classmethod
    def of(cls, key: Key) -> KeyOut:
        """The key as it is answered."""
        return cls(**{name: getattr(key, name) for name in KeyOut.model_fields})


class AddedKey(BaseModel):
    """A new key. It is told this once."""

    key: str
    id: str


def _keys(request: Request) -> Keys:
    keys: Keys | None = request.app.state.keys
    if keys is None:
        raise Problem(HTTPStatus.NOT_FOUND, "This server has no file of keys: `recipe-hf serve --keys` names one.")
    return keys


ManagedKeys = Annotated[Keys, Depends(_keys)]


def _manages(who: Principal, key: Key) -> bool:
    return who.namespace is None or key.namespace == who.namespace


@router.get("")
def list_keys(who: Admins, keys: ManagedKeys) -> list[KeyOut]:
    """The keys, oldest first; those of the admin's namespace, if the admin has one."""
    return [KeyOut.of(key) for key in keys.list() if _manages(who, key)]


@router.post("")
def add_key(who: Admins, keys: ManagedKeys, given: NewKey) -> AddedKey:
    """Adds a key, of the admin's own namespace, if the admin has one."""
    wanted = given.namespace if who.namespace is None else namespace_of(who, given.namespace)
    token, key = keys.add(given.role, wanted, given.name)
    return AddedKey(key=token, id=key.id)


@router.delete("/{id}", status_code=HTTPStatus.NO_CONTENT)
def revoke_key(who: Admins, keys: ManagedKeys, id: str) -> None:
    """Takes a key back."""
    keys.revoke(id, lambda key: _manages(who, key))
