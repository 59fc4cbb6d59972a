"""Files that are written whole or not at all, and names for them."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from patchranking.errors import UserError

__all__ = ["as_file_name", "make_folder", "replacing", "write_json"]


def as_file_name(text: str) -> str:
    """A text with every character but letters and digits replaced by a dash."""
    return "".join(letter if letter.isalnum() else "-" for letter in text)


def make_folder(path: str | Path) -> Path:
    """Makes a folder for output, ``~`` expanded, or says in one sentence why it cannot."""
    folder = Path(path).expanduser()
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"Cannot make the folder '{folder}': {error.strerror}.") from error
    return folder


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Yields a path next to ``path`` to write to; it replaces ``path`` when the block ends without an error."""
    partial = path.with_name(f"{path.name}.partial")
    try:
        yield partial
        os.replace(partial, path)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise


def write_json(path: Path, content: object) -> None:
    """Writes indented JSON, all or nothing."""
    with replacing(path) as partial:
        partial.write_text(json.dumps(content, indent=2) + "\n")
