"""Examples: single images, what every stage of a method keeps of them, and what the model then says."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from patchranking.data import ImageData, read_batches
from patchranking.evaluation.rows import Entry
from patchranking.methods.batch import Batch
from patchranking.methods.golden import golden_importance
from patchranking.methods.tally import DENSE, Tally
from patchranking.pruning.schedule import Schedule
from patchranking.towers.load import LoadedModel

__all__ = ["Example", "View", "examples", "farthest", "stages_passed"]


@dataclass(frozen=True)
class View:
    """One image under one method at one keep rate.

    Attributes:
        passed: How many stages every patch passes, ``(rows, cols)``.
        stages: How many stages there are; a patch that passes all of them is kept.
        cosine: Cosine to the dense feature.
        prediction: Name of the class that is predicted; None without classes.
    """

    passed: np.ndarray
    stages: int
    cosine: float | None = None
    prediction: str | None = None

    @property
    def kept(self) -> np.ndarray:
        """Which patches reach the end, boolean ``(rows, cols)``."""
        return np.asarray(self.passed == self.stages)


@dataclass(frozen=True)
class Example:
    """One image with what is known about its patches.

    Attributes:
        image: RGB square as the model sees it.
        caption: Plain text under the image: its class, or a caption of it, or its key.
        importance: Golden importance ``(rows, cols)``, higher = keep; None if the golden ranking was not run.
        views: Method -> keep rate -> what it makes of the image.
        key: Name of the image in its data set.
        prediction: Name of the class that the dense model predicts; None without classes.
        worst: Whether it is shown because the pruned and the dense model disagree on it, not as it came.
    """

    image: Image.Image
    caption: str
    importance: np.ndarray | None = None
    views: Mapping[str, Mapping[float, View]] = field(default_factory=dict)
    key: str = ""
    prediction: str | None = None
    worst: bool = False


def farthest(tally: Tally, entry: Entry, number: int) -> list[int]:
    """Images on which a method and the dense model disagree most: other predictions first, then the lowest cosines."""
    own, dense = tally.values(entry.key, "prediction"), tally.values(DENSE, "prediction")
    cosines = tally.values(entry.key, "feature_cosine")
    return sorted(cosines, key=lambda image: (own.get(image) == dense.get(image), cosines[image]))[:number]


def stages_passed(entry: Entry, batch: Batch) -> Tensor | None:
    """How many stages every patch passes, ``(batch, patches)``; None where patches are merged.

    What a stage keeps is what the schedule that ends with it keeps.
    """
    tower, stages = entry.encoding.tower, list(entry.encoding.schedule.stages.items())
    passed = torch.zeros(len(batch.pixels), tower.num_patches, dtype=torch.int64, device=batch.pixels.device)
    for number in range(1, len(stages) + 1):
        until = Schedule(dict(stages[:number]))
        kept = entry.method.at(tower, until, 0).run(batch).keep_indices
        if kept is None and until.keep < 1:
            return None
        passed += 1 if kept is None else torch.zeros_like(passed).scatter(1, kept, 1)
    return passed


@torch.inference_mode()
def examples(
    model: LoadedModel,
    data: ImageData,
    images: Sequence[int],
    entries: Sequence[Entry],
    tally: Tally,
    worst: bool = False,
) -> list[Example]:
    """Reads some images again to show them.

    Args:
        model: The model.
        data: The images.
        images: Indices of a few that can be read.
        entries: What was measured; methods worth a look are shown, and the golden ranking of an oracle's images.
        tally: What was measured on the images.
        worst: What to note in every example.
    """
    tower, found = model.tower, []
    shown = [entry for entry in entries if entry.method.shown and entry.method.tuned == "none" and entry.keep < 1]
    oracle = next((entry.encoding for entry in entries if entry.method.oracle), None)
    for (image,), pixels in read_batches(data, model.preprocess, 1, {}, images):
        batch = Batch(tower, pixels.to(tower.device, tower.dtype), [image])
        views: dict[str, dict[float, View]] = {}
        for entry in shown:
            passed = stages_passed(entry, batch)
            if passed is not None:
                views.setdefault(entry.method.name, {})[entry.keep] = View(
                    passed.view(tower.grid).cpu().numpy(),
                    len(entry.encoding.schedule.stages),
                    tally.values(entry.key, "feature_cosine").get(image),
                    _class(data, tally.values(entry.key, "prediction").get(image)),
                )
        importance = None
        if oracle is not None and image in (oracle.images or ()):
            ranking = golden_importance(batch, oracle.schedule.block)
            importance = ranking.view(tower.grid).float().cpu().numpy()
        dense = _class(data, tally.values(DENSE, "prediction").get(image))
        caption, key = _caption(data, image), data.keys[image]
        found.append(Example(model.picture(pixels[0]), caption, importance, views, key, dense, worst))
    return found


def _class(data: ImageData, prediction: float | None) -> str | None:
    return None if prediction is None else data.class_names[int(prediction)]


def _caption(data: ImageData, image: int) -> str:
    if data.labels is not None:
        return data.class_names[data.labels[image]]
    return data.captions[image][0] if data.captions is not None and data.captions[image] else data.keys[image]
