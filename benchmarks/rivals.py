"""Rivals that are fitted: the paper's own predictor, and merging with a correction that is distilled.

What the choice of patches, the correction and the training win can be told apart by them.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from patchranking.data import ImageData, subset
from patchranking.fitting.cache import cache_tokens
from patchranking.fitting.fit import fit as fit_pruner
from patchranking.fitting.settings import FitSettings
from patchranking.methods import Encoding, PatchRanking
from patchranking.methods.tome import ToMe
from patchranking.predictor.descent import descend
from patchranking.predictor.distill import IMAGES_PER_STEP
from patchranking.predictor.precision import frozen_pass, precision_for
from patchranking.predictor.targets import FEATURE
from patchranking.pruner import Pruner
from patchranking.pruning.macs import keep_at_macs, with_macs_of
from patchranking.pruning.schedule import Schedule
from patchranking.ranking.job import rank
from patchranking.ranking.objectives import feature_damage
from patchranking.ranking.search import SearchSettings
from patchranking.seeding import seeded
from patchranking.towers import VisionTower
from patchranking.towers.load import LoadedModel

PAPER_BLOCKS = {"one shot": (3,), "progressive": (3, 5, 7, 9)}
"""Where the paper drops patches (Tables 1 and 4)."""
_SHARES = (0.4, 0.8)
"""Every step of a distillation draws its share of the dense MACs between these."""
_HIDDEN = 64


class Paper(PatchRanking):
    """The paper's predictor: it imitates a ranking, and all stages go by its one order; nothing is corrected.

    Args:
        pruner: Fitted by imitation.
        kind: A key of ``PAPER_BLOCKS``.
    """

    def __init__(self, pruner: Pruner, kind: str) -> None:
        super().__init__(pruner)
        self.name, self._blocks = f"patch-ranking (paper, {kind})", PAPER_BLOCKS[kind]

    def at(self, tower: VisionTower, schedule: Schedule, seed: int = 0) -> Encoding:
        """At the paper's blocks, with the MACs of the reference."""
        own = Schedule.spread([block * tower.depth // 12 for block in self._blocks], 0.5)
        return super().at(tower, with_macs_of(tower, own, schedule), seed)


def leave_out_rankings(model: LoadedModel, data: ImageData, images: int, folder: Path) -> Path:
    """Golden rankings of some images by the paper's search, single patches left out; finished ones are read again."""
    rank(model, subset(data, images, 0), folder, SearchSettings("leave-out", block=model.tower.depth // 4, window=1))
    return folder


def paper_pruner(model: LoadedModel, data: ImageData, settings: FitSettings, rankings: Path, folder: Path) -> Pruner:
    """A predictor that imitates those of the rankings that are of these images."""
    own = replace(settings, objective="imitate", loss="listnet", network="mixer", blocks=None, schedule=None)
    if not (folder / "fit.json").is_file():
        fit_pruner(model, data, folder, own, rankings)
    return Pruner.from_pretrained(folder).to(model.tower.device)


class TrainedToMe(ToMe):
    """ToMe, with something added to all tokens after some blocks, in proportion to the patches that are gone."""

    name = "tome (trained)"

    def __init__(self, corrections: nn.ModuleDict) -> None:
        self.corrections = corrections

    def encode(self, tower: VisionTower, tokens: Tensor, schedule: Schedule, start: int = 0) -> Tensor:
        return super().encode(cast(VisionTower, _Corrected(tower, self.corrections)), tokens, schedule, start)


class _Corrected:
    """A tower whose blocks end with a correction."""

    def __init__(self, tower: VisionTower, corrections: nn.ModuleDict) -> None:
        self._tower, self._corrections = tower, corrections

    def __getattr__(self, name: str) -> Any:
        return getattr(self._tower, name)

    def feed_forward(self, tokens: Tensor, block: int) -> Tensor:
        tokens = self._tower.feed_forward(tokens, block)
        if str(block) not in self._corrections:
            return tokens
        gone = 1 - (tokens.shape[1] - self._tower.num_prefix_tokens) / self._tower.num_patches
        return tokens + gone * self._corrections[str(block)](tokens)


def trained_tome(
    model: LoadedModel, data: ImageData, settings: FitSettings, shape: Schedule, folder: Path
) -> TrainedToMe:
    """ToMe with corrections that are distilled as a pruner is: the same images, steps and loss; read again if there.

    Args:
        model: The model.
        data: The images.
        settings: How pruners are fitted.
        shape: The pruners' schedule; the corrections are where it has its stages.
        folder: Folder for the weights.
    """
    tower, path = model.tower, folder / "corrections.safetensors"
    with seeded(settings.seed):
        corrections = nn.ModuleDict({str(block - 1): _correction(tower.width) for block in shape.stages if block > 0})
    corrections.to(tower.device)
    if path.is_file():
        corrections.load_state_dict(load_file(path))
    else:
        folder.mkdir(parents=True, exist_ok=True)
        _distill(model, data, corrections, settings, shape, folder)
        save_file(corrections.state_dict(), path)
    return TrainedToMe(corrections.requires_grad_(False))


def _correction(width: int) -> nn.Sequential:
    last = nn.Linear(_HIDDEN, width)
    nn.init.zeros_(last.weight)
    nn.init.zeros_(last.bias)
    return nn.Sequential(nn.LayerNorm(width), nn.Linear(width, _HIDDEN), nn.GELU(), last)


def _distill(
    model: LoadedModel,
    data: ImageData,
    corrections: nn.ModuleDict,
    settings: FitSettings,
    shape: Schedule,
    folder: Path,
) -> None:
    """Trains the corrections in place."""
    tower, method = model.tower, TrainedToMe(corrections)
    used, _, tokens, features = cache_tokens(model, data, None, 0, FEATURE, folder, mirrored=True)
    assert features is not None
    precision = precision_for(tower, settings.precision)

    def loss_of(step: int, draw: tuple[Tensor, float, int]) -> Tensor:
        images, share, view = draw
        schedule = method.schedule(tower, shape.at(keep_at_macs(tower, shape, share)))
        with frozen_pass(tower, precision):
            found = method.encode(tower, tokens[view, images].to(tower.device, tower.dtype), schedule)
            return feature_damage(found, features[view, images].to(tower.device)).mean()

    generator = torch.Generator().manual_seed(settings.seed)
    descend(corrections, _draws(len(used), tokens.shape[0], generator), loss_of, settings.steps)
    for name in ("tokens.npy", "target.npy"):
        (folder / name).unlink()


def _draws(images: int, views: int, generator: torch.Generator) -> Iterator[tuple[Tensor, float, int]]:
    """The images, the share of the dense MACs and the view of every step, without end."""
    low, high = _SHARES
    while True:
        chosen = torch.randperm(images, generator=generator)[:IMAGES_PER_STEP]
        view = int(torch.randint(views, (), generator=generator))
        yield chosen, low + (high - low) * torch.rand((), generator=generator).item(), view


def weights_of(methods: list[PatchRanking | TrainedToMe]) -> list[Mapping[str, Tensor]]:
    """What was fitted of each method."""
    return [
        (method.corrections if isinstance(method, TrainedToMe) else method.pruner).state_dict() for method in methods
    ]
