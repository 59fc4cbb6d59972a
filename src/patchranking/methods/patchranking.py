"""A fitted pruner, with tuned tokens or without."""

from __future__ import annotations

from typing import Self

from torch import Tensor

from patchranking.data import ImageData
from patchranking.methods.method import Encoding, Method, Style, reducing
from patchranking.pruner import Pruner
from patchranking.pruning.schedule import Schedule
from patchranking.towers import VisionTower
from patchranking.towers.load import LoadedModel

__all__ = ["PatchRanking"]


class PatchRanking(Method):
    """A pruner as a method.

    Args:
        pruner: Fitted to the model.
        classes: Unit text features of the classes, ``(classes, features)``, where its tokens were tuned for them.
    """

    name = "patchranking"
    style = Style("#e2571e", "o")
    shown = True

    def __init__(self, pruner: Pruner, classes: Tensor | None = None) -> None:
        self.pruner, self.classes = pruner, classes
        self.tuned, self.prompts = pruner.tuned, pruner.prompts

    @classmethod
    def of(cls, pruner: Pruner, model: LoadedModel, data: ImageData) -> Self:
        """A pruner on a data set, with the text features of its classes where the text encoder was tuned for them."""
        untouched = data.labels is None or pruner.tuned in ("none", "visual")
        return cls(pruner, None if untouched else pruner.text_features(data.class_names, model.text))

    def at(self, tower: VisionTower, schedule: Schedule, seed: int = 0) -> Encoding:
        pruner = self.pruner.scheduled(schedule)
        return reducing(tower, schedule, pruner.reductions(), self.classes)
