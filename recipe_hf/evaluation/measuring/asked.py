"""What is asked in a trial, what an editor has read for it, what is said, and what happened then."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from tqdm.auto import tqdm

from ...knowledge.facts import compose_statement
from ...teacher_forcing import tokenize_rows
from ..asking.answers import Answers, Request
from ..asking.protocols import find_protocol
from ..asking.questions import PORTABILITY
from ..asking.saying import tokens_added
from ..asking.trials import Trial
from ..editors.editor import Editor, Found, Prompt, Reading
from .outcomes import Outcome, accuracy_of


class AskedQuestions:
    """The questions of a trial under a protocol, what is read for each under an editor, and what is said then."""

    def __init__(self, editor: Editor, trial: Trial, protocol: str) -> None:
        self.editor = editor
        self.trial = trial
        self.protocol = find_protocol(protocol)
        self.questions = trial.questions_under(self.protocol)
        texts, answers = [q.text for q in self.questions], [q.answers[0] for q in self.questions]
        self.rows = tokenize_rows(editor.tokenizer, texts, answers)
        self.unedited = [Request(self.protocol.forced, *asked) for asked in zip(texts, answers, strict=True)]
        self.same_as = trial.same_as
        self.readings: dict[int, Reading] = {}
        self.found: dict[int, Found | None] = {}
        self.said: dict[int, list[int]] = {}
        self._of_fact: dict[int, list[int]] = {}
        for number, question in enumerate(self.questions):
            self._of_fact.setdefault(question.about, []).append(number)

    def of_base(self) -> dict[Request, tuple[Reading, list[int]]]:
        """What is asked of the unedited model: what no fact concerns, and what the base may know anyway."""
        return {
            request: (Reading(row.prompt_ids), row.answer_ids)
            for request, question, row in zip(self.unedited, self.questions, self.rows, strict=True)
            if not question.concerns or question.kind == PORTABILITY
        }

    def read(self, positions: Sequence[int]) -> None:
        """Has the editor, which holds the facts at these positions, say what is read for the questions about them."""
        numbers = self._about(positions)
        readings = _read(self.editor, [self._prompt(number) for number in numbers], positions)
        for number, reading in zip(numbers, readings, strict=True):
            self.readings[number], self.found[number] = reading, self._placed(reading.found, positions)

    def ask(self, answers: Answers, positions: Iterable[int], bar: tqdm | None) -> None:
        """Asks the questions about the facts at these positions."""
        numbers = self._about(positions)
        edited = {number: self.unedited[number]._replace(told=self.readings[number].told) for number in numbers}
        requests = {} if self.editor.changes_model else self.of_base()
        requests |= {request: (self.readings[n], self.rows[n].answer_ids) for n, request in edited.items()}
        if bar is not None:
            bar.total += len(requests) - len(numbers)  # What comes twice is asked once; some is asked of the base too.
        answers.ask(self.editor, requests, bar)
        self.said |= {number: answers[request] for number, request in edited.items()}

    def outcomes(self, answers: Answers) -> list[Outcome]:
        """What happened to each question, beside what the unedited model says to it."""
        return [self._outcome(number, answers, added) for number, added in enumerate(self._added(answers.batch_size))]

    def _about(self, positions: Iterable[int]) -> list[int]:
        return sorted(number for position in positions for number in self._of_fact.get(position, ()))

    def _placed(self, found: Found | None, positions: Sequence[int]) -> Found | None:
        """With places in the trial, in which rows that tell the same are one fact, rather than among those held."""
        if found is None:
            return None
        used, nearest = (None if at is None else self.same_as[positions[at]] for at in (found.used, found.nearest))
        return found._replace(used=used, nearest=nearest)

    def _prompt(self, number: int) -> Prompt:
        question, row = self.questions[number], self.rows[number]
        query = question.text if question.query is None else question.query
        if self.protocol.shows_answer:
            query = self.editor.tokenizer.decode(row.prompt_ids + row.answer_ids[:-1], skip_special_tokens=True)
        return Prompt(question.text, row.prompt_ids, query)

    def _added(self, batch_size: int) -> list[int]:
        numbers, added = range(len(self.questions)), []
        for batch in (numbers[start : start + batch_size] for start in numbers[::batch_size]):
            read = [self.readings[number] for number in batch]
            added += tokens_added(self.editor, [self.rows[number].prompt_ids for number in batch], read)
        return added

    def _outcome(self, number: int, answers: Answers, added: int) -> Outcome:
        question, row, said, found = self.questions[number], self.rows[number], self.said[number], self.found[number]
        expected = row.answer_ids if question.concerns else answers[self.unedited[number]]
        output, base_accuracy = self._decode(said), None
        if question.kind == PORTABILITY:
            base = answers[self.unedited[number]]
            base_accuracy = accuracy_of(self.protocol, question, base, expected, self._decode(base))
        about = self.same_as[question.about]
        used = None if found is None else found.used
        subject = "" if used is None else self.trial.facts[used].subject
        return Outcome(
            kind=question.kind,
            query=question.text,
            answer=question.answers[0],
            retrieved_id=used,
            is_right_fact=None if found is None else used == (about if question.concerns else None),
            score=None if found is None else found.score,
            threshold=None if found is None else found.threshold,
            accuracy=accuracy_of(self.protocol, question, said, expected, output),
            detail=question.detail,
            fact_id=about,
            nearest_id=None if found is None else found.nearest,
            concerns=question.concerns,
            output=output,
            expected=question.answers[0] if question.concerns else self._decode(expected),
            names_subject=subject in question.text if subject else None,
            base_accuracy=base_accuracy,
            probability=None if found is None else found.probability,
            tokens_added=added,
        )

    def _decode(self, tokens: Sequence[int]) -> str:
        return self.editor.tokenizer.decode(tokens, skip_special_tokens=True).strip()


def _read(editor: Editor, prompts: Sequence[Prompt], positions: Sequence[int]) -> list[Reading]:
    """What is read for prompts, looked up together; one by one for a fact alone, as all its figures so far were."""
    batches = [[prompt] for prompt in prompts] if len(positions) == 1 else [prompts]
    return [reading for batch in batches for reading in editor.read(batch)]


class GeneralPrompts:
    """Prompts that no fact concerns, and those of them for which a fact is used. Facts held alone take turns."""

    def __init__(self, editor: Editor, trial: Trial, texts: Sequence[str]) -> None:
        self.editor = editor
        self.trial = trial
        ids = editor.tokenizer(list(texts))["input_ids"]
        self.prompts = [Prompt(text, tokens, text) for text, tokens in zip(texts, ids, strict=True)]
        self.found: dict[int, dict[str, Any] | None] = {}

    def look_up(self, positions: Sequence[int]) -> None:
        """Looks those up that meet the facts at these positions, which the editor holds."""
        turns = len(self.trial.facts)
        everything = range(len(self.prompts))
        numbers = everything if len(positions) == turns else everything[positions[0] :: turns]
        readings = _read(self.editor, [self.prompts[number] for number in numbers], positions)
        for number, found in [(n, r.found) for n, r in zip(numbers, readings, strict=True) if r.found is not None]:
            self.found[number] = None
            if found.used is not None:
                fact = self.trial.facts[positions[found.used]]
                self.found[number] = {
                    "prompt": self.prompts[number].text,
                    "statement": compose_statement(fact.prompt, fact.answer),
                    "score": found.score,
                    "threshold": found.threshold,
                }

    @property
    def fired(self) -> dict[str, Any] | None:
        """How many prompts there are, and those for which a fact is used; None if the editor looks nothing up."""
        found = [self.found[number] for number in sorted(self.found)]
        return {"prompts": len(found), "fired": [row for row in found if row is not None]} if found else None
