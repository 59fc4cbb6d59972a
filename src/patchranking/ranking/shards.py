"""Ranks a data set shard by shard: the work that every engine hands out."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np

from patchranking.data import ImageData, read_batches
from patchranking.ranking.search import SearchSettings, prepare_search
from patchranking.ranking.store import shard_name, write_shard
from patchranking.towers.identity import fingerprint
from patchranking.towers.load import LoadedModel

__all__ = ["ShardRanker"]

_IMAGES_PER_BATCH = {"cpu": 8}
"""Few on a CPU, whose caches then hold the activations."""
_IMAGES_PER_BATCH_ELSEWHERE = 64


class ShardRanker:
    """Ranks single shards with one model and writes each to its file.

    Args:
        model: The model.
        data: The images.
        settings: The search.
        folder: Where the files go.
        count: Number of shards the images are divided into, evenly and in order.

    Attributes:
        record: What is stored of the search and the model with the rankings.

    Raises:
        UserError: If the settings do not suit the model or the images.
    """

    def __init__(self, model: LoadedModel, data: ImageData, settings: SearchSettings, folder: Path, count: int) -> None:
        self.model, self.data, self.settings, self.folder, self.count = model, data, settings, folder, count
        self.record = {**settings.to_dict(), "model": model.name, "fingerprint": fingerprint(model.tower)}
        self._search = prepare_search(model, data, settings)

    def images(self, shard: int) -> range:
        """Indices of a shard's images."""
        total = len(self.data)
        return range(shard * total // self.count, (shard + 1) * total // self.count)

    def path(self, shard: int) -> Path:
        """The file of a shard."""
        return self.folder / shard_name(shard, self.count)

    def rank(self, shard: int) -> Iterator[int]:
        """Ranks a shard; its file is there, whole, when the last number has been taken.

        Yields:
            Numbers of images done, ranked or skipped; they add up to those of the shard.
        """
        tower = self.model.tower
        batch_size = _IMAGES_PER_BATCH.get(tower.device.type, _IMAGES_PER_BATCH_ELSEWHERE)
        skipped: dict[str, str] = {}
        keys: list[str] = []
        importance = [np.empty((0, tower.num_patches), np.float32)]
        order = [np.empty((0, tower.num_patches), np.int64)]
        for indices, pixels in read_batches(self.data, self.model.preprocess, batch_size, skipped, self.images(shard)):
            ranking = self._search(pixels, indices)
            keys += [self.data.keys[index] for index in indices]
            importance.append(ranking.importance.float().cpu().numpy())
            order.append(ranking.removal_order.cpu().numpy())
            yield len(indices)
        write_shard(self.path(shard), keys, np.concatenate(importance), np.concatenate(order), skipped, self.record)
        yield len(skipped)
