"""Atomic writes of several files with checksums, such as a saved knowledge base: all or none, checked when read.

A directory holds data files and a manifest with their SHA-256 sums. New data files are first written under a
temporary name; renaming the new manifest over the old one is the moment of the change; then the data files get their
names. A reader takes the copy of a data file that the manifest describes, so it finds all old or all new files
wherever a writer stopped.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

FORMAT_VERSION = 1
MANIFEST = "manifest.json"
_NEW = ".new"


def user_path(path: str | os.PathLike[str]) -> Path:
    """A path given by a user, with ~ for the home directory."""
    return Path(os.path.expanduser(path))


def write_files(directory: str | os.PathLike[str], files: Mapping[str, bytes], manifest: Mapping[str, Any]) -> None:
    """Writes `files` and a manifest that holds `manifest` to `directory`, in place of what was there."""
    directory = Path(directory)
    directory.mkdir(parents=True, exist_ok=True)
    _finish_interrupted_write(directory, files)
    for name, content in files.items():
        _write_synced(directory / (name + _NEW), content)
    sums = {name: _sha256(content) for name, content in files.items()}
    body = {"format_version": FORMAT_VERSION, **manifest, "files": sums}
    text = json.dumps({**body, "sha256": _manifest_sum(body)}, indent=2)
    _write_synced(directory / (MANIFEST + _NEW), text.encode())
    sync_directory(directory)
    os.replace(directory / (MANIFEST + _NEW), directory / MANIFEST)
    sync_directory(directory)
    for name in files:
        os.replace(directory / (name + _NEW), directory / name)
    sync_directory(directory)


def read_manifest(directory: str | os.PathLike[str]) -> dict[str, Any]:
    """Reads the manifest.

    Raises:
        FileNotFoundError: If there is none.
        ValueError: If it is not as it was written, or of another format version.
    """
    path = Path(directory) / MANIFEST
    if not path.is_file():
        raise FileNotFoundError(f"directory must hold a saved knowledge base, but {path} is missing.")
    try:
        manifest: dict[str, Any] = json.loads(path.read_bytes())
        version, expected = manifest["format_version"], manifest.pop("sha256")
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{path} is damaged: it is not a manifest ({error!r}).") from error
    if version != FORMAT_VERSION:
        raise ValueError(
            f"{path} must have format_version {FORMAT_VERSION}, got {version!r}: "
            f"it was written by another version of recipe-hf, or is damaged."
        )
    if _manifest_sum(manifest) != expected:
        raise ValueError(f"{path} is damaged or was altered: its SHA-256 sum is not the one it was written with.")
    return manifest


def read_file(directory: str | os.PathLike[str], name: str, manifest: Mapping[str, Any]) -> bytes:
    """Reads the data file `name` that `manifest` describes. Errors are those of `read_array`."""
    return read_array(directory, name, manifest).tobytes()


def read_array(directory: str | os.PathLike[str], name: str, manifest: Mapping[str, Any]) -> NDArray[np.uint8]:
    """Like `read_file`, for large files: NumPy puts them on large pages, where scattered rows are read faster.

    Raises:
        FileNotFoundError: If it is missing.
        ValueError: If it is not as it was written.
    """
    path = Path(directory) / name
    found = [candidate for candidate in (path, path.with_name(name + _NEW)) if candidate.is_file()]
    for candidate in found:
        content = np.fromfile(candidate, np.uint8)
        if _sha256(content.data) == manifest["files"].get(name):
            return content
    if not found:
        raise FileNotFoundError(f"{path} is missing from the saved knowledge base.")
    raise ValueError(f"{path} is damaged, truncated or altered: its SHA-256 sum is not the manifest's.")


def _finish_interrupted_write(directory: Path, names: Mapping[str, bytes]) -> None:
    try:
        sums = read_manifest(directory)["files"]
    except (FileNotFoundError, ValueError):
        return
    for name in names:
        new = directory / (name + _NEW)
        if new.is_file() and _sha256(new.read_bytes()) == sums.get(name):
            os.replace(new, directory / name)


def _write_synced(path: Path, content: bytes) -> None:
    with open(path, "wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())


def sync_directory(directory: Path) -> None:
    """Makes the names in a directory durable."""
    if os.name != "posix":
        return
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _sha256(content: bytes | memoryview) -> str:
    return hashlib.sha256(content).hexdigest()


def _manifest_sum(body: Mapping[str, Any]) -> str:
    return _sha256(json.dumps(body, sort_keys=True).encode())
