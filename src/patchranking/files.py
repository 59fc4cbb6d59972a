"""Files that are written whole or not at all."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

__all__ = ["replacing", "write_json"]


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Yields a path beside ``path`` to write to; it takes the place of ``path`` when the block ends without error."""
    partial = path.with_name(f"{path.name}.partial")
    yield partial
    os.replace(partial, path)


def write_json(path: Path, content: object) -> None:
    """Writes indented JSON, all or nothing."""
    with replacing(path) as partial:
        partial.write_text(json.dumps(content, indent=2) + "\n")
