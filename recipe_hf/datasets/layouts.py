"""The layouts in which knowledge editing data are published, and how a row of each becomes an [`EditExample`]."""

from __future__ import annotations

import os
import re
import reprlib
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from .example import EditExample

Questions = dict[str, tuple[tuple[str, tuple[str, ...]], ...]]


class Row:
    """A row of a file, whose fields are read with errors that name both.

    Args:
        where: What errors call the row, such as `data.json, row 3`.
        values: The row, as JSON gave it.

    Raises:
        ValueError: If the row is not a JSON object.
    """

    def __init__(self, where: str, values: Any) -> None:
        if not isinstance(values, dict):
            raise ValueError(f"{where} must be a JSON object, got {reprlib.repr(values)}.")
        self.where = where
        self.values = values

    def get(self, path: str) -> Any:
        """The value of a field, `None` if it is missing; `a.b` is field `b` of the object in field `a`."""
        value: Any = self.values
        for name in path.split("."):
            value = value.get(name) if isinstance(value, dict) else None
        return value

    def error(self, path: str, allowed: str) -> ValueError:
        """The error of a field that is not as it must be."""
        return self._error(path, self.get(path), allowed)

    def _error(self, name: str, value: Any, allowed: str) -> ValueError:
        return ValueError(f"{self.where}: field {name!r} must be {allowed}, got {reprlib.repr(value)}.")

    def text(self, path: str) -> str:
        """The text of a field that every row must have."""
        value = self.get(path)
        if not isinstance(value, str) or not value.strip():
            raise self.error(path, "a non-empty string")
        return value.strip()

    def texts(self, path: str) -> tuple[str, ...]:
        """The texts of a field: a string, or strings in lists of any depth. Blanks and repetitions are left out."""
        return tuple(dict.fromkeys(self._flatten(path, self.get(path))))

    def _flatten(self, path: str, value: Any) -> Iterable[str]:
        if isinstance(value, list):
            for part in value:
                yield from self._flatten(path, part)
        elif isinstance(value, str):
            if value.strip():
                yield value.strip()
        elif value is not None:
            raise self.error(path, "a string or a list of strings")

    def rows(self, path: str) -> list[Row]:
        """The objects in a list; none if the field is missing."""
        return self._rows(path, self.get(path))

    def rows_by_kind(self, path: str) -> dict[str, list[Row]]:
        """The objects in each list of an object of lists, whose names may hold dots."""
        kinds = self.get(path)
        if kinds is not None and not isinstance(kinds, dict):
            raise self.error(path, "an object of lists of questions, by kind")
        return {kind: self._rows(f"{path}.{kind}", value) for kind, value in (kinds or {}).items()}

    def _rows(self, name: str, value: Any) -> list[Row]:
        if value is not None and not isinstance(value, list):
            raise self._error(name, value, "a list")
        return [Row(f"{self.where}, {name}[{number}]", item) for number, item in enumerate(value or [])]


def _questions(kinds: Mapping[str, Iterable[Row]], answers: str) -> Questions:
    """The questions of each kind, whose answers are in the field `answers`."""
    return _answered({kind: [(q.text("prompt"), q.texts(answers)) for q in rows] for kind, rows in kinds.items()})


def _answered(asked: Mapping[str, Iterable[tuple[str, tuple[str, ...]]]]) -> Questions:
    """The questions that have an answer, without repetitions; in the published files some have none."""
    answered = {kind: tuple(dict.fromkeys(q for q in questions if q[1])) for kind, questions in asked.items()}
    return {kind: questions for kind, questions in answered.items() if questions}


def _unrelated(questions: Questions) -> dict[str, Any]:
    """Fields of an example: every question of all kinds, with the first of its answers, and its kind."""
    return {
        "unrelated": tuple((prompt, answers[0]) for asked in questions.values() for prompt, answers in asked),
        "unrelated_kinds": tuple(kind for kind, asked in questions.items() for _ in asked),
    }


