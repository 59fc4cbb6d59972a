"""The vectors of a folder that ``embed`` wrote, read block by block."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from patchranking.data.streams import Entry
from patchranking.embedding.listed import Listed
from patchranking.embedding.store import MANIFEST, store_of
from patchranking.errors import UserError

__all__ = ["Index", "nearest", "read_manifest"]


def read_manifest(folder: str | Path) -> dict[str, Any]:
    """The manifest of a folder of vectors of images.

    Raises:
        UserError: If there is none, or it is of something else.
    """
    path = Path(folder).expanduser() / MANIFEST
    try:
        manifest: dict[str, Any] = json.loads(path.read_text())
        if {"model", "fingerprint", "features", "format", "preprocessing"} <= manifest.keys():
            return manifest
    except (OSError, ValueError, AttributeError):
        pass
    raise UserError(f"'{folder}' holds no vectors of images: give a folder that patchranking embed wrote.")


class Index:
    """All vectors of the finished shards; images that failed have none. A vector's place is its number among them.

    Args:
        folder: A folder that ``embed`` wrote, finished or not.

    Attributes:
        manifest: What was embedded, and how.

    Raises:
        UserError: If the folder holds no vectors.
    """

    def __init__(self, folder: str | Path) -> None:
        self.manifest = read_manifest(folder)
        folder = Path(folder).expanduser()
        self._store, self._listed = store_of(folder, self.manifest["format"]), Listed(folder / "_list")
        self._shards = [shard for shard in range(self._listed.shards) if self._store.path(shard).exists()]
        accounts = map(self._store.account, self._shards)
        self._ends = np.cumsum([rows - failed.total() for rows, failed in accounts])
        if not len(self):
            raise UserError(f"'{folder}' holds no vectors yet: run embed to its end first.")

    def __len__(self) -> int:
        return int(self._ends[-1]) if len(self._ends) else 0

    def keys(self) -> Iterator[str]:
        """The key of every vector, in order."""
        for shard in self._shards:
            yield from self._store.keys(shard)[1]

    def blocks(self) -> Iterator[Tensor]:
        """The vectors, in order, scaled to length 1, float32 ``(vectors, features)``, a shard at a time."""
        for shard in self._shards:
            yield F.normalize(torch.from_numpy(self._store.vectors(shard).astype(np.float32)), dim=-1)

    def entry(self, place: int) -> Entry:
        """The image that a vector is of."""
        number = int(np.searchsorted(self._ends, place, side="right"))
        shard, start = self._shards[number], self._ends[number - 1] if number else 0
        row = self._store.keys(shard)[0][place - start]
        return self._listed.entries(shard)[row]


def nearest(queries: Tensor, blocks: Iterable[Tensor], k: int) -> tuple[Tensor, Tensor]:
    """The nearest vectors, exactly: every one is compared, and a block at a time is in memory.

    Args:
        queries: Of length 1, ``(queries, features)``.
        blocks: Of length 1, ``(vectors, features)`` each.
        k: How many to find; fewer where there are fewer.

    Returns:
        Their cosines and their places among all vectors, ``(queries, k)``, nearest first.
    """
    cosines, places, start = torch.empty(len(queries), 0), torch.empty(len(queries), 0, dtype=torch.long), 0
    for block in blocks:
        here = torch.arange(start, start := start + len(block)).expand(len(queries), -1)
        cosines, places = torch.cat([cosines, queries @ block.T], 1), torch.cat([places, here], 1)
        cosines, order = cosines.topk(min(k, cosines.shape[1]))
        places = places.gather(1, order)
    return cosines, places
