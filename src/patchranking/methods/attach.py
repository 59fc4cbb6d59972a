"""Prunes a model at once by a method that needs no fit."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import torch
from torch import nn

from patchranking.errors import UserError
from patchranking.methods import METHODS
from patchranking.methods.method import Attachable, Method
from patchranking.pruner import Pruner
from patchranking.pruning.attach import Hooks, attach_reductions
from patchranking.pruning.inside import attach_inside
from patchranking.pruning.macs import keep_at_macs
from patchranking.pruning.schedule import Schedule
from patchranking.towers import VisionTower, as_tower

__all__ = [
    "attach",
    "attach_copy",
    "attachable",
    "check_class_token",
    "fitted_pruner",
    "keep_at_share",
    "pruner_or_method",
]


def attach(
    model: nn.Module | VisionTower,
    method: str = "cls-attention",
    keep: float = 0.5,
    schedule: Schedule | None = None,
    seed: int = 0,
) -> Hooks:
    """Makes a model prune from now on, without any fit; its keys and classes stay as they are.

    Examples:
        >>> with patchranking.attach(model, "tome", keep=0.6):  # doctest: +SKIP
        ...     features = model.encode_image(images)

    Args:
        model: Any model that ``as_tower`` takes.
        method: cls-attention, evit, tome, pitome, centre-crop or random; the first two need a class token.
        keep: Share of the patches that reaches the end; tome and pitome merge as many as gives the same MACs.
        schedule: Where patches are dropped; where ``fit`` does by default when omitted.
        seed: Of random, which keeps the same patches of every image.

    Returns:
        The hooks, a context manager: their ``close()``, or ``patchranking.detach(model)``, restores the model exactly.

    Raises:
        UserError: If there is no such method, it does not work with this model, or the model is pruned already.
    """
    chosen, tower = attachable(method), as_tower(model)
    check_class_token(chosen, tower)
    if chosen.inside or chosen.needs_class_token:
        tower.check_plain()
    own = Schedule.default(tower.depth, keep) if schedule is None else schedule
    own.check(tower)
    tower.check_dense()
    of = (chosen, tower, own, seed)
    steps: dict[int, Any] = {block: _Step(of, block, do) for block, do in chosen.steps(tower, own, seed).items()}
    return attach_inside(tower, steps) if chosen.inside else attach_reductions(tower, steps)


def attach_copy(
    tower: VisionTower, pruner: Pruner | Attachable, keep: float, dtype: torch.dtype, seed: int = 0
) -> Schedule:
    """Prunes a model by a copy of a fitted pruner, in the model's precision, or by a method that needs no fit.

    Args:
        tower: The image encoder.
        pruner: Fitted to the model, or a method.
        keep: Share of the patches that reaches the end.
        dtype: Of the model's weights.
        seed: As in ``attach``.

    Returns:
        Where patches are dropped.

    Raises:
        UserError: As ``attach`` and ``Pruner.attach`` do.
    """
    if isinstance(pruner, Pruner):
        own = copy.deepcopy(pruner.at(keep)).to(dtype)
        own.attach(tower)
        return own.schedule
    schedule = Schedule.default(tower.depth, keep)
    attach(tower, pruner.name, schedule=schedule, seed=seed)
    return schedule


def keep_at_share(tower: VisionTower, pruner: Pruner | Attachable, share: float) -> float:
    """The keep rate at which a fitted pruner, or a method attached without a schedule, has a share of the dense MACs.

    Raises:
        UserError: As ``keep_at_macs`` does.
    """
    if isinstance(pruner, Pruner):
        return pruner.at_macs(tower, share).keep
    return keep_at_macs(tower, Schedule.default(tower.depth, 0.5), share)


def attachable(name: str) -> Attachable:
    """The method of a name.

    Raises:
        UserError: If there is none, or it cannot be attached.
    """
    found, others = METHODS.get(name), ", ".join(key for key, one in METHODS.items() if isinstance(one, Attachable))
    if found is None:
        raise UserError(f"Unknown method '{name}': attach {others}.")
    if not isinstance(found, Attachable):
        raise UserError(f"'{name}' is no method that runs inside a model: attach {others}.")
    return found


def check_class_token(method: Method, tower: VisionTower) -> None:
    """Raises UserError, and names methods that need none, when a method needs a class token that the model lacks."""
    if method.needs_class_token and not tower.has_class_token:
        names = [n for n, one in METHODS.items() if isinstance(one, Attachable) and not one.needs_class_token]
        raise UserError(
            f"'{method.name}' reads the attention of a class token, and this model has none: use {', '.join(names)}."
        )


def pruner_or_method(given: str | Path) -> Pruner | Attachable:
    """What ``--pruner`` names: the pruner of a folder or a Hub repository, or a method that needs no fit."""
    if str(given) in METHODS and not Path(given).is_dir():
        return attachable(str(given))
    return Pruner.from_pretrained(given)


def fitted_pruner(given: str | Path) -> Pruner:
    """The pruner that ``--pruner`` names, where nothing but a fitted one will do.

    Raises:
        UserError: If it names a method, or there is no pruner.
    """
    found = pruner_or_method(given)
    if not isinstance(found, Pruner):
        raise UserError(f"'{given}' needs no fit and has nothing to go on with: give the folder of a fitted pruner.")
    return found


class _Step:
    """What a method does at one block of a model; that of a copy belongs to the copy, and is made when it runs."""

    def __init__(self, of: tuple[Attachable, VisionTower, Schedule, int], block: int, do: Any = None) -> None:
        self._of, self._block, self._do = of, block, do

    def __reduce__(self) -> tuple[type[_Step], tuple[Any, int]]:
        return type(self), (self._of, self._block)

    def __call__(self, *given: Any) -> Any:
        if self._do is None:
            method, tower, schedule, seed = self._of
            self._do = method.steps(tower, schedule, seed)[self._block]
        return self._do(*given)
