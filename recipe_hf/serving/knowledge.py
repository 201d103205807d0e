"""Facts over HTTP: the routes under /v1/knowledge."""

from __future__ import annotations

import bisect
import hashlib
import io
import json
from collections.abc import Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from http import HTTPStatus
from tempfile import SpooledTemporaryFile
from typing import Annotated, Any

from fastapi import APIRouter, Body, Depends, Header, Path, Query, Request, Response
from fastapi.responses import StreamingResponse
from starlette.concurrency import run_in_threadpool
from starlette.datastructures import UploadFile

from ..knowledge import KnowledgeBase
from ..knowledge.facts import Fact
from ..modeling.knowledge_mixin import OnConflict
from .access import Asks, Edits, Principal, namespace_of
from .changes import Changes, Made
from .limits import MAX_NAMESPACE, MAX_PAGE, MAX_TEXT
from .preview import preview
from .problems import READ_ONLY, Problem, TellingRoute, responses
from .receipts import Claim
from .schemas import (
    Added,
    ExplanationOut,
    FactOut,
    FactsToAdd,
    FactsToPreview,
    Found,
    GivenFact,
    HistoryPage,
    Page,
    PastFactOut,
    Preview,
    Replaced,
    Search,
    SearchResult,
)

# How many facts are read for one page at most, where `q` passes few.
_READ = 5000
# How much of a file is held in memory.
_IN_MEMORY = 2**20
_ENDING = ("ended_at", "reason", "replaced_by")

router = APIRouter(
    prefix="/v1/knowledge",
    tags=["knowledge"],
    route_class=TellingRoute,
    responses=responses(
        HTTPStatus.BAD_REQUEST,
        HTTPStatus.UNAUTHORIZED,
        HTTPStatus.FORBIDDEN,
        HTTPStatus.UNPROCESSABLE_ENTITY,
        HTTPStatus.TOO_MANY_REQUESTS,
        HTTPStatus.INTERNAL_SERVER_ERROR,
        HTTPStatus.SERVICE_UNAVAILABLE,
    ),
)
_CHANGES = responses(HTTPStatus.CONFLICT, HTTPStatus.REQUEST_ENTITY_TOO_LARGE, HTTPStatus.INSUFFICIENT_STORAGE)
_FILES = _CHANGES | responses(HTTPStatus.UNSUPPORTED_MEDIA_TYPE)
_BODY = responses(HTTPStatus.REQUEST_ENTITY_TOO_LARGE)
_ONE = responses(HTTPStatus.NOT_FOUND)


@dataclass(frozen=True)
class Place:
    """Whose facts a request is about, who asks, and how.

    Attributes:
        who: Who asks.
        namespace: Whose facts.
        changes: What makes changes.
        model: The model.
    """

    who: Principal
    namespace: str
    changes: Changes
    model: Any

    @property
    def knowledge(self) -> KnowledgeBase:
        """The facts."""
        return self.changes.knowledge(self.namespace)

    def claim(self, key: str | None, request: bytes) -> AbstractContextManager[Claim | None]:
        """The right to carry a request out, once."""
        return self.changes.receipts.claim(self.who.name, key, request, self.changes.was_made)


_Namespace = Annotated[
    str | None, Query(max_length=MAX_NAMESPACE, description="Whose facts; by default those of the key.")
]


def _place(request: Request, who: Principal, namespace: str | None) -> Place:
    state = request.app.state
    return Place(who, namespace_of(who, namespace), state.changes, state.model)


def _read(request: Request, who: Asks, namespace: _Namespace = None) -> Place:
    return _place(request, who, namespace)


def _write(request: Request, who: Edits, namespace: _Namespace = None) -> Place:
    if request.app.state.settings.read_only:
        raise Problem(HTTPStatus.FORBIDDEN, READ_ONLY)
    return _place(request, who, namespace)


ToRead = Annotated[Place, Depends(_read)]
ToChange = Annotated[Place, Depends(_write)]
Id = Annotated[int, Path(ge=0, lt=2**63, description="The fact's id.")]
IdempotencyKey = Annotated[
    str | None,
    Header(
        min_length=1,
        max_length=255,
        description="Names this request: sent again within a week, it is answered again and not carried out again.",
    ),
]
After = Annotated[int | None, Query(ge=0, lt=2**63, description="`next` of the page before.")]
Limit = Annotated[int, Query(ge=1, le=MAX_PAGE, description="How many at most.")]


