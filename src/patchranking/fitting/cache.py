"""Tokens and features of images, read once for a fit."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from patchranking.data import ImageData, none_readable, read_batches
from patchranking.towers.load import LoadedModel

__all__ = ["cache_tokens", "with_mirrored"]

_IMAGES_PER_BATCH = 32


def with_mirrored(importance: Tensor, grid: tuple[int, int]) -> Tensor:
    """Golden importance of images and of their mirror images, ``(images, patches)`` to ``(2, images, patches)``."""
    return torch.stack([importance, importance.unflatten(1, grid).flip(-1).flatten(1)])


@torch.no_grad()
def cache_tokens(
    model: LoadedModel, data: ImageData, chosen: Sequence[int] | None, block: int, dense: bool, mirrored: bool = False
) -> tuple[list[int], dict[str, str], Tensor, Tensor | None]:
    """Reads images once for a fit.

    Args:
        model: The model.
        data: The images.
        chosen: Indices to read; all when omitted.
        block: The block whose entering tokens are kept.
        dense: Whether to compute the features of the dense model too.
        mirrored: Whether every image is seen mirrored too, as a second view.

    Returns:
        Indices read; key -> reason of those skipped; tokens ``(views, images, prefix + patches, width)``
        float16; features ``(views, images, features)`` float32 or None. Both on the CPU.

    Raises:
        UserError: If no image can be read.
    """
    used: list[int] = []
    skipped: dict[str, str] = {}
    tokens: list[Tensor] = []
    features: list[Tensor] = []
    for found, pixels in read_batches(data, model.preprocess, _IMAGES_PER_BATCH, skipped, chosen, "cache tokens"):
        views = torch.cat([pixels, pixels.flip(-1)]) if mirrored else pixels
        entering = model.tower.embed(views.to(model.tower.device, model.tower.dtype), block)
        tokens.append(entering.half().cpu().unflatten(0, (-1, len(found))))
        if dense:
            features.append(
                model.tower.pool(model.tower.run(entering, block)).float().cpu().unflatten(0, (-1, len(found)))
            )
        used += found
    if not used:
        raise none_readable(skipped)
    return used, skipped, torch.cat(tokens, 1), torch.cat(features, 1) if dense else None
