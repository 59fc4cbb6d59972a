"""Rotary position embedding: every patch that goes on keeps the rotation of the place it is from."""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional as F

__all__ = ["waves_at"]


def waves_at(waves: Tensor, positions: Tensor | None, patches: int, still: float) -> Tensor:
    """Sines or cosines of the tokens behind the prefix.

    Args:
        waves: Those of all cells of the grid in order, ``(..., cells, channels)``, at most ``(batch, heads, ...)``.
        positions: Cell of each patch, ``(batch, patches that have one)``; all cells in order when omitted.
        patches: Tokens behind the prefix; those that are more than have a cell come first and are not rotated.
        still: What does not rotate: 0 for sines, 1 for cosines.

    Returns:
        ``(batch, heads or 1, patches, channels)``, or ``waves`` where these are all.

    Raises:
        ValueError: If there are more places than tokens.
    """
    if positions is not None:
        waves = waves[(None,) * (4 - waves.ndim)].expand(positions.shape[0], -1, -1, -1)
        waves = waves.gather(2, positions[:, None, :, None].expand(-1, waves.shape[1], -1, waves.shape[-1]))
    if (more := patches - waves.shape[-2]) < 0:
        raise ValueError(f"{waves.shape[-2]} places for {patches} tokens: give the positions of those that are left")
    return F.pad(waves, (0, 0, more, 0), value=still) if more else waves
