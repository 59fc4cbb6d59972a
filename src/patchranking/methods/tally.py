"""Collects per-image measures and averages them over any subset."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence, Set

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from patchranking.data import ImageData
from patchranking.ranking.objectives import feature_damage
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
    """Per-image hits, cosines and object shares of every method and keep rate, and features of some images.

    Args:
        classes: Unit text features ``(classes, features)``, or None when nothing is to be classified.
        indexed: Images whose features are kept.
    """

    def __init__(self, classes: Tensor | None, indexed: Set[int] = frozenset()) -> None:
        self.classes = classes
        self._indexed = indexed
        self._features: dict[Key, dict[int, Tensor]] = defaultdict(dict)
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
            logits = F.normalize(features.float(), dim=-1) @ classes.T
            measures["top1"] = 100.0 * (logits.argmax(-1) == labels).float()
            first = logits.topk(min(5, len(classes))).indices
            measures["top5"] = 100.0 * (first == labels.unsqueeze(1)).any(1).float()
        if objects is not None:
            measures["object_patches_kept"] = objects
        for name, values in measures.items():
            self._values[key][name].update(zip(images, values.tolist(), strict=True))
        kept = F.normalize(features.float(), dim=-1).cpu() if self._indexed else ()
        self._features[key].update((i, row) for i, row in zip(images, kept, strict=False) if i in self._indexed)

    def values(self, key: Key, measure: str) -> dict[int, float]:
        """Image -> its value of a measure; empty where it was not taken."""
        return self._values[key].get(measure, {})

    def features(self, key: Key) -> tuple[list[int], Tensor]:
        """The indexed images that were measured, ascending, and their unit features ``(images, features)``."""
        rows = self._features[key]
        images = sorted(rows)
        return images, torch.stack([rows[image] for image in images]) if images else torch.empty(0, 0)

    def mean_per_class(self, key: Key, labels: Sequence[int]) -> float | None:
        """Mean over classes of the top-1 of their images; None where it was not taken."""
        of_class: dict[int, list[float]] = defaultdict(list)
        for image, hit in self.values(key, "top1").items():
            of_class[labels[image]].append(hit)
        return float(np.mean([np.mean(hits) for hits in of_class.values()])) if of_class else None

    def mean(self, key: Key, measure: str, images: set[int] | None = None) -> float | None:
        """Mean of a measure over all images or some; None where it was not taken."""
        chosen = [value for image, value in self.values(key, measure).items() if images is None or image in images]
        return float(np.mean(chosen)) if chosen else None

    def count(self, key: Key) -> int:
        """Images measured."""
        return len(self._values[key]["feature_cosine"])
