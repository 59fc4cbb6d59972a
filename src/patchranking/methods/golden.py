"""Golden ranking, the oracle: it searches on the very images it is judged on."""

from __future__ import annotations

import torch
from torch import Tensor

from patchranking.methods.batch import Batch
from patchranking.methods.method import Encoded, Encoding, Method, Style, reducing
from patchranking.pruning.schedule import Schedule
from patchranking.pruning.stages import by_scores
from patchranking.ranking.sketched import sketched
from patchranking.towers import VisionTower

__all__ = ["Golden", "golden_importance"]

_IMAGES_PER_SEARCH = 8


def golden_importance(batch: Batch, block: int) -> Tensor:
    """Importance of the patches by the sketched search, ``(batch, patches)``, higher = keep; searched once."""

    def search() -> Tensor:
        parts = batch.pixels.split(_IMAGES_PER_SEARCH)
        return torch.cat([sketched(batch.tower, part, block).importance for part in parts])

    return batch.once(("golden", block), search)


class Golden(Method):
    """Drops the patches that the golden ranking puts last."""

    name = "golden"
    style = Style("#c79a00", "*")
    oracle = True

    def at(self, tower: VisionTower, schedule: Schedule, seed: int) -> Encoding:
        def search(batch: Batch) -> Tensor:
            return golden_importance(batch, schedule.block)

        def run(batch: Batch) -> Encoded:
            reductions = by_scores(tower, schedule, {schedule.block: lambda _: search(batch)})
            return reducing(tower, schedule, reductions).run(batch)

        return Encoding(tower, schedule, run, search)
