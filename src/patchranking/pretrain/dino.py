"""DINO (Caron et al., 2021, arXiv 2104.14294) with its two global crops."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from PIL import Image
from torch import Tensor, nn

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

__all__ = ["DINO"]

_TEACHER_TEMPERATURES, _WARM_UP = (0.04, 0.07), 0.3
"""Of the teacher at the start and from this share of the budget on."""
_FIXED = 0.01
"""Share of the budget in which the last layer stays as it was drawn: one epoch of a hundred."""


class DINO(Following):
    """A student says of each view what a momentum teacher says of the other.

    The original's small local crops are left out: they are short sequences already.

    Args:
        encoder: A vision transformer without a head.
        keys: How the teacher's views are compressed.
        min_scale: Least share of the picture that a view shows; 0.4 in the original.
        hidden: Hidden units of the head.
        size: Features before its last layer.
        prototypes: What the last layer tells apart; 65536 in the original, for ImageNet.
        momentum: Of the teacher at the start; it rises to 1.
    """

    clip = 3.0

    def __init__(
        self,
        encoder: nn.Module,
        keys: KeysName = "patch",
        min_scale: float = 0.4,
        hidden: int = 2048,
        size: int = 256,
        prototypes: int = 4096,
        momentum: float = 0.996,
    ) -> None:
        super().__init__(encoder, keys, min_scale, momentum)
        heads = library("models.modules.heads")
        shape = self.tower.feature_size, hidden, size, prototypes
        self.projector = heads.DINOProjectionHead(*shape, freeze_last_layer=1)
        self.key_projector = heads.DINOProjectionHead(*shape).requires_grad_(False)
        self.key_projector.load_state_dict(self.projector.state_dict())
        self._loss = library("loss").DINOLoss(prototypes)

    def views(self, normalisation: Normalisation) -> Callable[[Image.Image], Sequence[Tensor]]:
        views: Callable[[Image.Image], Sequence[Tensor]] = library("transforms").DINOTransform(
            global_crop_size=self.tower.image_size[0],
            global_crop_scale=(self._min_scale, 1.0),
            n_local_views=0,
            sigmas=self.blur(),
            normalize=normalised(normalisation),
        )
        return views

    def forward(self, views: Sequence[Tensor], step: Step) -> Tensor:
        of_keys, (low, high) = self.of_keys(step.compression), _TEACHER_TEMPERATURES
        students = [self.features(self.encoder, view, step.compression, step.noise) for view in views]
        with torch.no_grad():
            teachers = [self.features(self.key_encoder, view, of_keys, step.noise) for view in views]
        with in_float32(students[0].device):
            with torch.no_grad():
                said = [self.key_projector(one) for one in teachers]
            temperature = low + (high - low) * min(1.0, step.share / _WARM_UP)
            loss: Tensor = self._loss(said, [self.projector(one) for one in students], temperature)
        return loss

    def passes(self, compression: Compression) -> float:
        return 2 * (self.share_of(compression) + FORWARD * self.share_of(self.of_keys(compression)))

    def after_backward(self, share: float) -> None:
        self.projector.cancel_last_layer_gradients(int(share >= _FIXED))
