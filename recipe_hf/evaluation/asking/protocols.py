"""The protocols under which edits are measured: what the retriever sees, what is forced, and what counts as right."""

from __future__ import annotations

import re
import string
from collections.abc import Mapping, Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Protocol:
    """A way to put a question.

    Args:
        description: What it is, for a reader of its figures.
        forced: Whether the answer is given token by token and the share of right predictions counts. Otherwise the
            model writes greedily, and the answer is there or is not.
        shows_answer: Whether the retriever reads the answer but its last token too, as the authors' code does.
    """

    description: str
    forced: bool
    shows_answer: bool


PROTOCOLS: Mapping[str, Protocol] = {
    "strict": Protocol(
        "the retriever reads the prompt only; token accuracy on the given answer, teacher-forced.",
        forced=True,
        shows_answer=False,
    ),
    "paper": Protocol(
        "as in the authors' code, the retriever reads the prompt and the answer but its last token; "
        "token accuracy, teacher-forced. For comparison with the paper's tables only.",
        forced=True,
        shows_answer=True,
    ),
    "generation": Protocol(
        "greedy decoding with nothing forced; the normalised answer must open the output.",
        forced=False,
        shows_answer=False,
    ),
}


def find_protocol(name: str) -> Protocol:
    """The protocol of this name.

    Raises:
        ValueError: If there is none.
    """
    if name not in PROTOCOLS:
        raise ValueError(f"protocol must be one of {', '.join(PROTOCOLS)}, got {name!r}.")
    return PROTOCOLS[name]


def normalize_answer(text: str) -> str:
    """A text in small letters, without punctuation, articles and runs of whitespace (as SQuAD compares answers).

    >>> normalize_answer("The  U.S. Army,")
    'us army'
    """
    text = text.lower().translate(str.maketrans("", "", string.punctuation))
    return " ".join(re.sub(r"\b(a|an|the)\b", " ", text).split())


def opens_with(output: str, answers: Sequence[str]) -> bool:
    """Whether one of the answers, normalised, stands whole at the start of the normalised output.

    >>> opens_with("Paris, of course", ["Paris"]), opens_with("Parisian", ["Paris"]), opens_with("in Paris", ["Paris"])
    (True, False, False)
    """
    # An answer of nothing but articles and punctuation normalises to nothing: then it is compared as it is.
    if all(not normalize_answer(answer) for answer in answers):
        return output.strip().startswith(tuple(answer.strip() for answer in answers))
    said = f"{normalize_answer(output)} "
    return any(said.startswith(f"{answer} ") for answer in map(normalize_answer, answers) if answer)
