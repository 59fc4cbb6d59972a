"""The whole picture at fewer patches: what anyone can have without pruning."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor
from torch.nn import functional as F

from patchranking.methods.method import Encoded, Encoding, Method, Style
from patchranking.pruning.macs import nearest_in_macs
from patchranking.pruning.schedule import Schedule
from patchranking.pruning.select import gather_tokens
from patchranking.towers import VisionTower

__all__ = ["LowRes", "low_res", "low_res_schedule", "small_grid"]


def small_grid(grid: tuple[int, int], patches: int) -> tuple[int, int]:
    """The largest grid of at most ``patches`` patches in the picture's proportions.

    A grid may be longer by one patch on one side, as 11 x 12 is of 12 x 12: so there are nearly twice as many sizes.
    """
    rows, columns = grid
    fitting = [
        (r, c)
        for r in range(1, rows + 1)
        for c in range(1, columns + 1)
        if r * c <= patches and abs(r * columns - c * rows) <= max(rows, columns)
    ]
    return max(fitting, key=lambda size: (size[0] * size[1], -abs(size[0] * columns - size[1] * rows)))


def low_res_schedule(tower: VisionTower, reference: Schedule) -> Schedule:
    """All blocks at one size, at the MACs of another schedule.

    Args:
        tower: The image encoder.
        reference: How the methods it is compared with drop patches.

    Returns:
        The share of the patches that the nearest small grid has, from the first block on.
    """
    patches = tower.num_patches
    grids = {small_grid(tower.grid, count) for count in range(1, patches + 1)}
    return nearest_in_macs(tower, (Schedule({0: rows * cols / patches}) for rows, cols in sorted(grids)), reference)


def low_res(tower: VisionTower, pixels: Tensor, schedule: Schedule) -> Tensor:
    """Features of the picture made smaller, with the position embedding interpolated to the smaller grid.

    A rotary model rotates each patch like the one of the full grid under its middle.

    The small picture is laid into the corner of an empty one of full size, whose other patches go before the first
    block, so that any model takes it; the empty patches cost one patch embedding.

    Args:
        tower: The image encoder.
        pixels: ``(batch, 3, height, width)``.
        schedule: From ``low_res_schedule``.

    Returns:
        ``(batch, features)``.
    """
    rows, columns = small_grid(tower.grid, schedule.kept(tower.num_patches)[0])
    if (rows, columns) == tower.grid:
        return tower(pixels)
    height, width = (size // count for size, count in zip(tower.image_size, tower.grid, strict=True))
    small = F.interpolate(pixels, (rows * height, columns * width), mode="bicubic", antialias=True)
    canvas = torch.zeros_like(pixels)
    canvas[..., : small.shape[2], : small.shape[3]] = small
    numbers = torch.arange(tower.num_patches, device=pixels.device).view(tower.grid)
    corner = numbers[:rows, :columns].flatten()
    with _positions_of(tower, rows, columns, corner):
        tokens = tower.embed(canvas)
    tokens = gather_tokens(tokens, corner.expand(len(pixels), -1), tower.num_prefix_tokens)
    under = F.interpolate(numbers[None, None].float(), (rows, columns), mode="nearest-exact").flatten().long()
    return tower.pool(tower.run(tokens, 0, positions=under.expand(len(pixels), -1)))


@contextmanager
def _positions_of(tower: VisionTower, rows: int, columns: int, corner: Tensor) -> Iterator[None]:
    """Gives the corner's patches the interpolated positions of the whole picture, for the length of a block."""
    embedding = tower.position_embedding
    if embedding is None:
        yield
        return
    own, first = embedding.data, embedding.shape[-2] - tower.num_patches
    grid = own[..., first:, :].reshape(1, *tower.grid, -1).permute(0, 3, 1, 2)
    between = F.interpolate(grid.float(), (rows, columns), mode="bicubic", antialias=True).flatten(2).mT[0]
    changed = own.clone()
    changed[..., first + corner, :] = between.to(own.dtype)
    embedding.data = changed
    try:
        yield
    finally:
        embedding.data = own


class LowRes(Method):
    """The whole picture at a lower resolution, with the MACs of the reference."""

    name = "low-res"
    style = Style("#c2578f", "X")

    def at(self, tower: VisionTower, schedule: Schedule, seed: int) -> Encoding:
        own = low_res_schedule(tower, schedule)
        return Encoding(tower, own, lambda batch: Encoded(low_res(tower, batch.pixels, own)))
