"""Downloads from the Hugging Face Hub, and clear errors where a connection breaks."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from huggingface_hub import snapshot_download


def download(repo_id: str, patterns: list[str], **hub_kwargs: Any) -> Path:
    """The directory of a repository's files that match `patterns`, all of them, brought into the cache if need be.

    Args:
        repo_id: The repository.
        patterns: Names of the files, with wildcards.
        **hub_kwargs: `repo_type`, `revision`, `token`, `cache_dir`, `local_files_only`, `force_download`.

    Raises:
        OSError: If the repository cannot be found or read (in the words of `huggingface_hub`), or, as a
            `ConnectionError`, if the connection breaks.
        ValueError: If `repo_id` cannot be the name of a repository.
    """
    with connection(f"The download of {repo_id!r}", "The files that were complete are kept"):
        return Path(snapshot_download(repo_id, allow_patterns=patterns, **hub_kwargs))


@contextmanager
def connection(action: str, state: str) -> Iterator[None]:
    """Lets the Hub's answers through as they are, and says of a broken connection what it broke and left.

    Raises:
        ConnectionError: If the connection breaks.
    """
    try:
        yield
    except (OSError, ValueError):
        raise
    except Exception as error:  # the HTTP library, and so its errors, differs between versions of huggingface_hub
        cause = error.__cause__ or error
        raise ConnectionError(f"{action} broke off ({type(cause).__name__}: {cause}). {state}: try again.") from error
