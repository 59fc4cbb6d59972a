"""Collects per-image measures and averages them over any subset."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from patchranking.data import ImageData
from patchranking.ranking.scores import feature_damage
from patchranking.towers.load import LoadedModel
from patchranking.towers.zero_shot import class_features

__all__ = ["Tally", "object_share", "zero_shot_classes"]

Key = tuple[str, float]


def object_share(mask: np.ndarray, grid: tuple[int, int]) -> Tensor:
    """Share of the object's pixels that lie in each patch, ``(patches,)``, summing to 1."""
    area = F.adaptive_avg_pool2d(torch.from_numpy(mask).float()[None], grid).flatten()
    return area / area.sum().clamp_min(1e-12)


def zero_shot_classes(model: LoadedModel, data: ImageData) -> Tensor | None:
    """Unit text features of the classes, ``(classes, features)``; None without labels or a text tower."""
    if data.labels is None or model.text is None:
        return None
    return class_features(model.text, data.class_names, data.templates)


class Tally:
    """Per-image hits, cosines and object shares of every method and keep rate.

    Args:
        classes: Unit text features ``(classes, features)``, or None when nothing is to be classified.
    """

    def __init__(self, classes: Tensor | None) -> None:
        self.classes = classes
        self._values: dict[Key, dict[str, dict[int, float]]] = defaultdict(lambda: defaultdict(dict))

    def add(
        self,
        key: Key,
        images: Sequence[int],
        features: Tensor,
        full: Tensor,
        labels: Tensor | None,
        objects: Tensor | None,
        classes: Tensor | None = None,
    ) -> None:
        """Adds a batch.

        Args:
            key: Method and keep rate.
            images: The images' indices.
            features: ``(batch, features)``.
            full: Features of the dense model, same shape.
            labels: ``(batch,)`` or None.
            objects: Share of the object kept, ``(batch,)``, or None where masks are unknown.
            classes: Text features of this method's own, where it has tuned them.
        """
        measures = {"feature_cosine": 1 - feature_damage(features, full)}
        classes = self.classes if classes is None else classes
        if classes is not None and labels is not None:
            predicted = (F.normalize(features.float(), dim=-1) @ classes.T).argmax(-1)
            measures["top1"] = 100.0 * (predicted == labels).float()
        if objects is not None:
            measures["object_patches_kept"] = objects
        for name, values in measures.items():
            self._values[key][name].update(zip(images, values.tolist(), strict=True))

    def mean(self, key: Key, measure: str, images: set[int] | None = None) -> float | None:
        """Mean of a measure over all images or some; None where it was not taken."""
        values = self._values[key].get(measure, {})
        chosen = [value for image, value in values.items() if images is None or image in images]
        return float(np.mean(chosen)) if chosen else None

    def count(self, key: Key) -> int:
        """Images measured."""
        return len(self._values[key]["feature_cosine"])
