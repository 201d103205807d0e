"""Facts as data classes, new, present and past, and `parse_facts`, which checks what users give as facts."""

from __future__ import annotations

import json
import re
import unicodedata
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from numbers import Real
from typing import Any, Literal

from .timestamps import to_timestamp

_FIELDS = ("statement", "prompt", "answer", "metadata", "valid_from", "valid_until")
# Soft hyphen, zero-width space, word joiner, byte order mark, signs of direction, and operators of mathematics that
# are not shown. Joiners and non-joiners of letters, variation selectors and tags stay: with them it is another word.
_INVISIBLE = re.compile("[\u00ad\u061c\u200b\u200e\u200f\u202a-\u202e\u2060-\u206f\ufeff]")


@dataclass(frozen=True, kw_only=True)
class NewFact:
    """A fact that is not in a knowledge base yet. [`parse_facts`] makes and checks them.

    Attributes:
        statement: The sentence that is encoded into the fact's key, `k` in the paper.
        prompt: What asks for the fact, if it was given as a prompt and its answer.
        answer: How the prompt is to be continued.
        metadata: Anything JSON can hold.
        valid_from: From when it is used, ISO 8601, UTC; None for at once.
        valid_until: Until when it is used, ISO 8601, UTC; None for ever.
    """

    statement: str
    prompt: str | None = None
    answer: str | None = None
    metadata: dict[str, Any] = field(default_factory=dict, hash=False)
    valid_from: str | None = None
    valid_until: str | None = None

    @property
    def about(self) -> str:
        """What a knowledge base holds one fact about: the prompt, or the whole statement if there is none."""
        return self.statement if self.prompt is None else self.prompt

    @property
    def subject(self) -> tuple[str, str]:
        """`about` in a form to compare: which of the two it is, and its [`comparable`] text."""
        return "statement" if self.prompt is None else "prompt", comparable(self.about)

    @property
    def begin(self) -> str:
        """The earliest time at which the fact can be used; empty if unknown."""
        return self.valid_from or ""

    def is_valid_at(self, time: str) -> bool:
        """Whether the fact is used at `time`."""
        return (self.valid_from or "") <= time and (self.valid_until is None or time < self.valid_until)

    def has(self, where: Mapping[str, Any]) -> bool:
        """Whether the metadata contain all of `where`. Values are compared as JSON: 1 is neither 1.0 nor true."""
        return all(
            name in self.metadata and canonical(self.metadata[name]) == canonical(value)
            for name, value in where.items()
        )

    def conflicts_with(self, other: NewFact) -> bool:
        """Whether both are about one subject, and valid at the same time.

        A fact that ended before the other one was added does not conflict with it.
        """
        begin = max(self.begin, other.begin)
        both_last = all(fact.valid_until is None or begin < fact.valid_until for fact in (self, other))
        return self.subject == other.subject and both_last

    def to_dict(self) -> dict[str, Any]:
        """The fact as a JSON object, without what is empty."""
        return {name: value for name, value in vars(self).items() if value is not None and value != {}}


@dataclass(frozen=True, kw_only=True)
class Fact(NewFact):
    """A fact in a knowledge base.

    Attributes:
        id: Number of the fact in its knowledge base, never given to another one.
        created_at: When it was added, ISO 8601, UTC.
    """

    id: int
    created_at: str

    @property
    def begin(self) -> str:
        """The earliest time at which the fact can be used."""
        return max(self.valid_from or "", self.created_at)


@dataclass(frozen=True, kw_only=True)
class PastFact(Fact):
    """A fact that a knowledge base no longer uses.

    Attributes:
        ended_at: When it left, ISO 8601, UTC.
        reason: `"removed"`, or `"replaced"` by a fact with the same prompt.
        replaced_by: Id of the fact that took its place.
    """

    ended_at: str
    reason: Literal["removed", "replaced"]
    replaced_by: int | None = None


def canonical(value: object) -> str:
    """The JSON text of a value, the same for equal values."""
    return json.dumps(value, sort_keys=True)


def comparable(text: str) -> str:
    r"""`text` as prompts are compared, so that two are one if a reader sees no difference.

    Every run of whitespace is one space and none is at the ends, letters and their accents are composed (Unicode's
    NFC), and what is invisible and says nothing is left out. Case counts, and so do the forms of a character that
    look different, such as those of "x²" and "x2".

    >>> comparable(" a\u0301\u200b  b") == comparable("\u00e1 b"), comparable("A") == comparable("a")
    (True, False)
    """
    return _one_spaced(unicodedata.normalize("NFC", _INVISIBLE.sub("", text)))


def spellings(text: str) -> tuple[str, str, str]:
    """The forms in which a store may hold `text`: first the `comparable` one, then those that older versions wrote.

    These compared prompts by their whitespace only, and kept accents as they were, composed or not (NFD).
    """
    return comparable(text), _one_spaced(text), unicodedata.normalize("NFD", comparable(text))


def _one_spaced(text: str) -> str:
    return " ".join(text.split())


def compose_statement(prompt: str, answer: str) -> str:
    """The statement of a prompt and its answer: both stripped of outer whitespace and joined by one space.

    >>> compose_statement("The capital of France is ", "Paris")
    'The capital of France is Paris'
    """
    return f"{prompt.strip()} {answer.strip()}"


