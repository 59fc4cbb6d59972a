"""Gradients of batches under compressions, at a fixed state of the weights, and what comes of them."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from patchranking.errors import UserError, check_numbers
from patchranking.files import as_file_name, write_json
from patchranking.pretrain.budget import CostName, formula_costs, measured_costs
from patchranking.pretrain.compression import Compression, check_compressible
from patchranking.pretrain.gradient_error import gradient_error
from patchranking.pretrain.objective import Normalisation, Objective, Step
from patchranking.pretrain.pictures import Pictures, Views, drop_noise
from patchranking.seeding import nth_seed, seeded

__all__ = ["GradientSettings", "batch_gradients", "candidates", "spent_on", "stage_errors"]

_MEMORY = 1 << 30
"""Bytes that views may take which all compressions share."""
_LARGEST = 3
"""Patches up to so many times as large as the model's own, as in the paper's figure 3 (16 to 48)."""


@dataclass(frozen=True)
class GradientSettings:
    """How gradients are compared.

    Attributes:
        base_batches: Batches whose mean gradient stands for the expected one.
        batches: Batches of each compression.
        batch_size: Images of each of them, the same for all: the loss depends on it.
        patch_sizes: Patch sizes in pixels; all that fit up to three times the model's own when empty.
        drops: Shares of the patches dropped.
        cost: What a step costs: its multiply-accumulates by formula, or its seconds as measured.
        groups: The base batches are averaged in so many groups, which bounds the memory.
        seed: Random seed of batches, views and dropped patches.
    """

    base_batches: int = 200
    batches: int = 50
    batch_size: int = 128
    patch_sizes: list[int] = field(default_factory=list)
    drops: list[float] = field(default_factory=lambda: [0.0, 0.25, 0.5, 0.75, 0.9])
    cost: CostName = "formula"
    groups: int = 40
    seed: int = 0

    def __post_init__(self) -> None:
        check_numbers(vars(self), base_batches=4, batches=3, batch_size=2, groups=2, seed=0)
        if self.base_batches % min(self.groups, self.base_batches):
            raise UserError(f"{self.base_batches} base batches cannot be averaged in {self.groups} equal groups.")


def candidates(objective: Objective, settings: GradientSettings) -> list[Compression]:
    """The compressions to compare, the uncompressed one first.

    Raises:
        UserError: If a patch size does not fit.
    """
    own, size = objective.base.patch_size, objective.tower.image_size[0]
    sizes = settings.patch_sizes or [p for p in range(own, min(_LARGEST * own, size // 2) + 1) if size % p == 0]
    found = [Compression(one, drop) for one in sizes for drop in settings.drops]
    for one in found:
        check_compressible(objective.tower, one)
    return list(dict.fromkeys((objective.base, *found)))


def spent_on(objective: Objective, settings: GradientSettings) -> float:
    """Passes that the analysis of one stage takes, by formula."""
    compared = sum(objective.passes(one) for one in candidates(objective, settings))
    whole = settings.base_batches * objective.passes(objective.base)
    return settings.batch_size * (whole + settings.batches * compared)


@dataclass(frozen=True)
class _Draws:
    """Independent batches of different pictures: an epoch is one batch."""

    pictures: int
    batch_size: int
    seed: int

    def __call__(self, epoch: int) -> Sequence[int]:
        drawn: list[int] = (
            np.random.default_rng([self.seed, epoch]).permutation(self.pictures)[: self.batch_size].tolist()
        )
        return drawn


class _Kept:
    """Views of some items that are asked for again and again, made once where they fit into memory together.

    Args:
        views: Of any item.
        items: Those to keep.
    """

    def __init__(self, views: Views, items: range) -> None:
        self._views, self._items, self._found = views, items, dict[int, list[Tensor]]()

    def __getitem__(self, item: int) -> list[Tensor]:
        if item in self._found:
            return self._found[item]
        found = self._views[item]
        if item in self._items and len(self._items) * sum(view.nbytes for view in found) <= _MEMORY:
            self._found[item] = found
        return found


def batch_gradients(
    objective: Objective,
    views: Views | _Kept,
    batches: Sequence[int],
    compression: Compression,
    settings: GradientSettings,
) -> Iterator[Tensor]:
    """The gradient of the loss by the encoder's weights for each of some batches, ``(weights,)``, float32 on the CPU.

    Buffers, such as running means and DINO's centre, are put back after every batch.

    Args:
        objective: The method, in training mode.
        views: Of batches that lie one behind the other.
        batches: Their numbers.
        compression: Of the images.
        settings: Of the analysis.
    """
    weights = [weight for weight in objective.encoder.parameters() if weight.requires_grad]
    buffers = {name: value.clone() for name, value in objective.named_buffers()}
    for batch in batches:
        items = [views[batch * settings.batch_size + place] for place in range(settings.batch_size)]
        pixels = [torch.stack(view).to(objective.tower.device) for view in zip(*items, strict=True)]
        step = Step(compression, drop_noise(settings.seed, batch, settings.batch_size), 0.5)
        with seeded(nth_seed(settings.seed, batch)):
            found = torch.autograd.grad(objective(pixels, step), weights)
        for name, value in objective.named_buffers():
            value.copy_(buffers[name])
        yield torch.cat([gradient.flatten() for gradient in found]).float().cpu()


def stage_errors(
    objective: Objective,
    pictures: Pictures,
    normalisation: Normalisation,
    settings: GradientSettings,
    folder: Path,
    stage: str,
) -> list[dict[str, Any]]:
    """The errors of all candidates at one stage of a training.

    Every compression is tried on the same batches and views; the base batches are others. Finished compressions are
    kept in the folder, so that a killed analysis goes on.

    Args:
        objective: The method with the weights of that stage, in training mode.
        pictures: To draw batches from.
        normalisation: Of the pixels.
        settings: How gradients are compared.
        folder: For what is finished.
        stage: Its name in the folder and on the bar.

    Returns:
        A row for each candidate: patch size, drop, cost as a share of the uncompressed one, and the fields of
        ``GradientError``.

    Raises:
        UserError: If there are fewer pictures than a batch has.
    """
    if len(pictures) < settings.batch_size:
        raise UserError(f"A batch of {settings.batch_size} needs as many pictures, and there are {len(pictures)}.")
    views = Views(
        pictures,
        _Draws(len(pictures), settings.batch_size, settings.seed),
        objective.views(normalisation),
        settings.seed,
    )
    chosen = candidates(objective, settings)
    costs = _costs(objective, chosen, views, settings, folder)
    files = {one: folder / f"{as_file_name(f'{stage} {one}')}.json" for one in chosen}
    missing = [one for one in chosen if not files[one].is_file()]
    total = len(missing) * settings.batches + (settings.base_batches if missing else 0)
    with tqdm(total=total, desc=f"gradients at {stage}", unit="batch") as bar:
        base = _base_gradients(objective, views, settings, bar) if missing else torch.empty(0)
        first, last = settings.base_batches, settings.base_batches + settings.batches
        numbers = range(first, last)
        shared = _Kept(views, range(first * settings.batch_size, last * settings.batch_size))
        each = settings.base_batches // min(settings.groups, settings.base_batches)
        for one in missing:
            own = []
            for gradient in batch_gradients(objective, shared, numbers, one, settings):
                own.append(gradient)
                bar.update()
            cost = costs[str(one)] / costs[str(objective.base)]
            found = asdict(gradient_error(base, torch.stack(own), cost, each, settings.seed))
            write_json(files[one], {"patch_size": one.patch_size, "drop": one.drop, "cost": cost} | found)
    return [json.loads(files[one].read_text()) for one in chosen]


def _costs(
    objective: Objective, chosen: Sequence[Compression], views: Views, settings: GradientSettings, folder: Path
) -> dict[str, float]:
    """Passes of one image under each compression; measured once for all stages."""
    if settings.cost == "formula":
        return formula_costs(objective, chosen)
    kept = folder / "costs.json"
    if not kept.is_file():
        batch = zip(*(views[item] for item in range(settings.batch_size)), strict=True)
        write_json(kept, measured_costs(objective, chosen, [torch.stack(view) for view in batch]))
    found: dict[str, float] = json.loads(kept.read_text())
    return found


def _base_gradients(objective: Objective, views: Views, settings: GradientSettings, bar: tqdm[Any]) -> Tensor:
    """Means of groups of uncompressed gradients, ``(groups, weights)``."""
    groups = min(settings.groups, settings.base_batches)
    each, found = settings.base_batches // groups, []
    for group in range(groups):
        numbers = range(group * each, (group + 1) * each)
        total: Tensor | None = None
        for gradient in batch_gradients(objective, views, numbers, objective.base, settings):
            total = gradient if total is None else total.add_(gradient)
            bar.update()
        assert total is not None
        found.append(total / each)
    return torch.stack(found)
