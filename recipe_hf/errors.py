"""Errors that a user can bring about, told in one line without a traceback; checks of the paths and ids given."""

from __future__ import annotations

from pathlib import Path

#: What a user can bring about: a wrong value, a missing file or package, a run that diverges.
EXPECTED = (ValueError, KeyError, OSError, ImportError, FloatingPointError)


def one_line(error: BaseException) -> str:
    """What an error says, in one line; its name if it says nothing."""
    # A KeyError's own text is the quoted form of its argument.
    said = error.args[0] if isinstance(error, KeyError) and error.args else error
    return " ".join(str(said).split()) or type(error).__name__


def existing_file(option: str, path: Path) -> Path:
    """The path of an option, if there is a file to be read.

    Raises:
        FileNotFoundError: If there is none; the message names the option.
    """
    if not path.exists() or path.is_dir():
        raise FileNotFoundError(f"{option} must be a file that exists, got {str(path)!r}.")
    return path


def model_source(argument: str, source: str) -> str:
    """What an argument names a model by: a directory, a GGUF file, or what can be a Hub id.

    Raises:
        FileNotFoundError: If it is none of these; the message names the argument.
    """
    path = Path(source)
    if path.suffix.lower() == ".gguf":
        names_one = path.is_file()
    else:
        names_one = bool(source.strip()) and (path.is_dir() if path.exists() else can_be_hub_id(source))
    if not names_one:
        raise FileNotFoundError(
            f"{argument} must be a directory or a GGUF file that exists, or a Hub id, got {source!r}."
        )
    return source


def data_source(argument: str, source: str) -> str:
    """What an argument names a data set by: a file, or one on the Hub (`org/name`, `org/name:file.json`).

    Raises:
        FileNotFoundError: If it is neither; the message names the argument.
    """
    path = Path(source)
    repo_id, _, filename = source.partition(":")
    is_on_hub = "/" in repo_id and (filename or path.suffix not in (".json", ".jsonl"))
    if not (path.is_file() if path.exists() else is_on_hub):
        raise FileNotFoundError(
            f"{argument} must be a file that exists, or org/name:file.json on the Hub, got {source!r}."
        )
    return source


def can_be_hub_id(name: str) -> bool:
    """Whether a repository on the Hub can have this name."""
    from huggingface_hub.utils import HFValidationError, validate_repo_id

    try:
        validate_repo_id(name)
    except HFValidationError:
        return False
    return True
