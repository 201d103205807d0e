"""Unknown words: the encoder's tokenizer makes one and the same token of every word that it does not know.

Texts that differ only in such words have one key, and one query, whatever they say.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Mapping, Sequence
from typing import Protocol

from transformers import PreTrainedTokenizerBase

from ..knowledge.facts import Fact, NewFact, comparable, show


class ReadsWords(Protocol):
    """What says which words of a text it does not know: the retriever."""

    def unknown_words(self, texts: Sequence[str]) -> list[list[str]]:
        """The unknown words of each text."""


def unknown_words(tokenizer: PreTrainedTokenizerBase, texts: Sequence[str]) -> list[list[str]]:
    """The words of each text, of at least one, that a tokenizer does not know; all of it where it knows none.

    One that spells what it does not know, as those of bytes do, knows all.
    """
    encoded = tokenizer(list(texts), add_special_tokens=False, return_offsets_mapping=tokenizer.is_fast, verbose=False)
    words = []
    for row, (text, ids) in enumerate(zip(texts, encoded["input_ids"], strict=True)):
        is_unknown = [id == tokenizer.unk_token_id for id in ids]
        if all(is_unknown):
            words.append([text])
        elif any(is_unknown) and tokenizer.is_fast:  # Slow ones do not say where a token is from.
            spans = zip(encoded["offset_mapping"][row], is_unknown, strict=True)
            words.append([text[start:end] for (start, end), unknown in spans if unknown])
        else:
            words.append([])
    return words


def unknown_share(text: str, words: Sequence[str]) -> float:
    """The share of a text, from 0 to 1, that its unknown words are.

    Letters and their marks count. Where there are none, symbols do; and without these, digits and punctuation.

    >>> unknown_share("ភ្នំពេញ, 2024?", ["ភ្នំពេញ"]), unknown_share("Up 🚀", ["🚀"]), unknown_share("🚀 1", ["🚀"])
    (1.0, 0.0, 1.0)
    """
    for kinds in ("LM", "S", "NP"):
        of_text, of_words = (
            sum(unicodedata.category(character)[0] in kinds for character in part) for part in (text, "".join(words))
        )
        if of_text:
            return of_words / of_text
    return float(bool(words))


def is_legible(text: str, words: Sequence[str]) -> bool:
    """Whether a text's unknown words are not most of it."""
    return unknown_share(text, words) <= 0.5


def may_answer(fact: NewFact, words: Sequence[str]) -> bool:
    """Whether a fact can be meant by a query with unknown words: the encoder takes them for any others.

    >>> may_answer(NewFact(statement="The capital of កម្ពុជា is Phnom Penh."), ["ኢትዮጵያ"])
    False
    """
    statement = comparable(fact.statement).casefold()
    named = (word for word in words if any(character.isalpha() for character in word))
    return all(comparable(word).casefold() in statement for word in named)


def lead_of(fact: NewFact) -> str:
    """What of a fact's statement must be read for it to be found: all but the answer at its end."""
    return fact.statement.removesuffix((fact.answer or "").strip()).strip() or fact.statement


def legible_queries(retriever: ReadsWords, queries: Sequence[str]) -> dict[int, list[str]]:
    """Which of the queries can be looked up, and the words of each that the encoder does not know."""
    rows = [row for row, query in enumerate(queries) if query.strip()]
    words = retriever.unknown_words([queries[row] for row in rows])
    return {row: unknown for row, unknown in zip(rows, words, strict=True) if is_legible(queries[row], unknown)}


def why_not_asked(retriever: ReadsWords, query: str) -> str:
    """Why nothing is looked up for a query that is not legible."""
    if not query.strip():
        return "nothing is asked"
    (unknown,) = retriever.unknown_words([query])
    return f"nothing is looked up: {unknown_share(query, unknown):.0%} of it is unknown to the encoder"


def withheld(retriever: ReadsWords, unknown: list[str], facts: Sequence[Fact]) -> set[int]:
    """Ids of the facts that the encoder cannot tell from the answer to a query with these unknown words."""
    leads = [lead_of(fact) for fact in facts]
    return {
        fact.id
        for fact, lead, words in zip(facts, leads, retriever.unknown_words(leads), strict=True)
        if not (is_legible(lead, words) and may_answer(fact, unknown))
    }


def check_words(retriever: ReadsWords, facts: Mapping[str, NewFact]) -> None:
    """Checks facts, by what to call them in an error.

    Raises:
        ValueError: If one consists mostly of words that the encoder does not know.
    """
    leads = [lead_of(fact) for fact in facts.values()]
    for place, lead, words in zip(facts, leads, retriever.unknown_words(leads), strict=True):
        if not is_legible(lead, words):
            raise ValueError(
                f"{place} must be in words that the encoder knows, got {show(lead)}, of which "
                f"{unknown_share(lead, words):.0%} is unknown to it, and so the same as any other text."
            )
