"""The images on which the pruned and the dense model disagree most: what to look at before trusting a method."""

from __future__ import annotations

from dataclasses import dataclass

from patchranking.data import ImageData
from patchranking.evaluation.examples import farthest
from patchranking.evaluation.rows import Entry
from patchranking.methods.measure import measure
from patchranking.methods.tally import DENSE
from patchranking.towers.load import LoadedModel

__all__ = ["Disagreement", "Disagreements", "disagreements"]


@dataclass(frozen=True)
class Disagreement:
    """One image.

    Attributes:
        image: Its index.
        key: Its name.
        cosine: Cosine to the dense feature.
        dense: Class that the dense model names; None without classes.
        pruned: Class that the pruned one names.
    """

    image: int
    key: str
    cosine: float
    dense: str | None = None
    pruned: str | None = None

    @property
    def changed(self) -> bool:
        """Whether the two name different classes."""
        return self.dense != self.pruned


@dataclass(frozen=True)
class Disagreements:
    """What comparing a sample gave.

    Attributes:
        worst: The images on which the two disagree most, the worst first.
        compared: Images compared.
        changed: Of them, those that get another class; None without classes.
        cosine: Mean cosine.
        skipped: Key -> why an image could not be used.
    """

    worst: list[Disagreement]
    compared: int
    changed: int | None
    cosine: float
    skipped: dict[str, str]


def disagreements(model: LoadedModel, data: ImageData, entry: Entry, most: int = 12) -> Disagreements:
    """Compares a method with the dense model on all images of a set.

    Args:
        model: The model.
        data: The images.
        entry: The method with its encoding.
        most: Images to name.

    Raises:
        UserError: If no image can be read.
    """
    tally = measure(model, data, {entry: entry.encoding}, batch_size=16, progress=None)
    own, dense = tally.values(entry, "prediction"), tally.values(DENSE, "prediction")
    cosines = tally.values(entry, "feature_cosine")

    def name(prediction: float | None) -> str | None:
        return None if prediction is None else data.class_names[int(prediction)]

    worst = [
        Disagreement(image, data.keys[image], cosines[image], name(dense.get(image)), name(own.get(image)))
        for image in farthest(tally, entry, most)
    ]
    changed = sum(own[image] != dense[image] for image in own) if own else None
    return Disagreements(worst, len(cosines), changed, sum(cosines.values()) / len(cosines), tally.skipped)
