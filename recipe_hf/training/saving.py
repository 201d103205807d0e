"""Checkpoints to resume a run from: wherever it is killed, a whole copy of the last one is left.

A copy is written beside the one before, as `NAME.new`, and takes its place by two renames, the other being `NAME.old`
meanwhile. Its seal, a file that names all others and what they hold, is written last: a copy without is not whole.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from transformers.utils import logging

from ..evaluation.inputs import describe_file
from ..evaluation.records import difference, write_record

logger = logging.get_logger(__name__)

SEAL = "run.json"


def beside(directory: Path) -> tuple[Path, Path]:
    """Where the next copy of a directory is written, and where the last one is while they change places."""
    return directory.with_name(f"{directory.name}.new"), directory.with_name(f"{directory.name}.old")


def is_there(directory: Path) -> bool:
    """Whether there is a copy of a directory, in its place or beside it."""
    new, old = beside(directory)
    return directory.is_dir() or old.is_dir() or (new / SEAL).is_file()


def seal(directory: Path, record: Mapping[str, Any]) -> None:
    """Ends the writing of a copy.

    Args:
        directory: The copy.
        record: What else its seal says, with the `step`, by which copies are told from older ones.
    """
    files = {path.name: describe_file(path) for path in sorted(directory.iterdir()) if path.is_file()}
    write_record(directory / SEAL, {**record, "files": files})


def read_seal(directory: Path) -> dict[str, Any]:
    """What the seal of a copy says.

    Raises:
        FileNotFoundError: If the seal or another file is missing; the message names it.
        ValueError: If one is damaged, likewise.
    """
    path = directory / SEAL
    if not path.is_file():
        raise FileNotFoundError(
            f"{path} is missing: {directory} is not whole, or an older version of recipe-hf wrote it."
        )
    record = _read_json(path)
    try:
        files, _, _ = (record[name] for name in ("files", "step", "inputs"))
        sealed = {directory / name: description for name, description in files.items()}
    except (AttributeError, KeyError, TypeError) as error:
        raise ValueError(f"{path} is damaged: it does not say what {directory} holds.") from error
    for file, description in sealed.items():
        if not file.is_file():
            raise FileNotFoundError(f"{file} is missing.")
        found = describe_file(file)
        if found != description:
            raise ValueError(f"{file} is damaged: it had {description}, and has {found}.")
    return record


def find_whole(directory: Path) -> tuple[Path, dict[str, Any]]:
    """The newest whole copy of a sealed directory, and what its seal says. Nothing is changed.

    Raises:
        FileNotFoundError: If there is no copy, or a file of the only one is missing.
        ValueError: If a file of the only one is damaged.
    """
    if not is_there(directory):
        raise FileNotFoundError(f"{directory} does not exist, so there is nothing to resume.")
    whole: dict[Path, dict[str, Any]] = {}
    problems: dict[Path, OSError | ValueError] = {}
    for copy in (directory, *beside(directory)):
        if copy.is_dir():
            try:
                whole[copy] = read_seal(copy)
            except (OSError, ValueError) as error:
                problems[copy] = error
    if not whole:
        raise next(iter(problems.values()))
    newest = max(whole, key=lambda copy: whole[copy]["step"])
    if directory in problems:
        logger.warning(f"{problems[directory]} The run goes on from {newest}.")
    return newest, whole[newest]


def find_run(directory: Path, inputs: Mapping[str, Any]) -> tuple[Path, dict[str, Any]]:
    """The newest whole copy of the checkpoint of a run, and what its seal says. Nothing is changed.

    Args:
        directory: The checkpoint.
        inputs: What the run depends on, as plain values.

    Raises:
        FileNotFoundError: As [`find_whole`] does.
        ValueError: Likewise, or if the checkpoint is of another run; the message names the first difference.
    """
    copy, record = find_whole(directory)
    other = difference(record["inputs"], inputs)
    if other is not None:
        raise ValueError(f"{copy} is of another run: {other}: set it back, or choose another output_dir.")
    return copy, record


def refuse_earlier(*directories: Path) -> None:
    """Checks that no earlier run left a copy of a directory.

    Raises:
        FileExistsError: If one did.
    """
    for directory in directories:
        if is_there(directory):
            raise FileExistsError(
                f"{directory} holds an earlier run: resume it (--resume), choose another output_dir, or delete it."
            )


def find_best(directory: Path) -> Path:
    """Where the best checkpoint of an interrupted run is: in its place or, if that is empty, beside it.

    Raises:
        FileNotFoundError: If it or one of its files is missing.
        ValueError: If one is damaged.
    """
    new, old = beside(directory)
    # A new copy is known to be whole only if the last one was moved away for it.
    copies = [copy for copy in (directory, new, old) if copy.is_dir()] if old.is_dir() else [directory]
    copy = copies[0]
    _read_json(copy / "config.json")
    weights = copy / "model.safetensors"
    try:
        with safe_open(weights, framework="pt"):
            return copy
    except SafetensorError as error:
        raise ValueError(f"{weights} is damaged: {error}.") from error


def settle(copy: Path, directory: Path) -> None:
    """Puts a whole copy into its place, and deletes what else is left beside it."""
    if copy != directory:
        if directory.is_dir():
            shutil.rmtree(directory)
        os.replace(copy, directory)
    for other in beside(directory):
        shutil.rmtree(other, ignore_errors=True)


def replace(directory: Path) -> None:
    """Puts the new copy, which is whole, into the place of the last one."""
    new, old = beside(directory)
    shutil.rmtree(old, ignore_errors=True)
    if directory.is_dir():
        os.replace(directory, old)
    os.replace(new, directory)
    shutil.rmtree(old, ignore_errors=True)


def cut_log(path: Path, step: int) -> None:
    """Drops what an interrupted run logged after a step, for what follows comes again; and a last line cut short.

    Raises:
        ValueError: If another line is damaged; the message names it.
    """
    if not path.is_file():
        return
    lines = path.read_bytes().splitlines()
    kept = []
    for number, line in enumerate(lines, start=1):
        try:
            if json.loads(line)["step"] <= step:
                kept.append(line + b"\n")
        except (KeyError, TypeError, ValueError) as error:
            if number < len(lines):
                raise ValueError(f"{path}, line {number}, is damaged: delete it to go on.") from error
    temporary, _ = beside(path)
    temporary.write_bytes(b"".join(kept))
    os.replace(temporary, path)


def _read_json(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path} is damaged: {error}.") from error
