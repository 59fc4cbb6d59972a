"""The searches by name, and the settings that choose among them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal, get_args

import torch
from torch import Tensor

from patchranking.data import ImageData
from patchranking.errors import UserError, check_numbers
from patchranking.pruning.schedule import Schedule
from patchranking.ranking.iterative import iterative
from patchranking.ranking.leave_out import leave_out
from patchranking.ranking.objectives import Objective, confidence, label, preservation
from patchranking.ranking.ranking import Ranking
from patchranking.ranking.sketched import sketched
from patchranking.ranking.windows import windows
from patchranking.towers.load import LoadedModel
from patchranking.towers.zero_shot import class_features

__all__ = ["SCORES", "SEARCHES", "ScoreName", "Search", "SearchName", "SearchSettings", "prepare_search"]

SearchName = Literal["sketched", "sketched-quality", "leave-out", "iterative"]
ScoreName = Literal["preservation", "label", "confidence"]
SEARCHES: tuple[str, ...] = get_args(SearchName)
SCORES: tuple[str, ...] = get_args(ScoreName)
_EFFORT = {"sketched": {"num_probes": 3, "steps": 12}, "sketched-quality": {"num_probes": 4, "steps": 27}}

Search = Callable[[Tensor, Sequence[int]], Ranking]
"""Ranks a batch, given its pixels ``(batch, 3, height, width)`` and the images' indices in the data set."""


@dataclass(frozen=True)
class SearchSettings:
    """How the golden ranking is searched.

    Attributes:
        search: sketched, sketched-quality, leave-out or iterative.
        score: preservation (of the image feature), label (probability of the true class) or confidence.
        block: Patches are removed before this block.
        window: leave-out: side of the removed window in patches.
        stride: leave-out: step between windows in patches.
        group: iterative: patches removed a round.
        seed: sketched: seed of the probes.
    """

    search: str = "sketched"
    score: str = "preservation"
    block: int = 3
    window: int = 2
    stride: int = 1
    group: int = 4
    seed: int = 0

    def __post_init__(self) -> None:
        if self.search not in SEARCHES:
            raise UserError(f"Unknown search '{self.search}': choose from {', '.join(SEARCHES)}.")
        check_numbers(vars(self), block=0, window=1, stride=1, group=1, seed=0)
        if self.score not in SCORES:
            raise UserError(f"Unknown score '{self.score}': choose from {', '.join(SCORES)}.")

    @property
    def function(self) -> Callable[..., Ranking]:
        """The search function."""
        functions: dict[str, Callable[..., Ranking]] = {"leave-out": leave_out, "iterative": iterative}
        return functions.get(self.search, sketched)

    @property
    def arguments(self) -> dict[str, int]:
        """The arguments of the search function, those of other searches left out."""
        if self.search == "leave-out":
            return {"block": self.block, "window": self.window, "stride": self.stride}
        if self.search == "iterative":
            return {"block": self.block, "group": self.group}
        return {"block": self.block, **_EFFORT[self.search], "seed": self.seed}

    def to_dict(self) -> dict[str, Any]:
        """What a ranking folder records; ``needs_labels`` marks rankings that saw the true class."""
        return {"search": self.search, "score": self.score, "needs_labels": self.score == "label", **self.arguments}


def prepare_search(model: LoadedModel, data: ImageData, settings: SearchSettings) -> Search:
    """Binds a search to a model and, where the score asks for them, to the data set's classes and labels.

    Args:
        model: The model.
        data: The images.
        settings: The search.

    Raises:
        UserError: If the settings do not suit the model, or the score needs labels, class names or a text encoder that
            are not there.
    """
    tower = model.tower
    Schedule({settings.block: 1.0}).check(tower)
    tower.check_dense()
    if settings.search == "leave-out":
        windows(tower.grid, settings.window, settings.stride)
    if settings.search.startswith("sketched"):
        tower.check_gates()
    search = partial(settings.function, tower, **settings.arguments)
    objective = _objectives(model, data, settings.score)
    return lambda pixels, indices: search(pixels.to(tower.device, tower.dtype), objective=objective(indices))


def _objectives(model: LoadedModel, data: ImageData, name: str) -> Callable[[Sequence[int]], Objective]:
    if name == "preservation":
        return lambda indices: preservation
    if model.text is None:
        raise UserError(f"The {name} score needs a text encoder, and '{model.name}' has none: use preservation.")
    labels = data.labels
    if labels is None:
        raise UserError(f"The {name} score needs classes: give a folder with one sub-folder a class, or preservation.")
    classes = class_features(model.text, data.class_names, data.templates)
    if name == "confidence":
        return lambda indices: confidence(classes, model.logit_scale)
    return lambda indices: label(
        classes, model.logit_scale, torch.tensor([labels[index] for index in indices], device=classes.device)
    )
