"""Measures per image of several methods, and their means over any subset."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Hashable, Mapping, Sequence, Set

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor
from torch.nn import functional as F

from patchranking.ranking.objectives import feature_damage

__all__ = ["DENSE", "MEASURES", "Tally"]

DENSE = "dense"
"""The key of the dense model in every tally."""

MEASURES = ("feature_cosine", "prediction", "top1", "top5", "object_patches_kept", "estimated_error")
_SCHEMA = pa.schema(
    [
        ("method", pa.string()),
        ("image", pa.int64()),
        *((measure, pa.float64()) for measure in MEASURES),
        ("feature", pa.list_(pa.float32())),
    ]
)


class Tally:
    """Predictions, cosines and object shares of every image under every method, and features of some images.

    Args:
        labels: Class of every image of the data set; None without classes.
        indexed: Images whose features are kept.

    Attributes:
        skipped: Key -> why an image was left out.
    """

    def __init__(self, labels: Sequence[int] | None = None, indexed: Set[int] = frozenset()) -> None:
        self.labels, self.skipped = labels, dict[str, str]()
        self._indexed = indexed
        self._features: dict[Hashable, dict[int, Tensor]] = defaultdict(dict)
        self._values: dict[Hashable, dict[str, dict[int, float]]] = defaultdict(lambda: defaultdict(dict))

    def add(
        self,
        key: Hashable,
        images: Sequence[int],
        features: Tensor,
        full: Tensor,
        classes: Tensor | None = None,
        objects: Tensor | None = None,
        errors: Tensor | None = None,
    ) -> None:
        """Adds a batch.

        Args:
            key: The method and its setting.
            images: The images' indices.
            features: ``(batch, features)``.
            full: Features of the dense model, same shape.
            classes: Unit text features ``(classes, features)``; None when nothing is to be classified.
            objects: Share of the object kept, ``(batch,)``; None where it is unknown.
            errors: Estimated 1 - cosine, ``(batch,)``; None where it is not estimated.
        """
        measures = {"feature_cosine": 1 - feature_damage(features, full)}
        if classes is not None and self.labels is not None:
            logits = F.normalize(features.float(), dim=-1) @ classes.T
            labels = torch.tensor([self.labels[image] for image in images], device=logits.device)
            measures["prediction"] = logits.argmax(-1).float()
            measures["top1"] = 100.0 * (measures["prediction"] == labels).float()
            first = logits.topk(min(5, len(classes))).indices
            measures["top5"] = 100.0 * (first == labels.unsqueeze(1)).any(1).float()
        if objects is not None:
            measures["object_patches_kept"] = objects
        if errors is not None:
            measures["estimated_error"] = errors
        for name, values in measures.items():
            self._values[key][name].update(zip(images, values.tolist(), strict=True))
        kept = F.normalize(features.float(), dim=-1).cpu() if self._indexed else ()
        self._features[key].update((i, row) for i, row in zip(images, kept, strict=False) if i in self._indexed)

    def table(self, names: Mapping[Hashable, str], images: Collection[int]) -> pa.Table:
        """What was measured on some images: a row for each method and image, features where they are kept.

        Args:
            names: Key -> what to call it.
            images: The images.
        """
        rows = [
            {"method": name, "image": image}
            | {measure: values[image] for measure, values in self._values[key].items() if image in values}
            | {"feature": self._features[key][image].tolist() if image in self._features[key] else None}
            for key, name in names.items()
            for image in images
            if image in self.values(key, "feature_cosine")
        ]
        return pa.Table.from_pylist(rows, _SCHEMA)

    def restore(self, table: pa.Table, names: Mapping[Hashable, str]) -> None:
        """Takes in again what ``table`` gave."""
        keys = {name: key for key, name in names.items()}
        for row in table.to_pylist():
            key, image, feature = keys[row.pop("method")], row.pop("image"), row.pop("feature")
            for measure, value in row.items():
                if value is not None:
                    self._values[key][measure][image] = value
            if feature is not None:
                self._features[key][image] = torch.tensor(feature)

    def values(self, key: Hashable, measure: str) -> dict[int, float]:
        """Image -> its value of a measure; empty where it was not taken."""
        return self._values[key].get(measure, {})

    def features(self, key: Hashable) -> tuple[list[int], Tensor]:
        """The indexed images that were measured, ascending, and their unit features ``(images, features)``."""
        rows = self._features[key]
        images = sorted(rows)
        return images, torch.stack([rows[image] for image in images]) if images else torch.empty(0, 0)

    def mean(self, key: Hashable, measure: str, images: Set[int] | None = None) -> float | None:
        """Mean of a measure over all images or some; None where it was not taken."""
        chosen = [value for image, value in self.values(key, measure).items() if images is None or image in images]
        return float(np.mean(chosen)) if chosen else None

    def mean_per_class(self, key: Hashable) -> float | None:
        """Mean over classes of the top-1 of their images; None where it was not taken."""
        of_class: dict[int, list[float]] = defaultdict(list)
        if self.labels is not None:
            for image, hit in self.values(key, "top1").items():
                of_class[self.labels[image]].append(hit)
        return float(np.mean([np.mean(hits) for hits in of_class.values()])) if of_class else None

    def count(self, key: Hashable) -> int:
        """Images measured."""
        return len(self.values(key, "feature_cosine"))
