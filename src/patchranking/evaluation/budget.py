"""Budgets: the cheapest pruning within a loss, or the most faithful within a time, from a measured curve."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, Self, cast

from patchranking.data import ImageData
from patchranking.errors import UserError
from patchranking.evaluation.cost import images_per_second, noise
from patchranking.methods import PatchRanking
from patchranking.methods.measure import measure
from patchranking.methods.tally import DENSE
from patchranking.pruner import Pruner
from patchranking.pruning.macs import analytic_macs
from patchranking.pruning.schedule import Schedule
from patchranking.towers.load import LoadedModel

__all__ = ["Budget", "OperatingPoint", "choose", "measure_curve"]

BudgetKind = Literal["points", "cosine", "ms"]
_RATES = tuple(round(0.95 - 0.05 * step, 2) for step in range(14))
_BLOCKS_BETWEEN_STAGES = 2


@dataclass(frozen=True)
class Budget:
    """What pruning may cost, or must reach.

    Attributes:
        value: Points of top-1 accuracy that may be lost, the lowest mean cosine to the dense feature, or the most
            milliseconds per batch.
        kind: ``points``, ``cosine`` or ``ms``.
    """

    value: float
    kind: BudgetKind

    @classmethod
    def parse(cls, text: str) -> Self:
        """Reads ``"0.5 points"``, ``"0.98 cosine"`` or ``"40 ms"``; raises UserError for anything else."""
        found = re.fullmatch(r"\s*(\d*\.?\d+)\s*(points|cosine|ms)\s*", text)
        if not found or (found[2] == "cosine" and float(found[1]) > 1) or (found[2] == "ms" and not float(found[1])):
            raise UserError(f"A budget reads '0.5 points', '0.98 cosine' or '40 ms', not '{text}'.")
        return cls(float(found[1]), cast(BudgetKind, found[2]))

    def met(self, point: OperatingPoint) -> bool:
        """Whether a point is within the budget."""
        if self.kind == "ms":
            return point.milliseconds is not None and point.milliseconds <= self.value
        if self.kind == "cosine":
            return point.feature_cosine >= self.value
        return point.points_lost is not None and point.points_lost <= self.value + 1e-9


@dataclass(frozen=True)
class OperatingPoint:
    """A schedule and what was measured with it.

    Attributes:
        schedule: Where patches go and how many stay.
        gmacs: Multiply-accumulates of an image in billions, by formula, predictor left out.
        feature_cosine: Mean cosine to the dense feature.
        points_lost: Top-1 of the dense model less that of the pruned one, in points; None without labels.
        milliseconds: Median time of a batch; None where it was not measured.
    """

    schedule: Schedule
    gmacs: float
    feature_cosine: float
    points_lost: float | None
    milliseconds: float | None


def measure_curve(
    model: LoadedModel,
    data: ImageData,
    pruner: Pruner,
    rates: Sequence[float] = _RATES,
    timing_batch: int = 0,
    batch_size: int = 32,
) -> list[OperatingPoint]:
    """Measures a pruner at many keep rates: one-shot before its first block, and in stages from there on.

    Args:
        model: The model the pruner was fitted to.
        data: Images that the fit has not seen; labelled for points.
        pruner: The pruner; it stays as it is.
        rates: Keep rates.
        timing_batch: Images per batch when timing; 0 leaves timing out.
        batch_size: Images per batch otherwise.

    Returns:
        A point for every keep rate of every schedule.

    Raises:
        UserError: If the pruner belongs to another model, or no image can be read.
    """
    tower, first = model.tower, pruner.fitted.block
    pruner.base.check(tower)
    every_second = list(range(first, tower.depth, _BLOCKS_BETWEEN_STAGES))
    shapes = {tuple(blocks): blocks for blocks in (list(pruner.fitted.stages), [first], every_second)}
    schedules = [Schedule.spread(blocks, rate) for blocks in shapes.values() for rate in rates]
    method = PatchRanking(pruner.untuned)
    encodings = {schedule: method.at(tower, schedule) for schedule in schedules}
    tally = measure(model, data, encodings, batch_size=batch_size)
    speeds = images_per_second(encodings, noise(tower, timing_batch)) if timing_batch else {}
    dense_top1 = tally.mean(DENSE, "top1")
    points = []
    for schedule in schedules:
        top1, cosine = (tally.mean(schedule, name) for name in ("top1", "feature_cosine"))
        assert cosine is not None
        points.append(
            OperatingPoint(
                schedule,
                analytic_macs(tower, tower.feature_size, schedule) / 1e9,
                cosine,
                None if dense_top1 is None or top1 is None else dense_top1 - top1,
                1000 * timing_batch / speeds[schedule] if speeds else None,
            )
        )
    return points


def choose(curve: Sequence[OperatingPoint], budget: Budget) -> OperatingPoint:
    """The point that costs least within a loss, or the one nearest to the dense feature within a time.

    Args:
        curve: From ``measure_curve``.
        budget: The budget.

    Raises:
        UserError: If the curve lacks what the budget is about, or no point is within it.
    """
    known = {"points": "points_lost", "cosine": "feature_cosine", "ms": "milliseconds"}[budget.kind]
    values = [value for value in (getattr(point, known) for point in curve) if value is not None]
    if not values:
        raise UserError(
            "A budget in points needs labelled images and a model with a text tower: use cosine."
            if budget.kind == "points"
            else "This curve has no times: measure it with a timing batch."
        )
    within = [point for point in curve if budget.met(point)]
    if not within:
        nearest = max(values) if budget.kind == "cosine" else min(values)
        raise UserError(
            f"No keep rate is within {budget.value:g} {budget.kind}: the nearest reaches {nearest:.4g}. Fit to more "
            "images, or allow more."
        )
    if budget.kind == "ms":
        return max(within, key=lambda point: point.feature_cosine)
    return min(within, key=lambda point: point.gmacs)
