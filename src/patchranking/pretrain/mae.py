"""Masked autoencoder (He et al., CVPR 2022, arXiv 2111.06377): an encoder sees some patches, a decoder fills in all."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional as F

from patchranking.errors import UserError
from patchranking.extras import import_extra
from patchranking.pretrain.compression import Compression, Noise, keep_some, patch_size_of
from patchranking.pretrain.cost import forward_share
from patchranking.pretrain.objective import Normalisation, Objective, Step, in_float32, library, normalised
from patchranking.pruning.macs import analytic_macs
from patchranking.pruning.schedule import Schedule
from patchranking.pruning.select import gather_tokens

__all__ = ["MAE", "Filled"]

_CHANNELS = 3
_HEAD_WIDTH = 32
"""Channels of an attention head of the decoder, as in the original's 512 of 16 heads."""


class Filled(NamedTuple):
    """What a masked autoencoder sees of images and makes of the rest.

    Attributes:
        visible: Which patches it sees, boolean ``(images, patches)``.
        pixels: The images with the other patches as it fills them in, ``(images, 3, height, width)``.
    """

    visible: Tensor
    pixels: Tensor


class MAE(Objective):
    """Patches that the encoder does not see are predicted from those it sees; the loss is of these patches alone.

    Weights are drawn as in the original, and positions are its fixed sines and cosines.

    Args:
        encoder: A vision transformer of timm without a head.
        mask: Share of the patches that the encoder does not see.
        width: Channels of the decoder, a multiple of 32.
        depth: Blocks of the decoder.
        normalise: Predict pixels less their patch's mean, divided by its standard deviation.
        min_scale: Least share of the picture that a view shows.

    Raises:
        UserError: If the encoder is another transformer, or no patch is hidden.
    """

    betas, weight_decay = (0.9, 0.95), 0.05

    def __init__(
        self,
        encoder: nn.Module,
        mask: float = 0.75,
        width: int = 512,
        depth: int = 8,
        normalise: bool = True,
        min_scale: float = 0.2,
    ) -> None:
        super().__init__(encoder)
        modules, tower = library("models.modules"), self.tower
        transformers = import_extra("timm.models.vision_transformer", "Pretraining needs timm", "pretrain")
        positions = tower.num_prefix_tokens + tower.num_patches
        embedding = tower.position_embedding
        if type(encoder) is not transformers.VisionTransformer or embedding is None or embedding.shape[-2] != positions:
            raise UserError(
                "A masked autoencoder works on plain vision transformers with a position for every token, like timm's "
                f"vit_tiny_patch16_224, and this {type(encoder).__name__} is another."
            )
        self._seen = Compression(patch_size_of(tower), mask)
        if self._seen.kept(tower.image_size[0]) == tower.num_patches:
            raise UserError(f"Of {tower.num_patches} patches, {mask:g} is none: hide more, or give smaller patches.")
        self._normalise, self._min_scale = normalise, min_scale
        modules.MaskedVisionTransformerTIMM(vit=encoder)  # draws the encoder's weights
        self.embed = nn.Linear(tower.width, width)
        self.decoder = modules.MaskedVisionTransformerDecoderTIMM(
            tower.num_patches, width, depth, width // _HEAD_WIDTH, tower.num_prefix_tokens
        )
        self.predict = nn.Linear(width, _CHANNELS * self._seen.patch_size**2)
        for layer in (self.embed, self.predict):
            nn.init.xavier_uniform_(layer.weight)
            nn.init.zeros_(layer.bias)

    def views(self, normalisation: Normalisation) -> Callable[[Image.Image], Sequence[Tensor]]:
        transforms = library("transforms.mae_transform")
        views: Callable[[Image.Image], Sequence[Tensor]] = transforms.MAETransform(
            self.tower.image_size[0], self._min_scale, normalised(normalisation)
        )
        return views

    def forward(self, views: Sequence[Tensor], step: Step) -> Tensor:
        (pixels,) = views
        visible, hidden = self._drawn(pixels, step.noise)
        predicted = self._predicted(pixels, visible, hidden)
        with in_float32(pixels.device):
            utils = library("models.utils")
            target = utils.get_at_index(utils.patchify(pixels.float(), self._seen.patch_size), hidden)
            return F.mse_loss(predicted.float(), utils.normalize_mean_var(target) if self._normalise else target)

    def passes(self, compression: Compression) -> float:
        """Of the encoder on the patches it sees, and of the decoder by its multiply-accumulates."""
        tower, width = self.tower, self.embed.out_features
        tokens, seen = self.decoder.sequence_length, tower.num_prefix_tokens + self._seen.kept(tower.image_size[0])
        decoder = len(self.decoder.blocks) * (12 * tokens * width**2 + 2 * tokens**2 * width)
        decoder += seen * self.embed.weight.numel() + (tokens - seen) * self.predict.weight.numel()
        return forward_share(tower, self._seen) + decoder / analytic_macs(tower, 0, Schedule({0: 1.0}))

    @torch.no_grad()
    def fill(self, pixels: Tensor, noise: Noise) -> Filled:
        """Shows images with the hidden patches as the decoder fills them in.

        A decoder of normalised pixels knows the mean and the deviation of no hidden patch: it is given the true ones.

        Args:
            pixels: ``(images, 3, height, width)``.
            noise: From a number of patches to random numbers, ``(images, patches)``, which say what is hidden.
        """
        utils, size = library("models.utils"), self._seen.patch_size
        visible, hidden = self._drawn(pixels, noise)
        predicted, patches = self._predicted(pixels, visible, hidden).float(), utils.patchify(pixels, size)
        if self._normalise:
            deviation, mean = torch.std_mean(utils.get_at_index(patches, hidden), dim=-1, keepdim=True)
            predicted = predicted * deviation + mean
        seen = torch.zeros(patches.shape[:2], dtype=torch.bool, device=pixels.device).scatter(1, visible, True)
        return Filled(seen, utils.unpatchify(utils.set_at_index(patches, hidden, predicted), size))

    def _drawn(self, pixels: Tensor, noise: Noise) -> tuple[Tensor, Tensor]:
        """Which patches are seen and which are hidden, ``(images, seen)`` and ``(images, hidden)``, ascending."""
        drawn = noise(self.tower.num_patches).to(pixels.device)
        seen = self._seen.kept(self.tower.image_size[0])
        return keep_some(drawn, seen), keep_some(-drawn, self.tower.num_patches - seen)

    def _predicted(self, pixels: Tensor, visible: Tensor, hidden: Tensor) -> Tensor:
        """Pixels of the hidden patches, ``(images, hidden, channels x side x side)``."""
        utils, tower = library("models.utils"), self.tower
        prefix, norm = tower.num_prefix_tokens, tower.module.norm
        tokens = gather_tokens(tower.embed(pixels), visible, prefix)
        seen = self.embed(norm(tower.run(tokens, 0)))
        places = torch.cat([torch.arange(prefix, device=pixels.device).expand(len(pixels), -1), prefix + visible], 1)
        every = self.decoder.mask_token.to(seen.dtype).expand(len(pixels), self.decoder.sequence_length, -1)
        decoded = self.decoder(utils.set_at_index(every, places, seen))
        return self.predict(utils.get_at_index(decoded, prefix + hidden))