def _first(texts: Iterable[str]) -> str:
    return next(iter(texts), "")


def _gpt4_portability(row: Row) -> Questions:
    """The one question that the portability files of EasyEdit add to rows of ZSRE and CounterFact."""
    if row.get("portability.New Question") is None:
        return {}
    return {"Reasoning": ((row.text("portability.New Question"), (row.text("portability.New Answer"),)),)}


def _counterfact(row: Row) -> EditExample:
    rewrite = "requested_rewrite"
    subject, truth = row.text(f"{rewrite}.subject"), row.text(f"{rewrite}.target_true.str")
    return EditExample(
        prompt=row.text(f"{rewrite}.prompt").replace("{}", subject),
        answer=row.text(f"{rewrite}.target_new.str"),
        subject=subject,
        rephrasings=row.texts("paraphrase_prompts"),
        unrelated=tuple((prompt, truth) for prompt in row.texts("neighborhood_prompts")),
        ground_truth=truth,
    )


def _counterfact_flat(row: Row) -> EditExample:
    return EditExample(
        prompt=row.text("prompt"),
        answer=row.text("target_new"),
        subject=row.text("subject"),
        rephrasings=(row.text("rephrase_prompt"),),
        unrelated=((row.text("locality_prompt"), row.text("locality_ground_truth")),),
        portability=_gpt4_portability(row),
        ground_truth=_first(row.texts("ground_truth")),
    )


def _zsre(row: Row) -> EditExample | None:
    if row.get("alt") == "":  # as in some rows of the published training file
        return None
    question = row.text("loc").removeprefix("nq question: ")
    return EditExample(
        prompt=row.text("src"),
        answer=row.text("alt"),
        subject=_first(row.texts("subject")),
        rephrasings=(row.text("rephrase"),),
        unrelated=((question if question.endswith("?") else f"{question}?", row.text("loc_ans")),),
        portability=_gpt4_portability(row),
        ground_truth=_first(row.texts("answers")),
    )


def _zsre_mend(row: Row) -> EditExample | None:
    prompt, alternatives = row.text("input"), row.texts("alternatives")
    if not alternatives:
        return None
    return EditExample(
        prompt=prompt,
        answer=alternatives[0],
        rephrasings=tuple(text for text in row.texts("filtered_rephrases") if text != prompt),
        ground_truth=_first(text for output in row.rows("output") for text in output.texts("answer")),
    )


def _knowedit(row: Row) -> EditExample:
    return EditExample(
        prompt=row.text("prompt"),
        answer=row.text("target_new"),
        subject=row.text("subject"),
        rephrasings=row.texts("rephrase_prompt") or row.texts("rephrase"),
        portability=_questions(row.rows_by_kind("portability"), "ground_truth"),
        ground_truth=_first(row.texts("ground_truth")),
        **_unrelated(_questions(row.rows_by_kind("locality"), "ground_truth")),
    )


def _rippleedits(row: Row) -> EditExample | None:
    tests = {
        kind: [_ripple_question(query) for test in row.rows(kind) for query in test.rows("test_queries")]
        for kind in (*_RIPPLE_UNRELATED, *_RIPPLE_PORTABILITY)
    }
    statement = row.text("edit.prompt").removesuffix(".").rstrip()
    former = _first((*row.texts("edit.original_fact.prompt"), *row.texts("edit.previous_fact.prompt")))
    prompt = _ripple_prompt(statement, former)
    if prompt is None:
        raise row.error("edit.prompt", "a prompt that ends in is, are, follows or is followed by, and an answer")
    if statement == prompt:
        return None
    answered = _answered(tests)
    return EditExample(
        prompt=prompt,
        answer=statement.removeprefix(prompt).strip(),
        portability={kind: answered[kind] for kind in _RIPPLE_PORTABILITY if kind in answered},
        ground_truth=former.removeprefix(prompt).strip(" ."),
        **_unrelated({kind: answered[kind] for kind in _RIPPLE_UNRELATED if kind in answered}),
    )


