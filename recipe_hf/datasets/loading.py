"""Loading knowledge editing data from local files and the Hub, one set or a mixture of several."""

from __future__ import annotations

import json
import math
import os
import random
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from itertools import chain
from pathlib import Path
from typing import Any, Literal, TypeVar

from huggingface_hub import HfApi
from transformers.utils import logging

from ..download import connection
from .example import EditExample, split_half
from .layouts import LAYOUTS, Row, detect_layout

logger = logging.get_logger(__name__)

T = TypeVar("T")

_SUFFIXES = (".json", ".jsonl")
_HUB = re.compile(r"(?P<repo_id>[\w.-]+/[\w.-]+)(?:@(?P<revision>[^:]+))?(?::(?P<filename>.+))?")


def load_examples(
    path: str | os.PathLike[str],
    layout: str | None = None,
    half: Literal["train", "held_out"] | None = None,
    seed: int = 0,
) -> list[EditExample]:
    """Loads a data set in one of the layouts in which knowledge editing data are published.

    - `counterfact`: CounterFact of ROME and MEMIT (`requested_rewrite`, `paraphrase_prompts`, `neighborhood_prompts`)
    - `counterfact-flat`: CounterFact of EasyEdit and of the RECIPE authors (`prompt`, `target_new`, `subject`,
      `rephrase_prompt`, `locality_prompt`, `locality_ground_truth`)
    - `zsre`: ZSRE of ROME and EasyEdit (`src`, `alt`, `rephrase`, `loc`, `loc_ans`)
    - `zsre-mend`: ZSRE of MEND (`input`, `alternatives`, `filtered_rephrases`)
    - `knowedit`: KnowEdit (`prompt`, `target_new`, `subject`, `locality` and `portability` by kind)
    - `rippleedits`: RippleEdits of its authors (`edit`, and tests such as `Relation_Specificity`)
    - `rippleedits-flat`: RippleEdits of the RECIPE authors (`prompt`, `target_new`, `subject`, and questions with
      `targets` by kind, such as `Relation_Specificity`)
    - `facts`: your own (`prompt`, `answer`, and, if wanted, `subject`, lists of texts `rephrasings` and `unrelated`,
      `metadata`)

    A JSON file holds a list of rows; a file whose name ends in `.jsonl` holds one to a line.

    Rows that ask for no edit (ZSRE without a new answer, RippleEdits without an object) are left out, and questions
    without an answer. Of several answers to an unrelated question the first counts. A question of ZSRE loses its
    `nq question:` and gains its question mark. RippleEdits of its authors gives no subjects, and statements in one
    piece: they are split after the verb of their template.

    What a fact lacks is made up for. Its rephrasing is then the prompt itself. Its unrelated question is one of
    another fact, drawn by `seed` from those that do not name this subject nor ask for a fact of the file; if there is
    none, it is another fact's own prompt, with the answer from before the edit if the data say it. That will do in
    training, but where both facts are edited in, the gate fires with reason: `unrelated_is_made_up` marks these
    examples. The answer to an unrelated question of your own facts is not asked for: what the base says is what
    counts, and the fact's own answer, which a leak would put there, is the text on which both are compared.

    Args:
        path: A file; or a file of a data set on the Hub: `org/name:file.json`, `org/name@revision:file.json`, or
            `org/name` if it holds a single JSON file. Private data sets need a login or `HF_TOKEN`.
        layout: Name of the layout, by default found by the fields of the first row.
        half: Load only this half of the rows, see [`split_half`]; what a fact lacks then comes from its half too.
        seed: Seed of the half and of what is made up.

    Raises:
        FileNotFoundError: If the file is neither here nor on the Hub.
        ConnectionError: If the connection breaks.
        ValueError: If it is not such a file, no row is left, or a row is bad (named, with the field), or `layout` or
            `half` is unknown.
    """
    _check_choices(layout, half)
    rows = read_rows(path)
    read = (detect_layout(rows[0]) if layout is None else LAYOUTS[layout]).read
    examples = [example for row in rows if (example := read(row)) is not None]
    if len(examples) < len(rows):
        logger.warning(f"{path}: left out {len(rows) - len(examples)} of {len(rows)} rows, which ask for no edit.")
    if half is not None:
        examples = split_half(examples, seed)[half == "held_out"]
    if not examples:
        raise ValueError(f"{path} holds no edit to load.")
    return _with_unrelated(path, examples, seed)


