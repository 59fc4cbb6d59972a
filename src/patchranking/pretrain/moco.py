"""MoCo v3 (Chen, Xie and He, 2021, arXiv 2104.02057) in one direction, as the paper on compression has its baseline."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence

import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional as F

from patchranking.pretrain.compression import Compression
from patchranking.pretrain.cost import FORWARD
from patchranking.pretrain.objective import (
    Following,
    KeysName,
    Normalisation,
    Step,
    in_float32,
    library,
    normalised,
)

__all__ = ["MoCo", "info_nce"]


def info_nce(queries: Tensor, keys: Tensor, temperature: float) -> Tensor:
    """Cross-entropy of finding each query's key among all, times twice the temperature (MoCo v3, algorithm 1).

    Args:
        queries: ``(images, features)``; normalised here.
        keys: Of the same images in the same order.
        temperature: Of the cosines.
    """
    logits = F.normalize(queries, dim=1) @ F.normalize(keys, dim=1).T / temperature
    return F.cross_entropy(logits, torch.arange(len(logits), device=logits.device)) * 2 * temperature


class MoCo(Following):
    """Queries of one view find the keys that a momentum encoder makes of another.

    As in the original, the patch embedding stays as it was drawn, and the views are BYOL's. Only the direction from the
    first view to the second is learned from, which halves the cost of a step.

    Args:
        encoder: A vision transformer without a head.
        keys: How keys are compressed.
        min_scale: Least share of the picture that a view shows.
        hidden: Hidden units of the heads; 4096 in the original.
        size: Features that are compared.
        temperature: Of the cosines.
        momentum: Of the key encoder at the start; it rises to 1.
    """

    def __init__(
        self,
        encoder: nn.Module,
        keys: KeysName = "patch",
        min_scale: float = 0.08,
        hidden: int = 4096,
        size: int = 256,
        temperature: float = 0.2,
        momentum: float = 0.99,
    ) -> None:
        super().__init__(encoder, keys, min_scale, momentum)
        heads = library("models.modules.heads")
        width = self.tower.feature_size
        self.tower.identity()[0].requires_grad_(False)
        self.projector = heads.MoCoProjectionHead(width, hidden, size, num_layers=3, batch_norm=True)
        self.predictor = heads.MoCoProjectionHead(size, hidden, size, num_layers=2, batch_norm=True)
        self.key_projector = copy.deepcopy(self.projector).requires_grad_(False)
        self._temperature = temperature

    def views(self, normalisation: Normalisation) -> Callable[[Image.Image], Sequence[Tensor]]:
        byol, size = library("transforms.byol_transform"), self.tower.image_size[0]
        more = {"min_scale": self._min_scale, "sigmas": self.blur(), "normalize": normalised(normalisation)}
        views: Callable[[Image.Image], Sequence[Tensor]] = byol.BYOLTransform(
            byol.BYOLView1Transform(size, **more), byol.BYOLView2Transform(size, **more)
        )
        return views

    def forward(self, views: Sequence[Tensor], step: Step) -> Tensor:
        queries = self.features(self.encoder, views[0], step.compression, step.noise)
        with torch.no_grad():
            keys = self.features(self.key_encoder, views[1], self.of_keys(step.compression), step.noise)
        with in_float32(queries.device):
            with torch.no_grad():
                keys = self.key_projector(keys)
            return info_nce(self.predictor(self.projector(queries)), keys, self._temperature)

    def passes(self, compression: Compression) -> float:
        return self.share_of(compression) + FORWARD * self.share_of(self.of_keys(compression))