def _once(
    request: Request, response: Response, place: Place, key: str | None, body: Any, carry_out: Any
) -> dict[str, Any]:
    """Carries a request out, or answers what it was answered before."""
    asked = [request.method, request.url.path, place.namespace, sorted(request.query_params.items()), body]
    with place.claim(key, json.dumps(asked, sort_keys=True).encode()) as claim:
        if claim is not None and claim.earlier is not None:
            response.headers["Idempotency-Replayed"] = "true"
            return claim.earlier.answer
        made: Made = carry_out(claim)
        return made.answer


@router.post("", response_model=Added, responses=_CHANGES)
def add(
    place: ToChange, given: FactsToAdd, request: Request, response: Response, idempotency_key: IdempotencyKey = None
) -> dict[str, Any]:
    """Adds facts, all or none. They are on disk, and used for the next request, when this answers."""

    def carry_out(claim: Claim | None) -> Made:
        return place.changes.add(place.who, place.namespace, given.facts, given.on_conflict, claim)

    return _once(request, response, place, idempotency_key, given.model_dump(), carry_out)


@router.get("", response_model=Page)
def list_facts(
    place: ToRead,
    limit: Limit = 100,
    after: After = None,
    q: Annotated[
        str | None, Query(max_length=MAX_TEXT, description="Text that a fact holds, in any case; also in metadata.")
    ] = None,
    newest: Annotated[bool, Query(description="Whether the newest come first.")] = False,
) -> Page:
    """The facts, oldest first. With `q`, a page may hold few of them or none: go on while there is a next one."""
    knowledge = place.knowledge
    ids, total = knowledge.ids(), len(knowledge)
    if newest:
        ids.reverse()
        start = 0 if after is None else bisect.bisect_right(ids, -after, key=lambda id: -id)
    else:
        start = 0 if after is None else bisect.bisect_right(ids, after)
    found: list[FactOut] = []
    at = start
    while at < min(len(ids), start + _READ) and len(found) < limit:
        fact = knowledge.get(ids[at])
        at += 1
        if fact is not None and (q is None or _holds(fact, q)):
            found.append(FactOut.of(fact))
    return Page(facts=found, next=ids[at - 1] if at < len(ids) else None, total=total)


def _holds(fact: Fact, text: str) -> bool:
    parts = [fact.statement, fact.prompt or "", fact.answer or ""]
    parts += [json.dumps(fact.metadata, ensure_ascii=False)] if fact.metadata else []
    return any(text.casefold() in part.casefold() for part in parts)


@router.get("/history", response_model=HistoryPage)
def history(
    place: ToRead,
    limit: Limit = 100,
    after: After = None,
    prompt: Annotated[str | None, Query(max_length=MAX_TEXT, description="What the facts were about.")] = None,
) -> HistoryPage:
    """The facts that were replaced or removed, those that left last first."""
    past = place.knowledge.history(prompt)
    end = len(past) if after is None else min(after, len(past))
    start = max(0, end - limit)
    facts = [PastFactOut.of(fact) for fact in reversed(past[start:end])]
    return HistoryPage(facts=facts, next=start or None, total=len(past))


@router.post("/search", response_model=SearchResult, responses=_BODY)
def search(place: ToRead, given: Search) -> SearchResult:
    """The facts nearest to a query, whether they would be used for it or not."""
    nearest = place.model.nearest(given.query, given.k, where=given.where, namespace=place.namespace)
    return SearchResult(facts=[Found(fact=FactOut.of(fact), score=score) for fact, score in nearest])


@router.post("/explain", response_model=ExplanationOut, responses=_BODY)
def explain(place: ToRead, given: Search) -> ExplanationOut:
    """Which facts are used for a query, and why the others near it are not."""
    explanation = place.model.explain(given.query, given.k, where=given.where, namespace=place.namespace)
    return ExplanationOut.of(explanation)


@router.post("/preview", response_model=Preview, responses=_BODY | _ONE)
def preview_facts(place: ToRead, given: FactsToPreview) -> Preview:
    """What adding facts would change: which facts would leave, and what would be used and answered. Keeps nothing."""
    return preview(place.model, place.namespace, given)


@router.get("/export", response_class=StreamingResponse, responses={200: {"content": {"application/x-ndjson": {}}}})
def export(
    place: ToRead, history: Annotated[bool, Query(description="Whether to write past facts too.")] = False
) -> StreamingResponse:
    """All facts as JSON lines, as they are when this begins. `import`, and `recipe-hf add --from`, read them."""
    knowledge = place.knowledge
    ids = knowledge.ids()
    past = sorted({fact.id for fact in knowledge.history()} - {*ids}) if history else []
    headers = {"Content-Disposition": 'attachment; filename="knowledge.jsonl"'}
    return StreamingResponse(_lines(knowledge, ids, past), media_type="application/x-ndjson", headers=headers)