def parse_facts(facts: Iterable[object]) -> list[NewFact]:
    """Checks facts in any of the forms that `add_knowledge` takes.

    Args:
        facts: A list of statements, `(prompt, answer)` pairs, `NewFact`s, or dicts with `statement`, or `prompt` and
            `answer`, or all three, and optionally `metadata`, `valid_from` and `valid_until` (a `datetime`, or
            ISO 8601; UTC where no time zone is given). Or a table with columns of these names: of pandas, of
            `datasets`, or of any library that speaks Arrow, if pyarrow is installed. A value that is None or NaN
            counts as missing.

    Returns:
        One fact for each item, in their order.

    Raises:
        ValueError: If there is none, or one is not a fact; the message names the first that is not.

    >>> parse_facts([("The CEO of Acme is", "Ann Lee.")])[0].statement
    'The CEO of Acme is Ann Lee.'
    """
    if isinstance(facts, Mapping):
        raise ValueError(
            f"facts must be a list, even for a single fact, got a {type(facts).__name__} with {show([*facts])}."
        )
    facts = _rows(facts)
    if isinstance(facts, (str, bytes, tuple, NewFact)) or not isinstance(facts, Iterable):
        raise ValueError(f"facts must be a list, even for a single fact, got {show(facts)}.")
    parsed = [parse_fact(item, f"facts[{position}]") for position, item in enumerate(facts)]
    if not parsed:
        raise ValueError("facts must hold at least one fact, got none.")
    return parsed


def parse_fact(item: object, where: str) -> NewFact:
    """Checks one fact in any of these forms; `where` names it in errors.

    Raises:
        ValueError: If it is not a fact.
    """
    if isinstance(item, NewFact):  # Checked when it was made.
        return item if type(item) is NewFact else NewFact(**{name: getattr(item, name) for name in _FIELDS})
    if isinstance(item, str):
        item = {"statement": item}
    elif isinstance(item, (tuple, list)) and len(item) == 2:
        item = {"prompt": item[0], "answer": item[1]}
    elif not isinstance(item, Mapping):
        raise ValueError(f"{where} must be a statement, a (prompt, answer) pair or a dict, got {show(item)}.")
    unknown = [name for name in item if name not in _FIELDS]
    if unknown:
        raise ValueError(f"{where} may have the keys {', '.join(_FIELDS)}, got {unknown[0]!r}.")
    item = {name: value for name, value in item.items() if not _is_missing(value)}
    texts = {name: item[name] for name in _FIELDS[:3] if name in item}
    if ("prompt" in texts) != ("answer" in texts) or not texts:
        raise ValueError(f"{where} must have a statement, or a prompt and an answer, got {show(item)}.")
    for name, text in texts.items():
        _check_text(text, f"{where}.{name}")
        texts[name] = str.__str__(text)  # NumPy's strings are kept as Python's.
    texts.setdefault("statement", compose_statement(texts.get("prompt", ""), texts.get("answer", "")))
    times = {name: to_timestamp(item[name], f"{where}.{name}") for name in _FIELDS[4:] if name in item}
    if len(times) == 2 and times["valid_from"] >= times["valid_until"]:
        raise ValueError(
            f"{where}.valid_until must be later than valid_from, {times['valid_from']}, got {times['valid_until']}."
        )
    return NewFact(**texts, **times, metadata=_copy_metadata(item.get("metadata"), f"{where}.metadata"))


def _rows(facts: Any) -> Any:
    """The rows of a table as dicts; anything else unchanged.

    Raises:
        ImportError: If they are to be read from Arrow, and pyarrow is not installed.
        ValueError: If it has other columns than those of facts.
    """
    names = next((getattr(facts, name) for name in ("column_names", "columns") if hasattr(type(facts), name)), None)
    if names is None or callable(names):
        return facts
    names = list(names)
    has_texts = "statement" in names or ("prompt" in names and "answer" in names)
    if not has_texts or any(name not in _FIELDS for name in names) or len(set(names)) < len(names):
        raise ValueError(
            f"facts must be a table with the columns prompt and answer, or statement, and if wanted "
            f"{', '.join(_FIELDS[3:])}, got one with {show(names)}."
        )
    if hasattr(facts, "itertuples"):  # pandas, and what is like it. By way of Arrow, metadata would be altered.
        return [dict(zip(names, row, strict=True)) for row in facts.itertuples(index=False, name=None)]
    if hasattr(facts, "__arrow_c_stream__"):
        try:
            import pyarrow
        except ImportError as error:
            raise ImportError("Arrow tables need pyarrow: pip install 'recipe-hf[parquet]'.") from error
        return pyarrow.table(facts).to_pylist()
    return facts


def _is_missing(value: object) -> bool:
    """Whether a value stands for a missing one: None, NaN, or NA or NaT of pandas, which need not be installed."""
    is_nan = isinstance(value, Real) and value != value
    return value is None or is_nan or type(value).__name__ in ("NAType", "NaTType")


def _check_text(text: object, where: str) -> None:
    if not isinstance(text, str) or not text.strip():
        raise ValueError(f"{where} must be a non-empty string, got {show(text)}.")
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise ValueError(f"{where} must be valid Unicode, got {show(text)}.") from error


def _copy_metadata(metadata: object, where: str) -> dict[str, Any]:
    if metadata is None:
        return {}
    try:
        copy = json.loads(json.dumps(metadata, allow_nan=False))
        json.dumps(copy, ensure_ascii=False).encode()
    except (TypeError, ValueError, RecursionError) as error:
        raise ValueError(f"{where} must be what JSON can hold, got {show(metadata)} ({error}).") from error
    if not isinstance(copy, dict) or copy != metadata:
        raise ValueError(f"{where} must be a dict of what JSON can hold, got {show(metadata)}.")
    return copy


def show(value: object) -> str:
    """`value` for an error message, shortened if it is long."""
    try:
        text = repr(value)
    except (RecursionError, ValueError):  # Nested too deep, or an integer of too many digits.
        return f"a {type(value).__name__} that cannot be shown"
    return text if len(text) <= 80 else f"{text[:77]}..."
