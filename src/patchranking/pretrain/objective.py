"""What a method of self-supervised learning is to the loop: an encoder, heads, views, the loss of a batch, its cost."""

from __future__ import annotations

import copy
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from PIL import Image
from torch import Tensor, nn

from patchranking.extras import import_extra
from patchranking.pretrain.compression import Compression, Noise, encode, patch_size_of
from patchranking.pretrain.cost import forward_share
from patchranking.pretrain.schedule import momentum_at
from patchranking.towers import VisionTower, as_tower

__all__ = [
    "Contrastive",
    "Following",
    "KeysName",
    "Normalisation",
    "Objective",
    "Step",
    "draw_evenly",
    "in_float32",
    "library",
    "normalised",
]

KeysName = Literal["patch", "full", "both"]
"""How keys are compressed: larger patches alone, not at all, or as queries are."""


def library(module: str) -> Any:
    """A part of lightly, such as ``"loss"``.

    Raises:
        MissingExtraError: If lightly is not installed.
    """
    return import_extra(f"lightly.{module}", "Contrastive pretraining needs lightly", "pretrain")


@dataclass(frozen=True)
class Normalisation:
    """Channel means and standard deviations of the encoder's pixels, of pictures in 0 ... 1."""

    mean: tuple[float, ...]
    std: tuple[float, ...]


class Step:
    """What one step of the loop is run under; no dataclass, which Fabric would take apart in search of tensors.

    Args:
        compression: Of the images.
        noise: From a number of patches to random numbers ``(images of this process, patches)``, others at each call.
        share: Of the budget spent before it.
    """

    def __init__(self, compression: Compression, noise: Noise, share: float) -> None:
        self.compression, self.noise, self.share = compression, noise, share


class Objective(nn.Module, ABC):
    """A method of self-supervised learning of an encoder.

    Attributes:
        encoder: What is trained, and kept in the end.
        tower: The view of it.
        clip: Largest norm of the gradient; None for any.
        betas: Of AdamW.
        weight_decay: Of AdamW, where the settings have none.
    """

    clip: float | None = None
    betas: tuple[float, float] = (0.9, 0.999)
    weight_decay: float = 0.1

    def __init__(self, encoder: nn.Module) -> None:
        super().__init__()
        self.encoder = encoder

    @property
    def tower(self) -> VisionTower:
        return as_tower(self.encoder)

    @property
    def base(self) -> Compression:
        """No compression."""
        return Compression(patch_size_of(self.tower))

    @abstractmethod
    def views(self, normalisation: Normalisation) -> Callable[[Image.Image], Sequence[Tensor]]:
        """What turns an RGB picture into views ``(3, height, width)``, by torch's and numpy's random numbers."""

    @abstractmethod
    def forward(self, views: Sequence[Tensor], step: Step) -> Tensor:
        """The loss of a batch, of all processes together.

        Args:
            views: Of the images of this process, each ``(images, 3, height, width)``.
            step: What it is run under.
        """

    @abstractmethod
    def passes(self, compression: Compression) -> float:
        """What the encoders cost for one image, by formula; see ``cost``."""

    def start_from(self, weights: Mapping[str, Tensor]) -> None:
        """Takes the weights of an encoder of the same kind in place of those drawn."""
        self.encoder.load_state_dict(weights)

    def after_backward(self, share: float) -> None:
        """Changes gradients before the optimiser sees them."""

    def after_step(self, share: float) -> None:
        """Follows the optimiser's step, as momentum encoders do."""


class Contrastive(Objective):
    """What the methods that compare views share.

    Features of all processes are gathered before the heads: batch norms, negatives and centres are those of the whole
    batch on any number of processes, and the heads, which are small, run on each of them.

    Args:
        encoder: A vision transformer without a head; its weights are drawn as MoCo v3 draws them.
        keys: How keys are compressed.
        min_scale: Least share of the picture that a view shows.
    """

    def __init__(self, encoder: nn.Module, keys: KeysName = "patch", min_scale: float = 0.08) -> None:
        super().__init__(encoder)
        draw_evenly(encoder)
        self._keys, self._min_scale = keys, min_scale

    def of_keys(self, compression: Compression) -> Compression:
        """How keys are compressed where queries are compressed so."""
        return {"patch": compression.undropped(), "full": self.base, "both": compression}[self._keys]

    def share_of(self, compression: Compression) -> float:
        """MACs of a compressed forward pass as a share of those of a whole one."""
        return forward_share(self.tower, compression)

    def features(self, encoder: nn.Module, pixels: Tensor, compression: Compression, noise: Noise) -> Tensor:
        """Features of the images of all processes, ``(images, features)``, float32; gradients reach all encoders."""
        found = encode(as_tower(encoder), pixels, compression, noise).float().contiguous()
        dist = library("utils.dist")
        return torch.cat(dist.gather(found)) if dist.world_size() > 1 else found

    def blur(self) -> tuple[float, float]:
        """Standard deviations of the views' blur in pixels: 0.1 to 2 at 224 pixels, in proportion to the size."""
        return 0.1, max(0.1, 2.0 * self.tower.image_size[0] / 224)


class Following(Contrastive):
    """What methods share whose keys, or targets, a momentum encoder makes; the class itself makes its ``projector``.

    Args:
        encoder: As in ``Contrastive``.
        keys: As there.
        min_scale: As there.
        momentum: Of the momentum encoder and its projector at the start; it rises to 1.
    """

    projector: Any
    key_projector: Any

    def __init__(self, encoder: nn.Module, keys: KeysName, min_scale: float, momentum: float) -> None:
        super().__init__(encoder, keys, min_scale)
        self.key_encoder = copy.deepcopy(encoder).requires_grad_(False)
        self._momentum = momentum

    def start_from(self, weights: Mapping[str, Tensor]) -> None:
        super().start_from(weights)
        self.key_encoder.load_state_dict(weights)

    def after_step(self, share: float) -> None:
        follow, momentum = library("models.utils").update_momentum, momentum_at(share, self._momentum)
        follow(self.encoder, self.key_encoder, momentum)
        follow(self.projector, self.key_projector, momentum)


@torch.no_grad()
def draw_evenly(encoder: nn.Module) -> None:
    """Draws weights so that signals keep their size (Glorot and Bengio, 2010), in place, as MoCo v3 does.

    The usual deviation of 0.02 suits some 700 channels; narrow encoders, whose signals it quenches, learn late by it.
    Queries, keys and values are one matrix, and are drawn as three.
    """
    for name, module in encoder.named_modules():
        if isinstance(module, nn.Linear | nn.Conv2d):
            for part in module.weight.flatten(1).chunk(3 if name.endswith("qkv") else 1):
                nn.init.xavier_uniform_(part)
            if module.bias is not None:
                nn.init.zeros_(module.bias)


def normalised(normalisation: Normalisation) -> dict[str, list[float]]:
    """As lightly's transforms take it."""
    return {"mean": list(normalisation.mean), "std": list(normalisation.std)}


def in_float32(device: torch.device) -> torch.autocast:
    """Keeps heads and losses out of lower precision, for the length of a ``with`` block."""
    return torch.autocast(device.type, enabled=False)
