"""Golden ranking, the oracle: it searches on the very images it is judged on."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from patchranking.methods.batch import Batch
from patchranking.methods.method import Encoding, Method, Style, by_importance
from patchranking.pruning.schedule import Schedule
from patchranking.ranking.sketched import sketched
from patchranking.towers import VisionTower

__all__ = ["Golden", "by_golden", "golden_importance"]

_IMAGES_PER_SEARCH = 8


def golden_importance(batch: Batch, block: int) -> Tensor:
    """Importance of the patches by the sketched search, ``(batch, patches)``, higher = keep; searched once."""

    def search() -> Tensor:
        parts = batch.pixels.split(_IMAGES_PER_SEARCH)
        return torch.cat([sketched(batch.tower, part, block).importance for part in parts])

    return batch.once(("golden", block), search)


def by_golden(tower: VisionTower, schedule: Schedule, golden: Mapping[int, Tensor]) -> Encoding:
    """The encoding that drops patches by golden importance found before, measured on the images that have it.

    Args:
        tower: The image encoder.
        schedule: Where patches are dropped and how many stay.
        golden: Index of an image -> importance of its patches, ``(patches,)``.
    """

    def importance(batch: Batch) -> Tensor:
        return torch.stack([golden[image] for image in batch.images]).to(tower.device)

    return Encoding(tower, schedule, by_importance(tower, schedule, importance), images=golden.keys())


class Golden(Method):
    """Drops the patches that the golden ranking puts last."""

    name = "golden"
    style = Style("#c79a00", "*")
    oracle = True

    def at(self, tower: VisionTower, schedule: Schedule, seed: int) -> Encoding:
        def search(batch: Batch) -> Tensor:
            return golden_importance(batch, schedule.block)

        return Encoding(tower, schedule, by_importance(tower, schedule, search), search)
