"""Files that are written whole or not at all, and names for them."""

from __future__ import annotations

import glob
import json
import os
import shutil
import tempfile
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from patchranking.errors import UserError

__all__ = ["as_file_name", "locked", "make_folder", "replacing", "replacing_folder", "write_json"]

_ABANDONED = 600
"""Seconds after which a file that was never finished belongs to no one."""


def as_file_name(text: str) -> str:
    """A text with every character but letters and digits replaced by a dash."""
    return "".join(letter if letter.isalnum() else "-" for letter in text)


def make_folder(path: str | Path) -> Path:
    """Makes a folder for output, ``~`` expanded, and tries to write in it; says in one sentence why it cannot."""
    folder = Path(os.path.expanduser(path))
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"Cannot make the folder '{folder}': {error.strerror}.") from error
    except ValueError as error:
        raise UserError(f"'{folder}' can be no folder's name: {error}.") from error
    try:
        with tempfile.TemporaryFile(dir=folder) as probe:
            probe.write(b"?")
    except OSError as error:
        raise UserError(f"Cannot write in the folder '{folder}': {error.strerror}.") from error
    return folder


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Holds a lock for the length of a ``with`` block; it ends with this process, however that ends.

    Raises:
        UserError: If another process holds it.
    """
    import fcntl  # not there on Windows

    with path.open("w") as file:
        try:
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)  # flock's would live on in forked workers
        except OSError as error:
            raise UserError(
                f"Another run is writing into '{path.parent}': wait for it, or choose another folder for --out."
            ) from error
        yield


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Yields a path next to ``path`` to write to; it replaces ``path`` when the block ends without an error.

    No two writers share that path. What a killed one left is removed by the next, once it is older than some minutes.
    """
    partial = _beside(path)
    try:
        yield partial
        os.replace(partial, path)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise
    for left in _abandoned(path):
        with suppress(OSError):
            left.unlink()


@contextmanager
def replacing_folder(folder: Path) -> Iterator[Path]:
    """Yields a new folder next to ``folder`` to fill; it replaces that folder when the block ends without an error.

    What a killed writer left is removed by the next, once it is older than some minutes.
    """
    partial, old = _beside(folder), _beside(folder)
    try:
        partial.mkdir()
        yield partial
        if folder.exists():
            os.replace(folder, old)
        os.replace(partial, folder)
    except BaseException:
        if old.exists():
            os.replace(old, folder)
        shutil.rmtree(partial, ignore_errors=True)
        raise
    for left in (old, *_abandoned(folder)):
        shutil.rmtree(left, ignore_errors=True)


def _beside(path: Path) -> Path:
    return path.with_name(f"{path.name}.{uuid.uuid4().hex[:8]}.partial")


def _abandoned(path: Path) -> Iterator[Path]:
    """What killed writers of ``path`` left some minutes ago."""
    for left in path.parent.glob(f"{glob.escape(path.name)}.*partial"):
        with suppress(OSError):
            if time.time() - left.stat().st_mtime > _ABANDONED:
                yield left


def write_json(path: Path, content: object) -> None:
    """Writes indented JSON, all or nothing."""
    with replacing(path) as partial:
        partial.write_text(json.dumps(content, indent=2) + "\n")
