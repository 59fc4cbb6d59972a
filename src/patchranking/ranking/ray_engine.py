"""Ranks the shards of a job on a Ray cluster."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from patchranking.cluster import on_ray, unseen
from patchranking.data import ImageData
from patchranking.errors import UserError
from patchranking.ranking.search import SearchSettings
from patchranking.ranking.shards import ShardRanker
from patchranking.ranking.store import read_manifest
from patchranking.towers.load import load_model, load_on_worker

__all__ = ["rank_on_ray"]


def rank_on_ray(ranker: ShardRanker, shards: Sequence[int]) -> Iterator[int]:
    """Ranks shards on Ray; see ``on_ray``.

    All nodes see the images, local models and the folder of the rankings under the same paths. Each actor loads the
    model once, by its name. On CPUs of the same kind the rankings equal those of the local engine bit for bit: the same
    shards make the same batches.

    Args:
        ranker: The job.
        shards: Which shards.

    Yields:
        Numbers of images done, shard by shard.

    Raises:
        UserError: As ``on_ray`` does, and if a worker cannot load the model or see the folder.
    """
    device = ranker.model.tower.device
    job = _Job(
        model=ranker.model.name,
        device=device.type,
        data=ranker.data,
        settings=ranker.settings,
        record=ranker.record,
        folder=ranker.folder.resolve(),
        count=ranker.count,
    )
    return on_ray(job, shards, device)


@dataclass(frozen=True)
class _Job:
    """All a worker needs to know."""

    model: str
    device: str
    data: ImageData
    settings: SearchSettings
    record: dict[str, Any]
    folder: Path
    count: int

    def start(self) -> Callable[[int], int]:
        if read_manifest(self.folder) is None:
            raise unseen(self.folder)
        model = load_on_worker(load_model, self.model, self.device)
        ranker = ShardRanker(model, self.data, self.settings, self.folder, self.count)
        if ranker.record != self.record:
            raise UserError(f"A Ray worker found other weights for '{self.model}': give all nodes the same.")
        return lambda shard: sum(ranker.rank(shard))
