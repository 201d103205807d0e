"""Probes: further questions, made from the rows of a data set, that show where editing breaks.

Each probe takes facts, with their positions among those held, and gives a question for every fact it can make one of.
What is made for a fact does not depend on how many facts are held, nor on the seed.
"""

from __future__ import annotations

import random
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any

from transformers import PreTrainedTokenizerBase

from ...datasets import EditExample
from ...modeling.queries import as_chat, chat_markers
from .questions import Question

Asked = Sequence[tuple[EditExample, int]]

_VERB = re.compile(r"\b(is|are|was|were|has|had|can|does|did)\b")
_TRIES = 50


def make_probes(
    examples: Sequence[EditExample], tokenizer: PreTrainedTokenizerBase
) -> Mapping[str, Callable[[Asked], Iterator[Question]]]:
    """The probes of a data set, by the kind of their questions.

    Args:
        examples: All its facts: questions about other subjects and relations are made of them.
        tokenizer: The base's, which renders chats. Without a chat template there is no chat probe.
    """
    relations = _Relations(examples)
    probes: dict[str, Callable[[Asked], Iterator[Question]]] = {
        "distracted": partial(distracted, examples),
        "negated": negated,
        "same_subject": partial(same_subject, relations),
        "same_relation": partial(same_relation, relations),
    }
    if chat_markers(tokenizer) is not None:
        probes["chat"] = partial(chat, tokenizer)
    return probes


def distracted(examples: Sequence[EditExample], asked: Asked) -> Iterator[Question]:
    """The prompt after a sentence on something else: another fact's unrelated question with its answer.

    The fact should be used.
    """
    for example, position in asked:
        for other in _others(example, examples):
            if not other.unrelated_is_made_up and other.locality_answer != example.answer:
                text = f"{other.locality_prompt} {other.locality_answer.rstrip('.')}. {example.prompt}"
                yield Question("distracted", text, (example.answer,), position)
                break


def negated(asked: Asked) -> Iterator[Question]:
    """The prompt with "not" after its last verb, if that is one like "is" or "was" and follows the subject.

    Told that the mother tongue of X is English, nobody knows what it is not, other than by what the base knew: the
    fact should not be used.
    """
    for example, position in asked:
        before, subject, after = example.prompt.rpartition(example.subject) if example.subject else ("", "", "")
        verbs = list(_VERB.finditer(after))
        if verbs and not example.prompt.endswith("?"):
            end = verbs[-1].end()
            text = f"{before}{subject}{after[:end]} not{after[end:]}"
            yield Question("negated", text, (example.answer,), position, concerns=False)


class _Relations:
    """Prompts as templates: what is asked of a subject."""

    def __init__(self, examples: Sequence[EditExample]) -> None:
        self.prompts = {example.prompt for example in examples}
        self.rows = [e for e in examples if template(e)]
        self.answers: dict[str, set[str]] = {}
        for example in self.rows:
            self.answers.setdefault(template(example), set()).update({example.answer, example.ground_truth} - {""})

    def are_apart(self, one: EditExample, other: EditExample) -> bool:
        """Whether two rows ask for different things: no answer to the one's relation is known of the other's."""
        return self.answers[template(one)].isdisjoint(self.answers[template(other)])


def template(example: EditExample) -> str:
    """The prompt with `{}` for its subject; empty where the subject is not in it once."""
    if not example.subject or example.prompt.count(example.subject) != 1:
        return ""
    return example.prompt.replace(example.subject, "{}")


def same_subject(relations: _Relations, asked: Asked) -> Iterator[Question]:
    """Another relation of the same subject: the prompt of another fact, with its subject exchanged.

    The other relation shares no answer with the fact's own in the data, so that it is not its paraphrase. Nobody says
    that it makes sense ("The capital of Danielle Darrieux is"). The fact should not be used.
    """
    yield from _exchanged("same_subject", relations, asked, lambda own, other: (other, own))


def same_relation(relations: _Relations, asked: Asked) -> Iterator[Question]:
    """The same relation of another subject: the fact's prompt, with the subject of a fact on something else.

    As with [`same_subject`], it may make no sense. The fact should not be used.
    """
    yield from _exchanged("same_relation", relations, asked, lambda own, other: (own, other))


def _exchanged(kind: str, relations: _Relations, asked: Asked, relation_and_subject: Any) -> Iterator[Question]:
    for example, position in asked:
        if not template(example):
            continue
        for other in _others(example, relations.rows):
            relation, subject = relation_and_subject(example, other)
            text = template(relation).replace("{}", subject.subject)
            apart = other.subject != example.subject and relations.are_apart(example, other)
            if apart and text not in relations.prompts:
                answer = relation.ground_truth or relation.answer
                yield Question(kind, text, (answer,), position, concerns=False)
                break


def _others(example: EditExample, examples: Sequence[EditExample]) -> Iterator[EditExample]:
    """Some other examples, drawn by the example's prompt alone."""
    rng = random.Random(example.prompt)
    for _ in range(_TRIES if examples else 0):
        other = rng.choice(examples)
        if other.prompt != example.prompt:
            yield other


def chat(tokenizer: PreTrainedTokenizerBase, asked: Asked) -> Iterator[Question]:
    """The prompt as a user's message, in the base's chat template; what is looked up is the message, as in use.

    The fact should be used, though in a chat the base may well repeat the question first.
    """
    markers = chat_markers(tokenizer)
    for example, position in asked:
        text = as_chat(tokenizer, example.prompt)
        query = None if markers is None else markers.last_user_message(text)
        yield Question("chat", text, (example.answer,), position, query=query)
