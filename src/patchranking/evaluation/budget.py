"""Budgets: the cheapest pruning within a loss, or the most faithful within a time, from a measured curve."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, Self, cast

from patchranking.data import ImageData
from patchranking.data.base import sample
from patchranking.errors import UserError
from patchranking.evaluation.cost import images_per_second, noise
from patchranking.evaluation.rows import caption_features, dense_neighbours, index_measures, recalls
from patchranking.methods import PatchRanking
from patchranking.methods.attach import check_class_token
from patchranking.methods.measure import measure
from patchranking.methods.method import Attachable, Method
from patchranking.methods.tally import DENSE
from patchranking.pruner import Pruner
from patchranking.pruning.macs import analytic_macs
from patchranking.pruning.schedule import Schedule
from patchranking.towers.load import LoadedModel

__all__ = ["Budget", "OperatingPoint", "choose", "find_point", "measure_curve"]

BudgetKind = Literal["points", "recall", "cosine", "overlap", "ms"]
_MEASURES = {
    "points": "points_lost",
    "recall": "recall_lost",
    "cosine": "feature_cosine",
    "overlap": "index_overlap",
    "ms": "milliseconds",
}
_HIGHER = ("cosine", "overlap")
_INDEXED = ("recall", "overlap")
_LACKING = {
    "points": "A budget in points needs labelled images and a model with a text tower: use cosine.",
    "recall": "A budget in recall needs captioned images and a model with a text tower: use overlap.",
    "overlap": "A budget in overlap needs 2 images or more, all measured by every schedule: use cosine.",
    "ms": "This curve has no times: measure it with a timing batch.",
}
_INDEX_IMAGES = 10_000
_RATES = tuple(round(0.95 - 0.05 * step, 2) for step in range(14))
_BLOCKS_BETWEEN_STAGES = 2


@dataclass(frozen=True)
class Budget:
    """What pruning may cost, or must reach.

    Attributes:
        value: Points of top-1 accuracy, or of recall@1 of the captions, that may be lost; the lowest mean cosine to the
            dense feature, or the lowest share of the 10 nearest neighbours that stay; or the most milliseconds per
            batch.
        kind: ``points``, ``recall``, ``cosine``, ``overlap`` or ``ms``.
    """

    value: float
    kind: BudgetKind

    @classmethod
    def parse(cls, text: str) -> Self:
        """Reads ``"0.5 points"``, ``"0.98 cosine"``, ``"40 ms"`` and the like; raises UserError for anything else."""
        found = re.fullmatch(rf"\s*(\d*\.?\d+)\s*({'|'.join(_MEASURES)})\s*", text)
        if not found or (found[2] in _HIGHER and float(found[1]) > 1) or (found[2] == "ms" and not float(found[1])):
            raise UserError(
                f"A budget reads '0.5 points', '0.5 recall', '0.98 cosine', '0.95 overlap' or '40 ms', not '{text}'."
            )
        return cls(float(found[1]), cast(BudgetKind, found[2]))

    def check(self, model: LoadedModel, data: ImageData) -> None:
        """Raises UserError when it cannot be measured with this model on these images."""
        classes = {"points": data.labels, "recall": data.captions}.get(self.kind, data.keys)
        text = model.text is not None or self.kind not in ("points", "recall")
        if classes is None or not text or (self.kind == "overlap" and len(data) < 2):
            raise UserError(_LACKING[self.kind])

    def of(self, point: OperatingPoint) -> float | None:
        """What a point has of what the budget is about; None where it was not measured."""
        value: float | None = getattr(point, _MEASURES[self.kind])
        return value

    def met(self, point: OperatingPoint) -> bool:
        """Whether a point is within the budget."""
        found = self.of(point)
        if found is None:
            return False
        return found >= self.value if self.kind in _HIGHER else found <= self.value + 1e-9


@dataclass(frozen=True)
class OperatingPoint:
    """A schedule and what was measured with it.

    Attributes:
        schedule: Where patches go and how many stay.
        gmacs: Multiply-accumulates of an image in billions, by formula, predictor left out.
        feature_cosine: Mean cosine to the dense feature.
        points_lost: Top-1 of the dense model less that of the pruned one, in points; None without labels.
        milliseconds: Median time of a batch; None where it was not measured.
        index_overlap: Share of the 10 nearest neighbours in an index of dense features that stay; None where it was not
            measured.
        recall_lost: Recall@1 of the captions with the dense model less that with the pruned one, in points; None
            without captions, or where it was not measured.
    """

    schedule: Schedule
    gmacs: float
    feature_cosine: float
    points_lost: float | None
    milliseconds: float | None
    index_overlap: float | None = None
    recall_lost: float | None = None


def measure_curve(
    model: LoadedModel,
    data: ImageData,
    pruner: Pruner | Attachable,
    rates: Sequence[float] = _RATES,
    timing_batch: int = 0,
    batch_size: int = 32,
    indexed: bool = False,
    skipped: dict[str, str] | None = None,
) -> list[OperatingPoint]:
    """Measures a pruner at many keep rates: one-shot before its first block, and in stages from there on.

    Args:
        model: The model the pruner was fitted to.
        data: Images that the fit has not seen; labelled for points.
        pruner: The pruner, which stays as it is, or a method that needs no fit.
        rates: Keep rates.
        timing_batch: Images per batch when timing; 0 leaves timing out.
        batch_size: Images per batch otherwise.
        indexed: Whether to measure overlap and recall, in an index of at most 10,000 of the images.
        skipped: Filled with key -> why an image was left out.

    Returns:
        A point for every keep rate of every schedule.

    Raises:
        UserError: If the pruner belongs to another model, or no image can be read.
    """
    tower = model.tower
    method: Method
    if isinstance(pruner, Pruner):
        pruner.base.check(tower)
        own, method = pruner.fitted, PatchRanking(pruner.untuned)
    else:
        check_class_token(pruner, tower)
        own, method = Schedule.default(tower.depth, 0.5), pruner
    every_second = list(range(own.block, tower.depth, _BLOCKS_BETWEEN_STAGES))
    shapes = {tuple(blocks): blocks for blocks in (list(own.stages), [own.block], every_second)}
    schedules = [Schedule.spread(blocks, rate) for blocks in shapes.values() for rate in rates]
    encodings = {schedule: method.at(tower, schedule, 0) for schedule in schedules}
    index = frozenset(sample(len(data), _INDEX_IMAGES, 0)) if indexed else frozenset[int]()
    tally = measure(model, data, encodings, indexed=index, batch_size=batch_size)
    if skipped is not None:
        skipped |= tally.skipped
    captions, neighbours = caption_features(model, data, tally, None), dense_neighbours(tally)
    speeds = images_per_second(encodings, noise(tower, timing_batch)) if timing_batch else {}
    dense_top1, dense_recall = tally.mean(DENSE, "top1"), recalls(tally, DENSE, captions).get("recall_at_1")
    points = []
    for schedule in schedules:
        top1, cosine = (tally.mean(schedule, name) for name in ("top1", "feature_cosine"))
        assert cosine is not None
        recall = recalls(tally, schedule, captions).get("recall_at_1")
        points.append(
            OperatingPoint(
                schedule,
                analytic_macs(tower, tower.feature_size, schedule) / 1e9,
                cosine,
                None if dense_top1 is None or top1 is None else dense_top1 - top1,
                1000 * timing_batch / speeds[schedule] if speeds else None,
                index_measures(tally, schedule, neighbours)["index_overlap_at_10"],
                None if dense_recall is None or recall is None else dense_recall - recall,
            )
        )
    return points


def find_point(
    model: LoadedModel, data: ImageData, pruner: Pruner | Attachable, budget: Budget
) -> tuple[OperatingPoint, dict[str, str]]:
    """Measures a pruner's curve and chooses from it.

    Args:
        model: The model the pruner was fitted to.
        data: Images that the fit has not seen.
        pruner: The pruner, which stays as it is, or a method that needs no fit.
        budget: The budget; a time is that of one image.

    Returns:
        The point, and key -> why an image was left out.

    Raises:
        UserError: If the budget cannot be measured on these images, or no point is within it.
    """
    budget.check(model, data)
    skipped: dict[str, str] = {}
    timed, indexed = int(budget.kind == "ms"), budget.kind in _INDEXED
    curve = measure_curve(model, data, pruner, timing_batch=timed, indexed=indexed, skipped=skipped)
    return choose(curve, budget), skipped


def choose(curve: Sequence[OperatingPoint], budget: Budget) -> OperatingPoint:
    """The point that costs least within a loss, or the one nearest to the dense feature within a time.

    Args:
        curve: From ``measure_curve``.
        budget: The budget.

    Raises:
        UserError: If the curve lacks what the budget is about, or no point is within it.
    """
    values = [value for value in map(budget.of, curve) if value is not None]
    if not values:
        raise UserError(_LACKING[budget.kind])
    within = [point for point in curve if budget.met(point)]
    if not within:
        nearest = max(values) if budget.kind in _HIGHER else min(values)
        advice = (
            "Allow more time, or take a smaller model." if budget.kind == "ms" else "Fit to more images, or allow more."
        )
        raise UserError(
            f"No keep rate is within {budget.value:g} {budget.kind}: the nearest reaches {nearest:.4g}. {advice}"
        )
    if budget.kind == "ms":
        return max(within, key=lambda point: point.feature_cosine)
    return min(within, key=lambda point: point.gmacs)
