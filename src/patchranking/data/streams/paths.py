"""Pictures that a list of paths names."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from patchranking.data.base import printable
from patchranking.data.images import UnreadableImageError
from patchranking.data.streams.base import Entry, ImageStream
from patchranking.errors import UserError, reason

__all__ = ["SUFFIXES", "PathStream"]

SUFFIXES = (".txt", ".parquet")
_COLUMNS = ("path", "image_path", "image", "file_name", "filename", "file")
_ROWS_AT_ONCE = 10_000


class PathStream(ImageStream):
    """Pictures by their paths, each as often as it is named; paths that are not absolute start at the list's folder.

    A ``.txt`` file has a path in every line. A ``.parquet`` file has them in its column ``path``, ``image_path``,
    ``image``, ``file_name``, ``filename`` or ``file``, and may have a column ``key``, of texts too. Without one, keys
    are the paths as they are written.

    Args:
        file: The list.

    Raises:
        UserError: If there is no such list, or it has no column of paths.
    """

    def __init__(self, file: Path) -> None:
        if not file.is_file():
            raise UserError(f"There is no list of paths '{file}': give a .txt or .parquet file.")
        self._file = Path(os.path.abspath(file))
        self.identity = printable(str(self._file))
        self.left_out = Counter()
        self._columns = _columns(self._file) if file.suffix.lower() == ".parquet" else []

    def entries(self) -> Iterator[Entry]:
        folder = os.fsencode(self._file.parent)
        for key, path in self._rows() if self._columns else self._lines():
            yield Entry(key, os.path.join(folder, path) if path else b"", "" if path else "no path")

    def content(self, place: bytes) -> Path:
        if b"\0" in place:
            raise UnreadableImageError("a path with a NUL")
        return Path(os.fsdecode(place))

    def _lines(self) -> Iterator[tuple[str, bytes]]:
        with self._file.open("rb") as lines:
            for number, line in enumerate(lines):
                path = (line.removeprefix(b"\xef\xbb\xbf") if number == 0 else line).rstrip(b"\r\n")
                if path.strip():
                    yield printable(os.fsdecode(path)), path

    def _rows(self) -> Iterator[tuple[str, bytes]]:
        row = 0
        for batch in pq.ParquetFile(self._file).iter_batches(_ROWS_AT_ONCE, columns=self._columns):
            columns = [batch.column(name).to_pylist() for name in self._columns]
            for path, *key in zip(*columns, strict=True):
                yield printable(next(filter(None, (*key, path)), f"row-{row:08d}")), os.fsencode(path or "")
                row += 1


def _columns(file: Path) -> list[str]:
    """The column of paths, and that of keys where there is one."""
    try:
        schema = pq.read_schema(file)
    except (OSError, ValueError) as error:
        raise UserError(f"'{file}' cannot be read as Parquet: {reason(error)}.") from error
    texts = {field.name for field in schema if _is_text(field.type)}
    path = next((name for name in _COLUMNS if name in texts), None)
    if path is None:
        raise UserError(f"'{file}' has no column of paths: call one '{_COLUMNS[0]}', a column of texts.")
    return [path, *(["key"] if "key" in texts else [])]


def _is_text(kind: Any) -> bool:
    own = kind.value_type if pa.types.is_dictionary(kind) else kind
    return bool(pa.types.is_string(own) or pa.types.is_large_string(own))
