"""What can be wrong with a command, and how it is told: in one line, without a traceback."""

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