def _check_choices(layout: str | None, half: str | None) -> None:
    if layout not in (None, *LAYOUTS):
        raise ValueError(f"layout must be one of {', '.join(LAYOUTS)}, got {layout!r}.")
    if half not in (None, "train", "held_out"):
        raise ValueError(f"half must be 'train' or 'held_out', got {half!r}.")


def read_rows(path: str | os.PathLike[str]) -> list[Row]:
    """The rows of a JSON or JSON lines file, here or on the Hub; the place of each is in the errors that it raises.

    Raises:
        FileNotFoundError: If the file is neither here nor on the Hub.
        ConnectionError: If the connection breaks.
        ValueError: If it is not such a file; the message names the line.
    """
    file = _local_file(path)
    try:
        text = file.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not UTF-8 text: {error}.") from error
    if file.suffix.lower() == ".jsonl":
        lines = [(number, line) for number, line in enumerate(text.split("\n"), 1) if line.strip()]
        rows = [Row(f"{path}, line {number}", _parse(f"{path}, line {number},", line)) for number, line in lines]
    else:
        values = _parse(path, text, find_row=True)
        if not isinstance(values, list):
            raise ValueError(f"{path} must hold a non-empty JSON list of rows, got {type(values).__name__}.")
        rows = [Row(f"{path}, row {number}", value) for number, value in enumerate(values)]
    if not rows:
        raise ValueError(f"{path} must hold a non-empty JSON list of rows, or a row to a line, got none.")
    return rows


def _parse(where: object, text: str, find_row: bool = False) -> Any:
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        raise ValueError(f"{where} is not valid JSON: {error}.") from error
    except (ValueError, RecursionError) as error:  # a number that is too long, or values too deep in each other
        row = f", row {_first_unreadable(text)}," if find_row else ""
        raise ValueError(f"{where}{row} cannot be read: {error}.") from error


def _first_unreadable(text: str) -> int:
    """The number of the first row of a JSON list that cannot be read."""
    decoder, number, position = json.JSONDecoder(), 0, text.find("[") + 1
    while True:
        while text.startswith((" ", "\t", "\r", "\n", ","), position):
            position += 1
        try:
            _, position = decoder.raw_decode(text, position)
        except (ValueError, RecursionError):
            return number
        number += 1


def _local_file(path: str | os.PathLike[str]) -> Path:
    """The file itself, or what the Hub's client brings."""
    if Path(path).is_file():
        return Path(path)
    named = named_on_hub(path)
    if named is None:
        raise FileNotFoundError(f"{path} is no file, nor named as one on the Hub is: org/name:file.json.")
    try:
        with connection(f"The download of {path}", "Nothing was loaded"):
            return _hub_file(**named)
    except ConnectionError:
        raise
    except (OSError, ValueError) as error:
        raise FileNotFoundError(f"{path} is neither a file nor one on the Hub that can be read: {error}") from error


def named_on_hub(path: str | os.PathLike[str]) -> dict[str, Any] | None:
    """`repo_id`, `revision` and `filename` of a path that names a file on the Hub; `None` for any other."""
    match = _HUB.fullmatch(str(path))
    if Path(path).exists() or match is None or (match["filename"] is None and str(path).endswith(_SUFFIXES)):
        return None
    return match.groupdict()


def _hub_file(repo_id: str, revision: str | None, filename: str | None) -> Path:
    api = HfApi()
    if filename is None:
        names = api.list_repo_files(repo_id, repo_type="dataset", revision=revision)
        found = [name for name in names if name.endswith(_SUFFIXES)]
        if len(found) != 1:
            raise ValueError(f"say which, as {repo_id}:FILE. Its JSON files: {', '.join(found) or 'none'}.")
        filename = found[0]
    return Path(api.hf_hub_download(repo_id, filename, repo_type="dataset", revision=revision))


