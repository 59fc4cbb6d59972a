"""Pictures in data sets that the Hugging Face ``datasets`` library reads, row by row."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from patchranking.data.base import printable
from patchranking.data.huggingface import KEYS, Rows, content, is_text
from patchranking.data.streams.base import Entry, ImageStream
from patchranking.errors import UserError

__all__ = ["RowStream"]

_ROWS_AT_ONCE = 10_000


class RowStream(ImageStream):
    """Rows of one split, which stay in the library's memory-mapped files until they are read.

    Keys are the texts of the first column of names, or the number of the row where it has none.

    Args:
        data: ``NAME[:split]``, as in ``HuggingFaceData``.
        default_split: The split when none is named and there are several.

    Raises:
        UserError: If there is no such data set or split, or no column with pictures.
        MissingExtraError: If ``datasets`` is not installed.
    """

    def __init__(self, data: str, default_split: str) -> None:
        name, _, split = data.partition(":")
        if not name:
            raise UserError("'hf:' names no images: give hf:NAME[:split], a data set on the Hub or in a local folder.")
        opened = Rows(name, split, default_split)
        folder = os.path.expanduser(name)
        self.identity = f"hf:{os.path.abspath(folder) if os.path.isdir(folder) else name}:{opened.split}"
        self.left_out = Counter()
        column = next((column for column in KEYS if is_text(opened.rows, column)), None)
        self._keys = None if column is None else opened.rows.select_columns(column)
        self._pictures = opened.pictures

    def entries(self) -> Iterator[Entry]:
        for start in range(0, len(self._pictures), _ROWS_AT_ONCE):
            rows = range(start, min(start + _ROWS_AT_ONCE, len(self._pictures)))
            names: list[str | None] = [None] * len(rows)
            if self._keys is not None:
                (names,) = self._keys[rows.start : rows.stop].values()
            for row, name in zip(rows, names, strict=True):
                yield Entry(printable(name or f"row-{row:08d}"), str(row).encode())

    def content(self, place: bytes) -> Path | bytes:
        return content(self._pictures, int(place))
