"""The budget of a pretraining in passes, and what its steps spend of it: by formula, or as measured."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Literal

import torch
from torch import Tensor

from patchranking.pretrain.compression import Compression
from patchranking.pretrain.cost import measured_seconds
from patchranking.pretrain.objective import Objective, Step
from patchranking.pretrain.pictures import drop_noise

__all__ = ["CostName", "budget_of", "formula_costs", "measured_costs"]

CostName = Literal["formula", "measured"]


def budget_of(objective: Objective, epochs: float, pictures: int) -> float:
    """The passes that so many epochs cost without compression, by formula."""
    return epochs * pictures * objective.passes(objective.base)


def formula_costs(objective: Objective, compressions: Sequence[Compression]) -> dict[str, float]:
    """Name of each compression -> passes of one image, by formula."""
    return {str(one): objective.passes(one) for one in compressions}


def measured_costs(
    objective: Objective, compressions: Sequence[Compression], views: Sequence[Tensor], repeats: int = 20
) -> dict[str, float]:
    """Name of each compression -> passes of one image, by the seconds of a step.

    A step is the loss and its gradient, heads and momentum encoder included. Without compression it costs what the
    formula says, so that budgets by either mean the same; others cost in proportion to their seconds.

    Args:
        objective: The method and its encoder, on its device; as before in the end.
        compressions: What to measure.
        views: A batch, each ``(images, 3, height, width)``.
        repeats: Timed steps of each.
    """
    views = [view.to(objective.tower.device) for view in views]
    weights = [weight for weight in objective.parameters() if weight.requires_grad]
    buffers = {name: value.clone() for name, value in objective.named_buffers()}

    def step_of(compression: Compression) -> Callable[[], object]:
        noise = drop_noise(0, 0, len(views[0]))
        return lambda: torch.autograd.grad(objective(views, Step(compression, noise, 0.0)), weights)

    chosen = list(dict.fromkeys((objective.base, *compressions)))
    seconds = measured_seconds([step_of(one) for one in chosen], objective.tower.device, repeats)
    for name, value in objective.named_buffers():
        value.copy_(buffers[name])
    base = objective.passes(objective.base)
    return {str(one): base * (own / seconds[0]) for one, own in zip(chosen, seconds, strict=True)}
