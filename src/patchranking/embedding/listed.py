"""The list of images on disk: written once, in order, and read shard by shard."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator
from itertools import chain, islice
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from patchranking.data.streams import Entry
from patchranking.errors import UserError
from patchranking.files import replacing

__all__ = ["Listed", "digests"]

_SCHEMA = pa.schema([("key", pa.string()), ("place", pa.binary()), ("lost", pa.string())])
_DIGEST = 16
_AT_ONCE = 10_000


class Listed:
    """Parquet files of entries, one for each time that new ones were found; every row group is a shard.

    Args:
        folder: A folder of its own, made when it is needed.

    Raises:
        UserError: If a file of it is damaged.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._read()

    def _read(self) -> None:
        self._files: list[pq.ParquetFile] = []
        for path in sorted(self._folder.glob("list-*.parquet")):
            try:
                self._files.append(pq.ParquetFile(path))
            except (OSError, ValueError) as error:
                raise UserError(f"'{path}' is damaged: delete '{self._folder.parent}' and embed again.") from error
        places = [(file, group) for file in self._files for group in range(file.num_row_groups)]
        self._places = places
        self.sizes = [file.metadata.row_group(group).num_rows for file, group in places]

    @property
    def shards(self) -> int:
        """Number of shards."""
        return len(self._places)

    def __len__(self) -> int:
        return sum(self.sizes)

    def entries(self, shard: int) -> list[Entry]:
        """The entries of a shard."""
        file, group = self._places[shard]
        columns = [column.to_pylist() for column in file.read_row_group(group).columns]
        return [Entry(*row) for row in zip(*columns, strict=True)]

    def extend(self, entries: Iterable[Entry], shard_size: int) -> int:
        """Adds the entries that are not in the list as often, in new shards; returns their number.

        Args:
            entries: All entries of a source, in any order, known ones too. They are never all in memory; of those in
                the list, a digest of 16 bytes is.
            shard_size: Entries of a new shard, at most.
        """
        found = self._unknown(iter(entries)) if len(self) else iter(entries)
        if (first := next(found, None)) is None:
            return 0
        found, before = chain([first], found), len(self)
        self._folder.mkdir(exist_ok=True)
        path = self._folder / f"list-{len(self._files):05d}.parquet"
        with replacing(path) as partial, pq.ParquetWriter(partial, _SCHEMA, compression="zstd") as writer:
            while rows := list(islice(found, shard_size)):
                columns = list(map(pa.array, zip(*rows, strict=True), _SCHEMA.types))
                writer.write_table(pa.table(columns, schema=_SCHEMA), row_group_size=shard_size)
        self._read()
        return len(self) - before

    def _unknown(self, entries: Iterator[Entry]) -> Iterator[Entry]:
        keys = (entry.key for shard in range(self.shards) for entry in self.entries(shard))
        known, left = np.unique(digests(keys, len(self)), return_counts=True)
        while some := list(islice(entries, _AT_ONCE)):
            own = digests((entry.key for entry in some), len(some))
            places = np.searchsorted(known, own).clip(max=len(known) - 1)
            for entry, place, there in zip(some, places.tolist(), (known[places] == own).tolist(), strict=True):
                if there and left[place]:
                    left[place] -= 1
                else:
                    yield entry


def digests(keys: Iterable[str], count: int) -> np.ndarray:
    """Digests of keys, which can be sorted, ``(count,)``."""
    found = (hashlib.blake2b(key.encode(), digest_size=_DIGEST).digest() for key in keys)
    return np.fromiter(found, f"S{_DIGEST}", count)
