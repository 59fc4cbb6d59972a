"""Doubt: how far the feature of a pruned image may be from the dense one, estimated from what the pruned run shows."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from patchranking.errors import UserError
from patchranking.pruning.attach import Reduced
from patchranking.pruning.schedule import Schedule

__all__ = ["SCALARS", "Doubt", "Ridge", "dropped_share", "ridge", "signs", "spearman"]

SCALARS = ("one", "log dropped", "dropped", "gone", "log norm")
"""The first of the signs; their weights are not shrunk."""
_PENALTIES = torch.logspace(-3, 4, 15, dtype=torch.float64)
"""Tried in turn, as multiples of the mean square of a direction."""
_RANK = 1e-9
"""Directions of the scalars with less than this share of the largest are none."""
_LEAST, _MOST = 1e-7, 2.0
"""Errors are taken for no less, since tokens are kept in half precision, and for no more."""


class Ridge(NamedTuple):
    """A ridge regression.

    Attributes:
        weights: Of scalars and features, ``(scalars + features,)``.
        penalty: The one chosen.
        left_out: Target minus what is predicted of a row when it is left out, ``(rows,)``.
    """

    weights: Tensor
    penalty: float
    left_out: Tensor


def ridge(scalars: Tensor, features: Tensor, targets: Tensor) -> Ridge:
    """Ridge regression with the penalty that predicts rows best that are left out, all in closed form.

    Minimises ``|targets - scalars a - features b|^2 + penalty |b|^2``. What a row's own target adds to its prediction
    is the diagonal of the hat matrix, so that the residuals of all fits without one row cost no further fit (PRESS:
    Allen, 1974; Golub, Heath and Wahba, 1979).

    Args:
        scalars: Inputs whose weights are not shrunk, a column of ones among them, ``(rows, scalars)``.
        features: Inputs whose weights are, ``(rows, features)``.
        targets: ``(rows,)``.

    Returns:
        The regression, float64.
    """
    scalars, features, targets = scalars.double(), features.double(), targets.double()
    basis, sizes, _ = torch.linalg.svd(scalars, full_matrices=False)
    basis = basis[:, sizes > _RANK * sizes[0]]
    rest, aims = (values - basis @ (basis.T @ values) for values in (features, targets))
    left, spread, right = torch.linalg.svd(rest, full_matrices=False)
    parts = left.T @ aims
    best: tuple[float, float, Tensor] | None = None
    for penalty in (_PENALTIES * spread.square().mean()).tolist():
        kept = spread.square() / (spread.square() + penalty)
        own = basis.square().sum(1) + left.square() @ kept
        left_out = (aims - left @ (kept * parts)) / (1 - own)
        error = left_out.square().mean().item()
        if best is None or error < best[0]:
            best = error, penalty, left_out
    assert best is not None
    _, penalty, left_out = best
    of_features = right.T @ (spread / (spread.square() + penalty) * parts)
    of_scalars = torch.linalg.pinv(scalars, rtol=_RANK) @ (targets - features @ of_features)
    return Ridge(torch.cat([of_scalars, of_features]), penalty, left_out)


def dropped_share(schedule: Schedule, depth: int) -> float:
    """The share of the patches that a block of a model of ``depth`` blocks does not see, on average, 0 to 1."""
    seen, share = 0.0, 1.0
    for block in range(depth):
        share = schedule.stages.get(block, share)
        seen += share
    return 1 - seen / depth


def signs(features: Tensor, found: Reduced, patches: int, prefix: int, dropped: float) -> Tensor:
    """What a pruned run shows of itself: ``SCALARS``, and the direction of the feature.

    Args:
        features: Of the pruned run, ``(batch, features)``.
        found: The tokens at its end, with their sizes where patches merge.
        patches: Patches of an image.
        prefix: Tokens before them.
        dropped: See ``dropped_share``.

    Returns:
        float32 ``(batch, scalars + features)``: one, the logarithm of ``dropped``, ``dropped``, the share of the
        patches that neither stayed nor merged, the logarithm of the feature's norm, and the unit feature.
    """
    features = features.float()
    norm = features.norm(dim=-1, keepdim=True).clamp_min(torch.finfo(torch.float32).tiny)
    left = torch.full_like(norm, found.tokens.shape[1] - prefix)
    if found.sizes is not None:
        left = found.sizes[:, prefix:].float().sum(1, keepdim=True)
    same = torch.tensor([1.0, dropped, dropped], device=features.device)
    same[1] = same[1].clamp_min(_LEAST).log10()
    return torch.cat([same.expand(len(features), -1), 1 - left / patches, norm.log10(), F.normalize(features)], 1)


class Doubt(nn.Module):
    """Estimates 1 - cosine of a pruned feature to the dense one, image by image, with as many weights as channels.

    Args:
        features: Channels of a feature.
    """

    weight: Tensor

    def __init__(self, features: int) -> None:
        super().__init__()
        self.config: dict[str, Any] = {"features": features}
        self.register_buffer("weight", torch.zeros(len(SCALARS) + features))

    @classmethod
    def learned(cls, signs: Tensor, errors: Tensor) -> Doubt:
        """Learns the logarithm of the error by ridge regression.

        Args:
            signs: Of images at some keep rates, ``(rows, scalars + features)``.
            errors: 1 - cosine to the dense feature, ``(rows,)``.
        """
        scalars, features = signs.double().cpu().split([len(SCALARS), signs.shape[1] - len(SCALARS)], 1)
        found = cls(features.shape[1])
        found.weight.copy_(ridge(scalars, features, _logarithm(errors)).weights)
        return found

    def level(self, signs: Tensor, errors: Tensor) -> None:
        """Moves all estimates by one factor, so that their logarithms are right on average of other images."""
        self.weight[0] += (_logarithm(errors) - _logarithm(self(signs))).mean().item()

    def forward(self, signs: Tensor) -> Tensor:
        """The estimated 1 - cosine, float32 ``(batch,)``, of ``signs``.

        Raises:
            UserError: If the features have another number of channels.
        """
        channels = signs.shape[1] - len(SCALARS)
        if channels != self.config["features"]:
            raise UserError(
                f"Errors are estimated of features with {self.config['features']} channels, and these have {channels}: "
                "give the whole model that the pruner was fitted to, with its projection if it had one."
            )
        return (10 ** (signs @ self.weight)).clamp(max=_MOST)


def _logarithm(errors: Tensor) -> Tensor:
    return errors.double().cpu().clamp_min(_LEAST).log10()


def spearman(first: Tensor, second: Tensor) -> float:
    """The rank correlation (Spearman, 1904) of two rows of numbers; equal ones share their ranks, 0 where all are."""
    ranks = torch.stack([_ranks(first), _ranks(second)])
    ranks = ranks - ranks.mean(1, keepdim=True)
    size = ranks.norm(dim=1).prod().item()
    return (ranks[0] @ ranks[1]).item() / size if size else 0.0


def _ranks(values: Tensor) -> Tensor:
    _, places, counts = values.unique(return_inverse=True, return_counts=True)
    ends = counts.cumsum(0).double()
    return (ends - (counts - 1) / 2)[places]