def _lines(knowledge: KnowledgeBase, ids: list[int], past: list[int]) -> Iterator[str]:
    """Facts never change: one that left meanwhile is written as it was."""
    for left_out, chosen in ((_ENDING, ids), ((), past)):
        for start in range(0, len(chosen), 256):
            facts = [fact for id in chosen[start : start + 256] if (fact := knowledge.find(id)) is not None]
            rows = [{k: v for k, v in fact.to_dict().items() if k not in left_out} for fact in facts]
            yield "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)


_JSON_LINES = {"schema": {"type": "string", "description": "JSON lines: a fact on each, as `facts` has them."}}
_FORM = {"type": "object", "required": ["file"], "properties": {"file": {"type": "string", "format": "binary"}}}
_FILE_BODY = {
    "requestBody": {
        "required": True,
        "content": {"application/x-ndjson": _JSON_LINES, "multipart/form-data": {"schema": _FORM}},
    }
}


@router.post("/import", response_model=Added, responses=_FILES, openapi_extra=_FILE_BODY)
async def import_facts(
    place: ToChange,
    request: Request,
    response: Response,
    on_conflict: OnConflict = "replace",
    idempotency_key: IdempotencyKey = None,
) -> dict[str, Any]:
    """Adds the facts of a file, all or none: JSON lines, as the body or as `file` of a form."""
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind == "multipart/form-data":
        async with request.form(max_files=1, max_fields=0) as form:
            file = form.get("file")
            if not isinstance(file, UploadFile):
                raise Problem(HTTPStatus.UNPROCESSABLE_ENTITY, "file must be a file of JSON lines, got none.")
            return await run_in_threadpool(_import, place, file.file, on_conflict, request, response, idempotency_key)
    if kind not in ("application/x-ndjson", "application/jsonl", "application/json-lines"):
        detail = f"Content-Type must be application/x-ndjson or multipart/form-data, got {kind!r}."
        raise Problem(HTTPStatus.UNSUPPORTED_MEDIA_TYPE, detail)
    with SpooledTemporaryFile(_IN_MEMORY) as spooled:
        async for chunk in request.stream():
            await run_in_threadpool(spooled.write, chunk)
        return await run_in_threadpool(_import, place, spooled, on_conflict, request, response, idempotency_key)


def _import(
    place: Place, file: Any, on_conflict: OnConflict, request: Request, response: Response, key: str | None
) -> dict[str, Any]:
    file.seek(0)
    digest = hashlib.file_digest(file, "sha256").hexdigest()
    file.seek(0)
    lines = io.TextIOWrapper(file, encoding="utf-8-sig")

    def carry_out(claim: Claim | None) -> Made:
        return place.changes.add_file(place.who, place.namespace, lines, on_conflict, claim)

    try:
        return _once(request, response, place, key, digest, carry_out)
    except UnicodeDecodeError as error:
        raise ValueError(f"file must be text in UTF-8: {error}.") from error
    finally:
        lines.detach()


@router.get("/{id}", response_model=FactOut, responses=_ONE)
def get(place: ToRead, id: Id) -> FactOut:
    """A fact."""
    return FactOut.of(place.knowledge[id])


@router.put("/{id}", response_model=Replaced, responses=_CHANGES | _ONE)
def replace(
    place: ToChange,
    id: Id,
    fact: Annotated[GivenFact, Body()],
    request: Request,
    response: Response,
    idempotency_key: IdempotencyKey = None,
) -> dict[str, Any]:
    """Puts a new fact, with an id of its own, in the place of this one; 409 if that left meanwhile."""

    def carry_out(claim: Claim | None) -> Made:
        return place.changes.replace(place.who, place.namespace, id, fact, claim)

    answer = _once(request, response, place, idempotency_key, fact, carry_out)
    new = place.knowledge.find(answer["ids"][0])
    assert new is not None
    return {**answer, "fact": FactOut.of(new)}


@router.delete("/{id}", status_code=HTTPStatus.NO_CONTENT, responses=_CHANGES | _ONE)
def remove(place: ToChange, id: Id) -> None:
    """Removes a fact. It stays in the history, from where it can be restored."""
    place.changes.remove(place.who, place.namespace, id)


@router.post("/{id}/restore", response_model=Added, responses=_CHANGES | _ONE)
def restore(
    place: ToChange, id: Id, request: Request, response: Response, idempotency_key: IdempotencyKey = None
) -> dict[str, Any]:
    """Brings a fact of the history back, as a new one; what is there in its place goes to the history."""

    def carry_out(claim: Claim | None) -> Made:
        return place.changes.restore(place.who, place.namespace, id, claim)

    return _once(request, response, place, idempotency_key, None, carry_out)