def _rippleedits_flat(row: Row) -> EditExample | None:
    if row.get("target_new") == "":
        return None
    return EditExample(
        prompt=row.text("prompt"),
        answer=row.text("target_new"),
        subject=row.text("subject"),
        portability=_questions({kind: row.rows(kind) for kind in _RIPPLE_PORTABILITY}, "targets"),
        ground_truth=_first(row.texts("ground_truth")),
        **_unrelated(_questions({kind: row.rows(kind) for kind in _RIPPLE_UNRELATED}, "targets")),
    )


_RIPPLE_UNRELATED = ("Relation_Specificity", "Forgetfulness")
_RIPPLE_PORTABILITY = ("Logical_Generalization", "Subject_Aliasing", "Compositionality_I", "Compositionality_II")
_RIPPLE_PROMPT_END = re.compile(r" (is followed by|is|are|follows)(?= |$)")


def _ripple_question(query: Row) -> tuple[str, tuple[str, ...]]:
    answers = (text for a in query.rows("answers") for text in (*a.texts("value"), *a.texts("aliases")))
    return query.text("prompt"), tuple(dict.fromkeys(answers))


def _ripple_prompt(statement: str, former: str) -> str | None:
    """The part of a statement that asks: up to the verb that ends the authors' templates.

    The former fact differs in its answer only, so the verb stands in what both share.
    """
    shared = os.path.commonprefix([statement, former]) if former else statement
    ends = [match.end() for match in _RIPPLE_PROMPT_END.finditer(shared)]
    return statement[: ends[-1]] if ends else None


def _facts(row: Row) -> EditExample:
    unknown = sorted(set(row.values) - set(_FACT_FIELDS))
    if unknown:
        raise ValueError(f"{row.where}: unknown fields {', '.join(unknown)}; allowed are {', '.join(_FACT_FIELDS)}.")
    prompt, answer, unrelated = row.text("prompt"), row.text("answer"), row.texts("unrelated")
    if prompt in unrelated:
        raise row.error("unrelated", f"questions other than the fact's own prompt {prompt!r}")
    return EditExample(
        prompt=prompt,
        answer=answer,
        subject=_first(row.texts("subject")),
        rephrasings=row.texts("rephrasings"),
        # Locality compares with the base on any text: here on the one that a leaking edit would put there.
        unrelated=tuple((question, answer) for question in unrelated),
    )


_FACT_FIELDS = ("prompt", "answer", "subject", "rephrasings", "unrelated", "metadata")


@dataclass(frozen=True)
class Layout:
    """A layout of rows.

    Args:
        fields: Fields that tell it from the others.
        read: Makes an example of a row, `None` of a row that asks for no edit; raises `ValueError` on a bad row.
    """

    fields: tuple[str, ...]
    read: Callable[[Row], EditExample | None]


LAYOUTS: Mapping[str, Layout] = {
    "counterfact": Layout(("requested_rewrite",), _counterfact),
    "counterfact-flat": Layout(("prompt", "target_new", "locality_prompt"), _counterfact_flat),
    "zsre": Layout(("src", "alt"), _zsre),
    "zsre-mend": Layout(("input", "alternatives"), _zsre_mend),
    "knowedit": Layout(("prompt", "target_new", "locality"), _knowedit),
    "rippleedits": Layout(("edit",), _rippleedits),
    "rippleedits-flat": Layout(("prompt", "target_new", "Relation_Specificity"), _rippleedits_flat),
    "facts": Layout(("prompt", "answer"), _facts),
}


def detect_layout(row: Row) -> Layout:
    """The layout whose fields a row has.

    Raises:
        ValueError: If it is none of the known ones.
    """
    for layout in LAYOUTS.values():
        if row.values.keys() >= set(layout.fields):
            return layout
    known = "; ".join(f"{name}: {', '.join(layout.fields)}" for name, layout in LAYOUTS.items())
    raise ValueError(f"{row.where} is in no known layout: its fields are {', '.join(row.values)}. Known are {known}.")
