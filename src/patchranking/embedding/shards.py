"""Embeds a data set shard by shard: the work that every engine hands out."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from itertools import groupby

import numpy as np

from patchranking.data.streams import ImageStream
from patchranking.embedding.decode import Work
from patchranking.embedding.encoder import Encoder
from patchranking.embedding.listed import Listed
from patchranking.embedding.pipeline import Clock, Vectors, alive, decoded, decoder_of, encoded, written
from patchranking.embedding.settings import EmbedSettings
from patchranking.embedding.store import DENSE, Shard, Store
from patchranking.exporting.model import ReadyModel

__all__ = ["ShardEmbedder"]


class ShardEmbedder:
    """Embeds shards and writes each to its files: all rows of one, or those of a finished one that failed.

    Args:
        model: The model.
        stream: Where the images are from.
        encoder: Turns them into vectors.
        settings: How many workers decode.
        store: Where the shards go.
        listed: What is in them.
        failed: Whether only what failed is wanted, of finished shards.

    Attributes:
        clock: What the work waited for.
    """

    def __init__(
        self,
        model: ReadyModel,
        stream: ImageStream,
        encoder: Encoder,
        settings: EmbedSettings,
        store: Store,
        listed: Listed,
        failed: bool,
    ) -> None:
        self.model, self.stream, self.encoder, self.settings = model, stream, encoder, settings
        self.store, self.listed, self.failed, self.clock = store, listed, failed, Clock()
        self._wanted: dict[int, np.ndarray] = {}

    def rows(self, shard: int) -> int:
        """How many images of a shard are wanted."""
        return self.store.account(shard)[1].total() if self.failed else self.listed.sizes[shard]

    def embed(self, shards: Sequence[int], progress: Callable[[int], None]) -> None:
        """Embeds shards, each of which is there, whole, in the end.

        Args:
            shards: Their numbers.
            progress: Is told numbers of wanted images done, batch by batch.

        Raises:
            UserError: If a worker process dies, or a shard cannot be written.
        """
        with alive():
            decoder = decoder_of(self.model, self.stream)
            pictures = decoded(decoder, self._work(shards), self.settings, self.encoder.device)
            batches = self._told(encoded(pictures, self.encoder, self.clock), progress)
            made = ((shard, self._shard(shard, list(own))) for shard, own in groupby(batches, lambda own: own.shard))
            for _ in written(made, self.store, self.clock):
                pass

    def _work(self, shards: Sequence[int]) -> Iterator[Work]:
        """Batches of the shards; an image is in the same place of the same batch whatever else is wanted."""
        size = self.encoder.batch_size
        for shard in shards:
            entries = self.listed.entries(shard)
            wanted = self._wanted[shard] = np.ones(len(entries), bool)
            if self.failed:
                wanted[self.store.keys(shard)[0]] = False
            for start in range(0, len(entries), size):
                own = wanted[start : start + size].tolist()
                if any(own):
                    batch = zip(entries[start : start + size], own, strict=True)
                    yield Work(shard, start, [entry if keep else None for entry, keep in batch])

    def _told(self, batches: Iterator[Vectors], progress: Callable[[int], None]) -> Iterator[Vectors]:
        for batch in batches:
            progress(int(self._rows(batch).sum()))
            yield batch

    def _rows(self, batch: Vectors) -> np.ndarray:
        """Which rows of a batch are wanted, boolean ``(batch,)``."""
        return self._wanted[batch.shard][batch.start : batch.start + len(batch.keys)]

    def _shard(self, number: int, batches: Sequence[Vectors]) -> Shard:
        """A shard of all its batches, or a finished one in which the wanted rows are new."""
        if not self.failed:
            sizes = np.concatenate([batch.sizes for batch in batches])
            shard = Shard(
                [key for batch in batches for key in batch.keys],
                np.concatenate([batch.vectors for batch in batches]),
                [error for batch in batches for error in batch.errors],
                {"width": sizes[:, 0].copy(), "height": sizes[:, 1].copy()},
            )
            if dense := [batch.dense for batch in batches if batch.dense is not None]:
                shard.columns[DENSE] = np.concatenate(dense).astype(np.int32)
        else:
            shard = self.store.read(number)
            for batch in batches:
                for place in np.flatnonzero(self._rows(batch)):
                    row = batch.start + place
                    shard.vectors[row], shard.errors[row] = batch.vectors[place], batch.errors[place]
                    for column, size in zip(("width", "height"), batch.sizes[place], strict=True):
                        shard.columns[column][row] = size
                    if batch.dense is not None:
                        shard.columns[DENSE][row] = batch.dense[place]
        del self._wanted[number]
        return shard
