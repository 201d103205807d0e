"""Which pairs of query and statement a step sees, and how its queries are written."""

from __future__ import annotations

import random
import string
from collections.abc import Mapping
from dataclasses import dataclass

from ...modeling.verifier import is_update
from .mining import Mined
from .rows import VerificationData
from .written import Statement

#: Steps whose pairs are drawn together and sorted by length, so that little is padding.
_STEPS_TOGETHER = 4
#: Share of draws of a statement without asks that count: they teach misses alone.
_MISSES_ONLY = 0.3
_LOWER_STATEMENTS = 0.05
#: Shares of queries that are in lower case, lack their last mark, have typing errors, or come after something else.
_LOWER, _UNMARKED, _MISTYPED, _AFTER = 0.17, 0.08, 0.08, 0.12
_GREETINGS = (
    "hi",
    "hello",
    "hey there",
    "Hi,",
    "hey,",
    "good morning.",
    "Hello!",
    "quick question:",
    "sorry to bother you,",
    "one more thing:",
    "ok so",
    "please tell me,",
    "Thanks for earlier.",
    "Can you help me?",
    "just wondering,",
    "need this for a report:",
    "I was asked this today:",
    "fyi I'm new here.",
)


@dataclass(frozen=True)
class Pair:
    """A query and a statement.

    Args:
        query: What is asked.
        statement: What is said.
        answers: Whether the one answers the other.
        answer: The part of the statement that does, if it is known.
        has_mate: Whether the ask and the miss of this draw are of one statement.
    """

    query: str
    statement: str
    answers: bool
    answer: str | None
    has_mate: bool


class PairSampler:
    """Draws the pairs of each step from its number alone, so that a resumed run sees what an unbroken one would.

    Args:
        data: What to draw from; development rows are left out.
        mined: What was mined of it.
        shares: How often to draw from each source, in proportion to the others.
        batch_size: Pairs in a step: asks and misses in turn.
        mined_share: Share of the misses that are mined, where a statement has both kinds.
        seed: Seed of all draws.

    Raises:
        ValueError: If no statement has asks, or none a miss.
    """

    def __init__(
        self,
        data: VerificationData,
        mined: Mined,
        shares: Mapping[str, float],
        batch_size: int,
        mined_share: float,
        seed: int,
    ) -> None:
        self.batch_size = batch_size
        self.mined_share = mined_share
        self.seed = seed
        self._by_source: dict[str, list[tuple[Statement, list[str]]]] = {}
        for statement, misses in zip(data.statements, mined.misses, strict=True):
            if statement.part == "training" and (statement.asks or statement.misses):
                self._by_source.setdefault(statement.source, []).append((statement, misses))
        self._weights = [shares[source] for source in self._by_source]
        rows = [row for found in self._by_source.values() for row in found]
        for what, found in (
            ("asks", any(statement.asks for statement, _ in rows)),
            ("misses", any(statement.misses or misses for statement, misses in rows)),
        ):
            if not found:
                raise ValueError(f"sources must have statements with {what} to train on, got none.")
        self._chat: dict[str, list[tuple[str, list[str]]]] = {}
        for text, near in zip(data.chat, mined.near_chat, strict=True):
            if text.part == "training" and near:
                near_texts = [data.statements[number].text for number in near]
                self._chat.setdefault(text.source, []).append((text.text, near_texts))
        self._chat_weights = [shares[source] for source in self._chat]
        self._chat_share = sum(self._chat_weights) / sum([*self._weights, *self._chat_weights])
        self._stories = [text for found in self._chat.values() for text, _ in found]
        self._together: tuple[int, list[list[Pair]]] = (-1, [])

    def draw(self, step: int) -> list[Pair]:
        """The pairs of a step."""
        group, place = divmod(step, _STEPS_TOGETHER)
        if self._together[0] != group:
            rng = random.Random(f"{self.seed} {group}")
            size = self.batch_size // 2
            twos = [self._two(rng) for _ in range(size * _STEPS_TOGETHER)]
            twos.sort(key=lambda two: max(len(pair.query) + len(pair.statement) for pair in two))
            steps = [[pair for two in twos[k : k + size] for pair in two] for k in range(0, len(twos), size)]
            rng.shuffle(steps)
            self._together = group, steps
        return self._together[1][place]

    def _two(self, rng: random.Random) -> tuple[Pair, Pair]:
        """What a statement answers, and what it does not."""
        is_chat = rng.random() < self._chat_share
        while True:
            statement, mined = self._row(rng)
            if not statement.asks and rng.random() >= _MISSES_ONLY:
                continue
            miss = self._chat_miss(rng) if is_chat else self._miss(rng, statement, mined)
            if miss is None:
                continue
            query, missed = miss
            asked = statement
            while not asked.asks:
                asked, _ = self._row(rng)
            has_mate = asked.text == missed
            said = str.lower if rng.random() < _LOWER_STATEMENTS else str
            ask = self._written(rng, rng.choice(asked.asks))
            return (
                Pair(ask, said(asked.text), True, asked.answer, has_mate),
                Pair(self._written(rng, query), said(missed), False, None, has_mate),
            )

    def _row(self, rng: random.Random) -> tuple[Statement, list[str]]:
        (source,) = rng.choices(list(self._by_source), self._weights)
        return rng.choice(self._by_source[source])

    def _chat_miss(self, rng: random.Random) -> tuple[str, str]:
        """A text of chat and a statement near it."""
        (source,) = rng.choices(list(self._chat), self._chat_weights)
        text, near = rng.choice(self._chat[source])
        return text, rng.choice(near)

    def _miss(self, rng: random.Random, statement: Statement, mined: list[str]) -> tuple[str, str] | None:
        """A query and this statement, which does not answer it; `None` if it has no miss."""
        if not statement.misses and not mined:
            return None
        if statement.misses and (not mined or rng.random() >= self.mined_share):
            return rng.choice(statement.misses)[0], statement.text
        return rng.choice(mined), statement.text

    def _written(self, rng: random.Random, query: str) -> str:
        """A query as somebody may type it; a newer statement as it is."""
        if is_update(query):
            return query
        kind = rng.random()
        if kind < _LOWER:
            return query.lower()
        if kind < _LOWER + _UNMARKED:
            return query.rstrip("?.! ") or query
        if kind < _LOWER + _UNMARKED + _MISTYPED:
            return mistyped(query, rng)
        if kind < _LOWER + _UNMARKED + _MISTYPED + _AFTER:
            tells = self._stories and rng.random() >= 0.6
            before = f"{rng.choice(self._stories).capitalize()}." if tells else rng.choice(_GREETINGS)
            query = f"{before} {query}"
            return query.lower() if rng.random() < 0.4 else query
        return query


def mistyped(text: str, rng: random.Random) -> str:
    """A text with an error for each 40 characters, and one more: letters lost, swapped, doubled or wrong.

    >>> mistyped("Where does Ann Lee live?", random.Random(2))
    'Were does Ann Lee live?'
    """
    letters = list(text)
    for _ in range(1 + len(letters) // 40):
        place, kind = rng.randrange(max(1, len(letters) - 1)), rng.random()
        if letters[place] == " " and kind < 0.7:
            continue
        if kind < 0.3 and len(letters) > 1:
            del letters[place]
        elif kind < 0.6 and place + 1 < len(letters):
            letters[place], letters[place + 1] = letters[place + 1], letters[place]
        elif kind < 0.8:
            letters.insert(place, letters[place])
        else:
            letters[place] = rng.choice(string.ascii_lowercase)
    return "".join(letters)
