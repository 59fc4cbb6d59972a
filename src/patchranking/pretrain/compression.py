"""Short token sequences from the same image: larger patches, and a random part of the patches dropped.

Both leave the model as it is (Lin et al., "Accelerating Augmentation Invariance Pretraining", 2024, arXiv 2410.22364):
one set of weights serves all patch sizes (FlexiViT, Beyer et al., 2023, arXiv 2212.08013), and what is dropped never
enters a block (FLIP, Li et al., 2023).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor, nn
from torch.func import functional_call

from patchranking.errors import UserError
from patchranking.extras import import_extra
from patchranking.pruning.select import gather_tokens
from patchranking.towers import VisionTower

__all__ = [
    "Compressed",
    "Compression",
    "Noise",
    "check_compressible",
    "encode",
    "keep_some",
    "patch_size_of",
    "run_compressed",
]

Noise = Callable[[int], Tensor]
"""From a number of patches to random numbers ``(batch, patches)``."""

_INTERPOLATION = "bilinear"
"""As in FlexiViT; timm's default is bicubic."""


@dataclass(frozen=True)
class Compression:
    """How an image becomes fewer tokens: first larger patches, then a random part of them dropped.

    Attributes:
        patch_size: Side of a patch in pixels, the model's own or a multiple of what the image holds.
        drop: Share of the patches dropped, 0 <= drop < 1.
    """

    patch_size: int
    drop: float = 0.0

    def __post_init__(self) -> None:
        whole = isinstance(self.patch_size, int) and not isinstance(self.patch_size, bool)
        if not whole or self.patch_size < 1:
            raise UserError(f"A patch size is a whole number of pixels, 1 or more, not {self.patch_size!r}.")
        number = isinstance(self.drop, int | float) and not isinstance(self.drop, bool)
        if not number or not 0 <= self.drop < 1:
            raise UserError(f"'drop' is the share of the patches dropped, 0 or more and below 1, not {self.drop!r}.")

    def patches(self, image_size: int) -> int:
        """Patches of an image of ``image_size`` x ``image_size`` pixels, before any is dropped."""
        return (image_size // self.patch_size) ** 2

    def kept(self, image_size: int) -> int:
        """Patches that enter the first block, ``round((1 - drop) * patches)``, at least one."""
        patches = self.patches(image_size)
        return max(1, round((1 - self.drop) * patches))

    def undropped(self) -> Compression:
        """The same patch size with all patches."""
        return Compression(self.patch_size)

    def __str__(self) -> str:
        return f"patches of {self.patch_size}" + (f", {self.drop:.0%} dropped" if self.drop else "")


def patch_size_of(tower: VisionTower) -> int:
    """The patch size of a tower in pixels."""
    return tower.image_size[0] // tower.grid[0]


def check_compressible(tower: VisionTower, compression: Compression) -> None:
    """Checks that a tower can run under a compression.

    Raises:
        UserError: If its patches or images are not square, its patches do not come out of one convolution, it has no
            absolute position embedding or rotates, it takes images of any size, or the patch size does not fit.
    """
    (height, width), own = tower.image_size, patch_size_of(tower)
    if height != width or tower.grid[0] != tower.grid[1]:
        raise UserError(f"Compression works on square images, and this model takes {height} x {width} pixels.")
    flexible = tower.any_size or getattr(tower.module, "dynamic_img_size", False)
    if tower.rotary or tower.position_embedding is None or flexible or _convolution(tower) is None:
        raise UserError(
            "Compression works on vision transformers with one convolution for the patches and one absolute position "
            f"embedding for one image size, and this {type(tower.module).__name__} is another: give one like timm's "
            "vit_tiny_patch16_224."
        )
    if compression.patch_size < own or height % compression.patch_size:
        fitting = ", ".join(str(size) for size in range(own, height + 1) if height % size == 0)
        raise UserError(
            f"A patch size of {compression.patch_size} does not fit images of {height} x {height} pixels and a model "
            f"with patches of {own}: choose one of {fitting}."
        )


def keep_some(noise: Tensor, count: int) -> Tensor:
    """A uniform random choice of patches, each image its own.

    Args:
        noise: Independent random numbers, ``(batch, patches)``.
        count: Patches to keep.

    Returns:
        int64 indices in ascending order, ``(batch, count)``.
    """
    return noise.topk(count, dim=1, largest=False).indices.sort(dim=1).values


class Compressed(NamedTuple):
    """What ``run_compressed`` finds.

    Attributes:
        tokens: After the last block, ``(batch, prefix + kept, width)``.
        kept: Which patches they are, ``(batch, kept)``; None where none is dropped.
    """

    tokens: Tensor
    kept: Tensor | None


def encode(tower: VisionTower, pixels: Tensor, compression: Compression, noise: Noise | None = None) -> Tensor:
    """Features of images under a compression; without one, bit for bit what the library returns.

    Args:
        tower: The image encoder.
        pixels: ``(batch, 3, height, width)``.
        compression: Patch size and share dropped.
        noise: Asked for ``(batch, patches)`` random numbers where patches are dropped.

    Returns:
        ``(batch, features)``; gradients reach the weights of the tower itself.
    """
    return tower.pool(run_compressed(tower, pixels, compression, noise).tokens)


def run_compressed(
    tower: VisionTower, pixels: Tensor, compression: Compression, noise: Noise | None = None
) -> Compressed:
    """The tokens of images after the last block, under a compression.

    At larger patches, the tower's patch embedding and position embedding are replaced in the meantime by resized ones,
    functions of its own weights: the patch embedding by PI-resize, so that an image drawn larger gives the same tokens
    (FlexiViT, section 3.4), the position embedding by interpolation.

    Args:
        tower: The image encoder.
        pixels: ``(batch, 3, height, width)``.
        compression: Patch size and share dropped.
        noise: Asked for ``(batch, patches)`` random numbers where patches are dropped.
    """

    def run(pixels: Tensor) -> Compressed:
        tokens, kept = tower.embed(pixels), None
        if compression.drop:
            assert noise is not None
            patches = tokens.shape[1] - tower.num_prefix_tokens
            kept = keep_some(noise(patches).to(tokens.device), compression.kept(tower.image_size[0]))
            tokens = gather_tokens(tokens, kept, tower.num_prefix_tokens)
        return Compressed(tower.run(tokens, 0), kept)

    if compression.patch_size == patch_size_of(tower):
        return run(pixels)
    convolution = cast(nn.Conv2d, _convolution(tower))
    with torch.autocast(tower.device.type, enabled=False):
        weights = _resized_weights(tower, convolution, compression.patch_size)
    with _stride(convolution, compression.patch_size):
        return functional_call(_Under(tower.module, run), weights, (pixels,))


class _Under(nn.Module):
    """A function of a module as a module that holds it, so that ``functional_call`` replaces what the function sees."""

    def __init__(self, module: nn.Module, run: Callable[[Tensor], Compressed]) -> None:
        super().__init__()
        self.module, self._run = module, run

    def forward(self, pixels: Tensor) -> Compressed:
        return self._run(pixels)


def _convolution(tower: VisionTower) -> nn.Conv2d | None:
    """The convolution that makes the patches; None where there are several, or its kernel is no patch."""
    found = [part for part in tower.module.modules() if isinstance(part, nn.Conv2d)]
    size = (patch_size_of(tower),) * 2
    return found[0] if len(found) == 1 and found[0].kernel_size == found[0].stride == size else None


def _resized_weights(tower: VisionTower, convolution: nn.Conv2d, size: int) -> dict[str, Tensor]:
    """Name in ``_Under`` -> weight or buffer for another patch size."""
    layers = import_extra("timm.layers", "Larger patches need timm", "pretrain")
    cells = tower.image_size[0] // size
    position = cast(Tensor, tower.position_embedding)
    prefix = position.shape[-2] - tower.num_patches
    table = position.reshape(1, *position.shape[-2:])
    table = layers.resample_abs_pos_embed(table, [cells, cells], list(tower.grid), prefix, interpolation=_INTERPOLATION)
    replaced: dict[int, Tensor] = {
        id(convolution.weight): _pi_resized(convolution.weight, size),
        id(position): table.reshape(*position.shape[:-2], *table.shape[-2:]),
    }
    weights = {f"module.{n}": replaced[id(w)] for n, w in tower.module.named_parameters() if id(w) in replaced}
    numbers = torch.arange(table.shape[-2], device=position.device)
    for name, buffer in tower.module.named_buffers():
        if name.endswith("position_ids"):
            weights[f"module.{name}"] = numbers.to(buffer.dtype).expand(*buffer.shape[:-1], -1)
    return weights


def _pi_resized(weight: Tensor, size: int) -> Tensor:
    """A patch embedding ``(width, channels, own, own)`` for patches of another size."""
    matrix = _pi_matrix(weight.shape[-1], size).to(weight.device)
    return (weight.float().flatten(2) @ matrix).unflatten(2, (size, size)).to(weight.dtype)


@lru_cache
def _pi_matrix(own: int, size: int) -> Tensor:
    """What PI-resize multiplies a flattened kernel by, ``(own^2, size^2)``: timm's resizing of the unit kernels."""
    layers = import_extra("timm.layers", "Larger patches need timm", "pretrain")
    with torch.inference_mode(False):
        units = torch.eye(own * own).view(own * own, 1, own, own)
        resized: Tensor = layers.resample_patch_embed(units, [size, size], interpolation=_INTERPOLATION)
        return resized.flatten(1)


@contextmanager
def _stride(convolution: Any, size: int) -> Iterator[None]:
    """Lets a convolution step by so many pixels."""
    own = convolution.stride
    convolution.stride = (size, size)
    try:
        yield
    finally:
        convolution.stride = own
