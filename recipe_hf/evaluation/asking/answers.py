"""Asking: what a language model says to each question, put to it once for all cells and protocols of a run."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

from tqdm.auto import tqdm

from ..editors.editor import Editor, Reading
from .saying import EXTRA_TOKENS, predict, write


class Request(NamedTuple):
    """A question to a language model that is told a fact, or none.

    Args:
        forced: Whether the most likely token at each position of the answer is wanted, or greedy output.
        text: The question.
        answer: The answer: forced, or as a measure of how much to generate.
        told: What it is told beside the question ([`Reading.told`]), if anything.
    """

    forced: bool
    text: str
    answer: str
    told: tuple[str | None, ...] | None = None


class Answers:
    """Tokens that a language model says, kept in memory, and in a journal if there is one.

    The journal is a file with one line for each batch that was computed. After an interruption, the batches in it are
    taken from there and the others are composed as they would have been, so that results are the same to the last bit.

    Args:
        batch_size: Rows in one call of the language model.
        journal: The file. What an interruption left of an unfinished line is cut off.

    Raises:
        ValueError: If a line of the journal is damaged.
    """

    def __init__(self, batch_size: int = 32, journal: Path | None = None) -> None:
        self.batch_size = batch_size
        self.journal = journal
        self._said: dict[Request, list[int]] = {}
        if journal is not None and journal.exists():
            whole, _, _ = journal.read_bytes().rpartition(b"\n")
            for number, line in enumerate(whole.splitlines(), start=1):
                try:
                    for forced, text, answer, told, tokens in json.loads(line):
                        self._said[Request(forced, text, answer, told and tuple(told))] = tokens
                except (TypeError, ValueError) as error:
                    raise ValueError(f"line {number} of {journal} is damaged: delete this file to go on.") from error
            journal.write_bytes(whole + b"\n" if whole else b"")

    def ask(
        self, editor: Editor, requests: Mapping[Request, tuple[Reading, list[int]]], bar: tqdm | None = None
    ) -> None:
        """Puts those requests to an edited language model that were not put before.

        Args:
            editor: What edits it. Editors may share their answers if none of them changes the language model.
            requests: Requests, each with what is read, and the tokens of its answer.
            bar: Advances by the number of requests.
        """
        new = [request for request in requests if request not in self._said]
        if bar is not None:
            bar.update(len(requests) - len(new))

        def cost(request: Request) -> tuple[bool, bool, int, int]:
            reading, answer = requests[request]
            new_tokens = 0 if request.forced else len(answer) + EXTRA_TOKENS
            return request.forced, request.told is not None, new_tokens, len(reading.ids) + len(answer)

        order = sorted(new, key=cost)
        start = 0
        while start < len(order):
            alike = cost(order[start])[:2]
            batch = [request for request in order[start : start + self.batch_size] if cost(request)[:2] == alike]
            start += len(batch)
            readings, answers = zip(*(requests[request] for request in batch), strict=True)
            if batch[0].forced:
                said = predict(editor, readings, answers)
            else:
                said = write(editor, readings, [len(answer) + EXTRA_TOKENS for answer in answers])
            self._said |= zip(batch, said, strict=True)
            if self.journal is not None:
                line = json.dumps([[*r, tokens] for r, tokens in zip(batch, said, strict=True)], ensure_ascii=False)
                with self.journal.open("a", encoding="utf-8") as file:
                    file.write(f"{line}\n")
            if bar is not None:
                bar.update(len(batch))

    def __getitem__(self, request: Request) -> list[int]:
        """Tokens said to a request that was put to the language model."""
        return self._said[request]
