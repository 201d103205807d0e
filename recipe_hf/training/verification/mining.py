"""Mined misses: what asks for one statement of a source, and is near another for the retriever."""

from __future__ import annotations

import json
import random
import re
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor
from transformers.utils import logging

from ...evaluation.inputs import digest, weights_digest
from ...evaluation.records import write_record
from ...modeling.retriever import Retriever
from .rows import VerificationData

logger = logging.get_logger(__name__)

#: It is raised whenever the same data and weights give other misses.
_FORMAT = 1
_NEAREST = 5
_NEAREST_TO_CHAT = 3
_PER_STATEMENT = 8
#: How many queries are compared with all keys at once.
_QUERIES = 1024
#: Asks of a source that are looked up, at most.
_ASKS = 30_000
#: Statements that share more of their words may say the same.
_ALIKE = 0.7


@dataclass(frozen=True)
class Mined:
    """What was mined.

    Args:
        misses: For each statement texts that ask for others.
        near_chat: For each text of chat the numbers of the statements nearest to it.
    """

    misses: list[list[str]]
    near_chat: list[list[int]]


def mine(data: VerificationData, retriever: Retriever, directory: Path, seed: int) -> Mined:
    """Mines misses, or reads those that a run with the same data and weights left in `directory`.

    What is for development never becomes a miss of a statement that is trained on. Autocast counts for the encoder.
    """
    name = digest(
        [str(_FORMAT), str(seed), weights_digest(retriever), *map(repr, data.statements), *map(repr, data.chat)]
    )
    path = directory / f"mined-{name}.json"
    if path.is_file():
        return Mined(**json.loads(path.read_text(encoding="utf-8")))
    logger.info(f"Looking up what asks for {len(data.statements)} statements, to find misses.")
    with torch.no_grad():
        keys = retriever.encode_statements([statement.text for statement in data.statements]).float()
        mined = Mined(_misses(data, retriever, keys, random.Random(seed)), _near_chat(data, retriever, keys))
    directory.mkdir(parents=True, exist_ok=True)
    write_record(path, vars(mined))
    return mined


def _misses(data: VerificationData, retriever: Retriever, keys: Tensor, rng: random.Random) -> list[list[str]]:
    statements = data.statements
    words = [set(re.findall(r"\w+", statement.text.lower())) for statement in statements]
    by_source: dict[str, list[int]] = {}
    for number, statement in enumerate(statements):
        by_source.setdefault(statement.source, []).append(number)
    found: list[list[str]] = [[] for _ in statements]
    for numbers in by_source.values():
        asks = [(number, ask) for number in numbers for ask in statements[number].asks]
        asks = rng.sample(asks, min(len(asks), _ASKS))
        near = _nearest(retriever, [ask for _, ask in asks], keys[numbers], _NEAREST)
        for (asked, ask), places in zip(asks, near, strict=True):
            for number in (numbers[place] for place in places):
                other = statements[number]
                leaks = statements[asked].part == "development" and other.part == "training"
                if number == asked or leaks or ask in other.asks or _are_alike(words[asked], words[number]):
                    continue
                found[number].append(ask)
    return [rng.sample(misses, min(len(misses), _PER_STATEMENT)) for misses in found]


def _are_alike(words: set[str], others: set[str]) -> bool:
    return len(words & others) > _ALIKE * len(words | others)


def _near_chat(data: VerificationData, retriever: Retriever, keys: Tensor) -> list[list[int]]:
    """Statements of the same part, for a text of chat trained on must meet none that is for development."""
    near: list[list[int]] = [[] for _ in data.chat]
    for part in ("training", "development"):
        numbers = [number for number, row in enumerate(data.statements) if row.part == part]
        rows = [row for row, text in enumerate(data.chat) if text.part == part]
        found = _nearest(retriever, [data.chat[row].text for row in rows], keys[numbers], _NEAREST_TO_CHAT)
        for row, places in zip(rows, found, strict=True):
            near[row] = [numbers[place] for place in places]
    return near


def _nearest(retriever: Retriever, queries: list[str], keys: Tensor, count: int) -> list[list[int]]:
    """Places of the keys nearest to each query."""
    found: list[list[int]] = []
    for start in range(0, len(queries), _QUERIES):
        encoded = retriever.encode_queries(queries[start : start + _QUERIES]).float()
        with torch.autocast(keys.device.type, enabled=False):  # To 8 bits, near scores would be equal.
            found += (encoded @ keys.T).topk(min(count, len(keys))).indices.tolist()
    return found
