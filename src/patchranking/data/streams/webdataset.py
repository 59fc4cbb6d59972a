"""Pictures in WebDataset shards, of which one at a time is listed."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from patchranking.data.base import distinct_ends, printable
from patchranking.data.images import UnreadableImageError, reason
from patchranking.data.streams.base import Entry, ImageStream
from patchranking.data.webdataset import read_part, scan, shard_paths
from patchranking.errors import UserError

__all__ = ["ShardStream"]


class ShardStream(ImageStream):
    """Samples with a picture, shard by shard; see ``WebDatasetData`` for what is one.

    Args:
        shards: Path of a tar file; ``{000..003}``, ``{a,b}`` and wildcards stand for several.

    Raises:
        UserError: If a shard is missing.
    """

    def __init__(self, shards: str) -> None:
        if not shards:
            raise UserError("'wds:' names no images: give tar files, as in wds:data/{000..003}.tar.")
        self._shards = [Path(os.path.abspath(path)) for path in shard_paths(shards)]
        self.identity = f"wds:{os.path.abspath(os.path.expanduser(shards))}"
        self.left_out = Counter()

    def entries(self) -> Iterator[Entry]:
        self.left_out = Counter()
        for shard, end in zip(self._shards, distinct_ends(self._shards, shortest=1), strict=True):
            stamp = _stamp(shard)
            samples, left_out = scan(shard)
            self.left_out.update(left_out.values())
            for name, found in samples.items():
                numbers = map(str, (*(found.place or (0, 0)), stamp))
                place = b"\0".join([os.fsencode(shard), *map(str.encode, numbers)])
                yield Entry(printable(f"{end.removesuffix('.tar')}/{name}"), place, found.lost)

    def content(self, place: bytes) -> bytes:
        name, *numbers = place.split(b"\0")
        shard, (offset, size, stamp) = Path(os.fsdecode(name)), map(int, numbers)
        try:
            if _stamp(shard) != stamp:
                raise UnreadableImageError(f"'{shard.name}' was changed after its pictures were listed")
        except OSError as error:
            raise UnreadableImageError(reason(error)) from error
        return read_part(shard, offset, size)


def _stamp(shard: Path) -> int:
    """When a file was written last; where its parts are is known until then."""
    return shard.stat().st_mtime_ns