def _with_unrelated(path: object, examples: Sequence[EditExample], seed: int) -> list[EditExample]:
    """The examples, each of which has an unrelated question."""
    prompts = {example.prompt for example in examples}
    lent = [(e.subject, pair) for e in examples for pair in e.unrelated if pair[0] not in prompts]
    facts = [(e.subject, (e.prompt, e.ground_truth or e.answer)) for e in examples]
    rng = random.Random(seed)
    completed = []
    for example in examples:
        if not example.unrelated:
            others = chain(_from_anywhere(lent, rng), _from_anywhere(facts, rng))
            pair = next((pair for subject, pair in others if _is_unrelated(example, subject, pair[0])), None)
            if pair is None:
                raise ValueError(
                    f"{path}: the fact {example.prompt!r} has no unrelated question, and the others have none to "
                    f"lend it: give it one, or add a fact about another subject."
                )
            example = replace(example, unrelated=(pair,), unrelated_is_made_up=True)
        completed.append(example)
    return completed


def _from_anywhere(items: Sequence[T], rng: random.Random) -> Iterator[T]:
    """All items in turn, from one drawn at random."""
    start = rng.randrange(len(items)) if items else 0
    return (items[(start + step) % len(items)] for step in range(len(items)))


def _is_unrelated(example: EditExample, subject: str, prompt: str) -> bool:
    if not example.subject:
        return prompt != example.prompt
    return subject != example.subject and example.subject not in prompt


@dataclass(frozen=True)
class DataSource:
    """A part of a mixture. The arguments but `weight` are those of [`load_examples`].

    Args:
        path: File, here or on the Hub.
        weight: How often facts are drawn from it, in proportion to the weights of the others.
        layout: Name of the layout.
        half: Half of the rows to take.
    """

    path: str
    weight: float = 1.0
    layout: str | None = None
    half: Literal["train", "held_out"] | None = None

    def __post_init__(self) -> None:
        if not isinstance(self.path, (str, os.PathLike)) or not str(self.path).strip():
            raise ValueError(f"path of a data source must be a non-empty text, got {self.path!r}.")
        _check_choices(self.layout, self.half)
        number = isinstance(self.weight, (int, float)) and not isinstance(self.weight, bool)
        if not number or not 0 < self.weight < math.inf:
            raise ValueError(f"weight of {self.path} must be a number above 0, got {self.weight!r}.")

    @classmethod
    def parse(cls, source: Any) -> DataSource:
        """Makes a source of a path, a `(path, weight)` pair, or a mapping as YAML gives it.

        Raises:
            ValueError: If it is none of these, or a key is missing or unknown.
        """
        if isinstance(source, DataSource):
            return source
        if isinstance(source, (str, os.PathLike)):
            return cls(str(source))
        if isinstance(source, (tuple, list)) and len(source) == 2:
            return cls(str(source[0]) if isinstance(source[0], os.PathLike) else source[0], source[1])
        allowed = [field.name for field in fields(cls)]
        if not isinstance(source, Mapping) or "path" not in source or set(source) - set(allowed):
            raise ValueError(
                f"A data source must be a path, a (path, weight) pair, or a mapping with path and, if wanted, "
                f"{', '.join(allowed[1:])}, got {source!r}."
            )
        return cls(**source)


def load_mixture(sources: str | os.PathLike[str] | Iterable[Any]) -> tuple[list[EditExample], list[float]]:
    """Loads data sets that are drawn from by weight. Halves are those of seed 0, whatever the seed of a run.

    Args:
        sources: A path, or sources as [`DataSource.parse`] takes them.

    Returns:
        The examples of all sources, in order, and the probability of drawing each: the weight of its source, shared
        among its examples.

    Raises:
        OSError, ValueError: As [`DataSource.parse`] and [`load_examples`] do, or if there is no source.
    """
    parsed = [DataSource.parse(s) for s in ([sources] if isinstance(sources, (str, os.PathLike)) else sources)]
    if not parsed:
        raise ValueError("sources must hold at least one data source, got none.")
    parts = [load_examples(source.path, source.layout, source.half) for source in parsed]
    total = sum(source.weight for source in parsed)
    shares = [source.weight / total / len(part) for source, part in zip(parsed, parts, strict=True) for _ in part]
    return [example for part in parts for example in part], shares
