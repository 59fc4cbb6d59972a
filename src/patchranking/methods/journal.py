"""What a measurement has found so far, on disk, so that a killed one goes on."""

from __future__ import annotations

import json
import time
from collections.abc import Hashable, Mapping, Sequence
from pathlib import Path

import pyarrow.parquet as pq

from patchranking.files import replacing
from patchranking.methods.tally import Tally

__all__ = ["Journal"]

_SECONDS_PER_PART = 5.0
_SKIPPED = b"skipped"


class Journal:
    """Parquet parts of a tally, one every few seconds.

    Args:
        folder: A folder of its own, which holds the parts of the same measurement or none.
        names: Key of the tally -> a name that does not change from run to run.
    """

    def __init__(self, folder: Path, names: Mapping[Hashable, str]) -> None:
        self._folder, self._names = folder, names
        self._pending: list[int] = []
        self._parts = len(list(folder.glob("part-*.parquet")))
        self._noted = time.monotonic()

    def restore(self, tally: Tally) -> None:
        """Fills a tally with what is there."""
        for path in sorted(self._folder.glob("part-*.parquet")):
            table = pq.read_table(path)
            tally.restore(table, self._names)
            tally.skipped |= json.loads(table.schema.metadata[_SKIPPED])

    def note(self, tally: Tally, images: Sequence[int], last: bool = False) -> None:
        """Notes that some images have been measured; all of them are written at the last."""
        self._pending += images
        if not self._pending or not (last or time.monotonic() - self._noted > _SECONDS_PER_PART):
            return
        table = tally.table(self._names, self._pending)
        table = table.replace_schema_metadata({_SKIPPED: json.dumps(tally.skipped)})
        with replacing(self._folder / f"part-{self._parts:05d}.parquet") as partial:
            pq.write_table(table, partial, compression="zstd")
        self._parts, self._pending, self._noted = self._parts + 1, [], time.monotonic()
