"""The last part of a fit: what estimates the error of a pruned feature, learned from the tokens that are there."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from patchranking.predictor.doubt import Doubt, spearman
from patchranking.predictor.fallback import run_doubted
from patchranking.predictor.rows import Rows
from patchranking.pruner import Pruner
from patchranking.ranking.objectives import feature_damage
from patchranking.towers import VisionTower

__all__ = ["DoubtReport", "learn_doubt"]

_RATES = (0.9, 0.7, 0.5, 0.3, 0.15)
_FEWEST, _AT_LEAST = 32, 100
"""Images without which there is no estimate, and images that even a short fit takes for it."""
_BATCH = 64


@dataclass(frozen=True)
class DoubtReport:
    """How well errors are estimated.

    Attributes:
        n_train: Images learned from.
        n_held_out: Images held out; their one figure that counts is the mean of the logarithms of their errors.
        spearman: Keep rate -> rank correlation of estimated and true error on the images held out.
    """

    n_train: int
    n_held_out: int
    spearman: dict[str, float]


@torch.no_grad()
def learn_doubt(
    pruner: Pruner, tower: VisionTower, tokens: Rows, dense: Rows, held_out: Tensor, steps: int, seed: int = 0
) -> tuple[Doubt, DoubtReport] | None:
    """Learns to estimate the error of a pruner.

    It takes as many images as distillation took steps, 100 at least, each at one of five keep rates in turn, and a
    tenth of that number of those held out at all five: some 3 % of what the steps cost, pruned forward passes alone.

    Args:
        pruner: As fitted; it stays as it is.
        tower: The image encoder.
        tokens: Cached tokens that enter the first stage, ``(views, images, prefix + patches, width)``.
        dense: Features of the dense model, ``(views, images, features)``.
        held_out: Indices of the images held out.
        steps: Steps of distillation.
        seed: Of the choice among many images.

    Returns:
        What estimates, and how well it does; None where fewer than 32 images were trained on.
    """
    images, generator = max(_AT_LEAST, steps), torch.Generator().manual_seed(seed)
    order = torch.randperm(tokens.shape[1], generator=generator)
    out = torch.isin(order, held_out)
    train, test = order[~out][:images], order[out][: max(1, images // 10)]
    if len(train) < _FEWEST or not len(test):
        return None
    every = len(_RATES)
    shown = [_shown(pruner.at(rate), tower, tokens, dense, train[n::every]) for n, rate in enumerate(_RATES)]
    doubt = Doubt.learned(*(torch.cat(parts) for parts in zip(*shown, strict=True)))
    unseen = {str(rate): _shown(pruner.at(rate), tower, tokens, dense, test) for rate in _RATES}
    doubt.level(*(torch.cat(parts) for parts in zip(*unseen.values(), strict=True)))
    found = {rate: spearman(doubt(signs), errors) for rate, (signs, errors) in unseen.items()}
    return doubt.to(tower.device), DoubtReport(len(train), len(test), found)


def _shown(pruner: Pruner, tower: VisionTower, tokens: Rows, dense: Rows, images: Tensor) -> tuple[Tensor, Tensor]:
    """Signs and true errors of some images at the pruner's keep rate, on the CPU."""
    reductions, signs, errors = pruner.reductions(), list[Tensor](), list[Tensor]()
    for part in images.split(_BATCH):
        entering = tokens[0, part].to(tower.device, tower.dtype)
        found = run_doubted(tower, entering, pruner.schedule, reductions)
        signs.append(found.signs.cpu())
        errors.append(feature_damage(found.features, dense[0, part].to(tower.device)).cpu())
    return torch.cat(signs), torch.cat(errors)
