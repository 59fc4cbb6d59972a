"""A fitted pruner, with tuned tokens or without."""

from __future__ import annotations

from dataclasses import replace
from typing import Self

import torch
from torch import Tensor

from patchranking.data import ImageData
from patchranking.methods.batch import Batch
from patchranking.methods.method import Encoded, Encoding, Method, Style, reducing
from patchranking.predictor.fallback import check_fallback, run_doubted
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
        fallback: The estimated 1 - cosine to the dense feature above which an image runs densely, too; by default none
            does. With one, the method has a name of its own.

    Raises:
        UserError: If the fallback is below 0, or the pruner has no estimate of its errors.
    """

    name = "patchranking"
    style = Style("#e2571e", "o")
    shown = True

    def __init__(self, pruner: Pruner, classes: Tensor | None = None, fallback: float | None = None) -> None:
        self.pruner, self.classes, self.fallback = pruner, classes, fallback
        self.tuned, self.prompts = pruner.tuned, pruner.prompts
        if fallback is not None:
            pruner.check_doubt()
            self.name, self.shown = f"fallback {check_fallback(fallback):g}", False

    @classmethod
    def of(cls, pruner: Pruner, model: LoadedModel, data: ImageData) -> Self:
        """A pruner on a data set, with the text features of its classes where the text encoder was tuned for them."""
        untouched = data.labels is None or pruner.tuned in ("none", "visual")
        return cls(pruner, None if untouched else pruner.text_features(data.class_names, model.text))

    def at(self, tower: VisionTower, schedule: Schedule, seed: int = 0) -> Encoding:
        pruner = self.pruner.scheduled(schedule)
        pruned = reducing(tower, schedule, pruner.reductions(), self.classes)
        return pruned if self.fallback is None else self._doubting(pruner, pruned, self.fallback)

    def _doubting(self, pruner: Pruner, pruned: Encoding, fallback: float) -> Encoding:
        """The pruned encoding with the dense features of the images that are in doubt, where there are any."""
        tower, schedule, doubt = pruned.tower, pruned.schedule, pruner.check_doubt()
        reductions = pruner.reductions()

        def run(batch: Batch) -> Encoded:
            found = run_doubted(tower, batch.entering(schedule.block), schedule, reductions)
            errors = doubt(found.signs)
            features, again = found.features, errors > fallback
            if again.any():
                features = torch.where(again.unsqueeze(1), batch.features, features)
            return Encoded(features, None, errors)

        return replace(pruned, run=run, fallback=fallback, first=pruned)
