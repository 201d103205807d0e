"""What is sent and answered under /v1/knowledge, as OpenAPI describes it."""

from __future__ import annotations

import math
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, WithJsonSchema

from ..knowledge.facts import Fact
from ..modeling.knowledge_mixin import OnConflict
from ..modeling.outputs import Explanation, Retrieval
from .limits import MAX_FACTS, MAX_NAMES, MAX_NEAREST, MAX_QUESTIONS, MAX_TEXT

_TEXT = {"type": "string", "minLength": 1, "maxLength": MAX_TEXT, "pattern": r"\S"}
_TIME = {"type": ["string", "null"], "description": "ISO 8601; UTC where it names no time zone."}
_SCHEMA_OF_FACT = {
    "title": "A new fact",
    "description": "A statement, a pair of prompt and answer, or an object with these and more.",
    "anyOf": [
        _TEXT,
        {"type": "array", "items": _TEXT, "minItems": 2, "maxItems": 2},
        {
            "type": "object",
            "properties": {
                "statement": {**_TEXT, "description": "What is encoded; by default prompt and answer together."},
                "prompt": {**_TEXT, "description": "What asks for the fact, to be continued with the answer."},
                "answer": _TEXT,
                "metadata": {"type": ["object", "null"]},
                "valid_from": _TIME,
                "valid_until": _TIME,
            },
            "anyOf": [{"required": ["statement"]}, {"required": ["prompt", "answer"]}],
            "additionalProperties": False,
        },
    ],
}
# Checked as in Python, so that the errors are those of Python.
GivenFact = Annotated[Any, WithJsonSchema(_SCHEMA_OF_FACT)]
GivenFacts = Annotated[list[GivenFact], Field(min_length=1, max_length=MAX_FACTS)]
Text = Annotated[str, Field(max_length=MAX_TEXT)]
Where = Annotated[dict[str, Any], Field(max_length=MAX_NAMES)]
Nearest = Annotated[int, Field(ge=1, le=MAX_NEAREST)]


class _Given(BaseModel):
    model_config = ConfigDict(extra="forbid")


class FactsToAdd(_Given):
    """Facts to add, all or none."""

    facts: GivenFacts
    on_conflict: OnConflict = "replace"


class Search(_Given):
    """A query, and how many facts to find near it."""

    query: Text
    k: Nearest = 5
    where: Where | None = Field(None, description="Values that the metadata of a fact must have.")


class FactsToPreview(_Given):
    """Facts that might be added, and questions that might then be answered otherwise."""

    facts: GivenFacts
    questions: Annotated[list[Text], Field(max_length=MAX_QUESTIONS)] = []
    on_conflict: OnConflict = "replace"
    in_place_of: Annotated[int, Field(ge=0, lt=2**63)] | None = Field(
        None, description="A fact in whose place the first one is put, as PUT does."
    )
    max_tokens: Annotated[int, Field(ge=1, le=256)] = 48


class FactOut(BaseModel):
    """A fact."""

    id: int
    statement: str
    prompt: str | None
    answer: str | None
    metadata: dict[str, Any]
    valid_from: str | None
    valid_until: str | None
    created_at: str

    @classmethod
    def of(cls, fact: Fact) -> Self:
        """The fact as it is answered."""
        return cls.model_construct(**{name: getattr(fact, name) for name in cls.model_fields})


class PastFactOut(FactOut):
    """A fact that left."""

    ended_at: str
    reason: Literal["removed", "replaced"]
    replaced_by: int | None


class Page(BaseModel):
    """Some of the facts."""

    facts: list[FactOut]
    next: int | None = Field(description="What to give as `after` for those that follow; null if none do.")
    total: int = Field(description="How many facts the namespace holds.")


class HistoryPage(BaseModel):
    """Some of the facts that left, those that left last first."""

    facts: list[PastFactOut]
    next: int | None = Field(description="What to give as `after` for those that left before; null if none did.")
    total: int = Field(description="How many left.")


class Superseded(BaseModel):
    """A fact that left for a new one."""

    id: int
    statement: str
    replaced_by: int


class Reported(BaseModel):
    """A fact that stays, though a new one answers what it does."""

    id: int
    statement: str
    by: int = Field(description="The new fact.")


class Added(BaseModel):
    """What came of adding facts."""

    ids: list[int] = Field(description="For each fact its id; with `keep` that of the fact that stayed.")
    superseded: list[Superseded]
    reported: list[Reported]


class Replaced(Added):
    """What came of replacing a fact."""

    fact: FactOut


class Found(BaseModel):
    """A fact near a query."""

    fact: FactOut
    score: float


class SearchResult(BaseModel):
    """The facts nearest to a query, best first, used or not."""

    facts: list[Found]


class CandidateOut(Found):
    """A fact near a query, and what becomes of it."""

    fired: bool
    reason: str
    probability: float


class ExplanationOut(BaseModel):
    """Which facts are used for a query, and why the others near it are not."""

    query: str
    threshold: float
    candidates: list[CandidateOut]
    note: str | None = Field(description="Why there are no candidates.")

    @classmethod
    def of(cls, explanation: Explanation) -> ExplanationOut:
        """The explanation as it is answered."""
        candidates = [
            CandidateOut(
                fact=FactOut.of(each.fact),
                score=each.score,
                fired=each.fired,
                reason=each.reason,
                probability=each.probability,
            )
            for each in explanation.candidates
        ]
        note = None if candidates else explanation.note
        return cls(query=explanation.query, threshold=explanation.threshold, candidates=candidates, note=note)


class Named(BaseModel):
    """A fact by id and statement. The id is null for a new fact."""

    id: int | None
    statement: str


class PreviewedFact(BaseModel):
    """What a new fact would do."""

    statement: str
    replaces: list[Named] = Field(description="Those about the same prompt.")
    supersedes: list[Named] | None = Field(
        description="Those that say in other words what it answers; null if the checkpoint has no verifier for that."
    )


class Outcome(BaseModel):
    """What is used for a question, and what is answered."""

    fired: bool
    fact: Named | None = Field(description="The nearest fact.")
    score: float | None
    threshold: float
    probability: float
    answer: str | None = Field(description="Null where the server does not generate by itself.")

    @classmethod
    def of(cls, hit: Retrieval, is_new: bool, answer: str | None) -> Outcome:
        """The outcome of a lookup."""
        fact = None
        if hit.id is not None and hit.statement is not None:
            fact = Named(id=None if is_new else hit.id, statement=hit.statement)
        return cls(
            fired=hit.fired,
            fact=fact,
            score=hit.score if math.isfinite(hit.score) else None,
            threshold=hit.threshold,
            probability=hit.probability,
            answer=answer,
        )


class PreviewedQuestion(BaseModel):
    """A question as it is answered now, and as it would be."""

    question: str
    before: Outcome
    after: Outcome


class Preview(BaseModel):
    """What would come of adding facts. Nothing is kept."""

    facts: list[PreviewedFact]
    questions: list[PreviewedQuestion]
