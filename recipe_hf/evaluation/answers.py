"""Asking the model: what it says to each question, put to it once for all cells and protocols of an evaluation."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from tqdm.auto import tqdm

from ..teacher_forcing import Row, tokenize_rows
from .held import Held
from .saying import EXTRA_TOKENS, predict_answers, write_on

if TYPE_CHECKING:
    from ..modeling.model import RecipeForCausalLM


class Request(NamedTuple):
    """A question to the base model under one fact, or none.

    Args:
        forced: Whether the most likely token at each position of the answer is wanted, or greedy output.
        text: The question.
        answer: The answer: forced, or as a measure of how much to generate.
        told: What makes the fact's continuous prompt, its statement and what it answers, if that is known; `None` for
            the unedited model.
    """

    forced: bool
    text: str
    answer: str
    told: tuple[str | None, str | None] | None = None


class Answers:
    """Tokens that the model says, kept in memory, and in a journal if there is one.

    The journal is a file with one line for each batch that was computed. After an interruption, the batches in it are
    taken from there and the others are composed as they would have been, so that results are the same to the last bit.

    Args:
        model: The model.
        batch_size: Rows in one call of the base.
        journal: The file. What an interruption left of an unfinished line is cut off.

    Raises:
        ValueError: If a line of the journal is damaged.
    """

    def __init__(self, model: RecipeForCausalLM, batch_size: int = 32, journal: Path | None = None) -> None:
        self.model = model
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

    def ask(self, requests: Mapping[Request, int | None], held: Held, bar: tqdm | None = None) -> None:
        """Puts those requests to the model that were not put before.

        Args:
            requests: Requests, each with the id of its fact.
            held: Where the facts are.
            bar: Advances by the number of requests.
        """
        new = {request: fact_id for request, fact_id in requests.items() if request not in self._said}
        if bar is not None:
            bar.update(len(requests) - len(new))
        rows = dict(zip(new, self._rows(list(new)), strict=True))
        order = sorted(new, key=lambda r: (r.forced, r.told is not None, self._new_tokens(r, rows[r]), len(rows[r])))
        start = 0
        while start < len(order):
            first = order[start]
            batch = [
                r
                for r in order[start : start + self.batch_size]
                if (r.forced, r.told is None) == (first.forced, first.told is None)
            ]
            start += len(batch)
            told = [(fact_id, r.told[1]) for r in batch if r.told is not None and (fact_id := new[r]) is not None]
            prefix = held.continuous_prompts(told) if told else None
            say = self._predict if first.forced else self._generate
            said = say([rows[r] for r in batch], prefix)
            self._said |= zip(batch, said, strict=True)
            if self.journal is not None:
                line = json.dumps([[*r, tokens] for r, tokens in zip(batch, said, strict=True)], ensure_ascii=False)
                with self.journal.open("a", encoding="utf-8") as file:
                    file.write(f"{line}\n")
            if bar is not None:
                bar.update(len(batch))

    def __getitem__(self, request: Request) -> list[int]:
        """Tokens said to a request that was put to the model."""
        return self._said[request]

    def _rows(self, requests: Sequence[Request]) -> list[Row]:
        if not requests:
            return []
        tokenizer: Any = self.model.tokenizer
        texts, answers = [r.text for r in requests], [r.answer for r in requests]
        return tokenize_rows(tokenizer, texts, answers, self.model.config.prompt_position)

    @staticmethod
    def _new_tokens(request: Request, row: Row) -> int:
        return 0 if request.forced else len(row.answer_ids) + EXTRA_TOKENS

    def _predict(self, rows: Sequence[Row], prefix: tuple[torch.Tensor, torch.Tensor] | None) -> list[list[int]]:
        return predict_answers(self.model.lm, rows, prefix)

    def _generate(self, rows: Sequence[Row], prefix: tuple[torch.Tensor, torch.Tensor] | None) -> list[list[int]]:
        lengths = [len(row.answer_ids) + EXTRA_TOKENS for row in rows]
        behind = torch.tensor([row.behind for row in rows])
        return write_on(self.model.lm, [row.prompt_ids for row in rows], lengths, prefix, behind)
