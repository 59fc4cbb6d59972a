"""SimCLR (Chen et al., 2020, arXiv 2002.05709)."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from PIL import Image
from torch import Tensor, nn

from patchranking.pretrain.compression import Compression
from patchranking.pretrain.objective import Contrastive, Normalisation, Step, in_float32, library, normalised

__all__ = ["SimCLR"]


class SimCLR(Contrastive):
    """Two views find each other among those of other pictures; both carry gradients, and both are compressed.

    Args:
        encoder: A vision transformer without a head.
        min_scale: Least share of the picture that a view shows.
        hidden: Hidden units of the head.
        size: Features that are compared.
        temperature: Of the cosines.
    """

    def __init__(
        self,
        encoder: nn.Module,
        min_scale: float = 0.08,
        hidden: int = 2048,
        size: int = 128,
        temperature: float = 0.2,
    ) -> None:
        super().__init__(encoder, "both", min_scale)
        heads = library("models.modules.heads")
        self.projector = heads.SimCLRProjectionHead(self.tower.feature_size, hidden, size, num_layers=2)
        self._loss = library("loss").NTXentLoss(temperature)

    def views(self, normalisation: Normalisation) -> Callable[[Image.Image], Sequence[Tensor]]:
        views: Callable[[Image.Image], Sequence[Tensor]] = library("transforms").SimCLRTransform(
            self.tower.image_size[0],
            cj_strength=0.5,
            min_scale=self._min_scale,
            sigmas=self.blur(),
            normalize=normalised(normalisation),
        )
        return views

    def forward(self, views: Sequence[Tensor], step: Step) -> Tensor:
        first, second = (self.features(self.encoder, view, step.compression, step.noise) for view in views)
        with in_float32(first.device):
            loss: Tensor = self._loss(self.projector(first), self.projector(second))
        return loss

    def passes(self, compression: Compression) -> float:
        return 2 * self.share_of(compression)
