"""Sliding windows on the patch grid, and how window scores become patch scores (paper, Eq. 4)."""

from __future__ import annotations

import torch
from torch import Tensor

from patchranking.errors import UserError

__all__ = ["coverage", "patch_means", "survivors", "windows"]


def windows(grid: tuple[int, int], size: int, stride: int) -> Tensor:
    """Patch indices of every ``size`` x ``size`` window.

    Where the stride does not end at the border, a last window flush with it is added, so every patch is covered.

    Args:
        grid: Patch rows and columns.
        size: Side of a window in patches.
        stride: Step between windows in patches.

    Returns:
        int64 indices ``(windows, size * size)``, row-major.

    Raises:
        UserError: If a window does not fit the grid, fills it, or the stride leaves gaps.
    """
    if not 1 <= size <= min(grid) or size * size == grid[0] * grid[1]:
        raise UserError(
            f"A window of {size} x {size} patches does not fit a grid of {grid[0]} x {grid[1]}: give a smaller one."
        )
    if not 1 <= stride <= size:
        raise UserError(f"The stride must be between 1 and the window size {size} to cover every patch, not {stride}.")
    rows, columns = (sorted({*range(0, side - size + 1, stride), side - size}) for side in grid)
    patches = torch.arange(grid[0] * grid[1]).view(grid)
    return torch.stack([patches[r : r + size, c : c + size].flatten() for r in rows for c in columns])


def coverage(window_patches: Tensor, num_patches: int) -> Tensor:
    """Number of windows that contain each patch, ``(patches,)`` int64."""
    return torch.bincount(window_patches.flatten(), minlength=num_patches)


def survivors(window_patches: Tensor, num_patches: int) -> Tensor:
    """Patches outside each window.

    Args:
        window_patches: ``(windows, removed)``.
        num_patches: Patches of the grid.

    Returns:
        Ascending indices ``(windows, patches - removed)``.
    """
    keep = torch.ones(len(window_patches), num_patches, dtype=torch.bool)
    keep.scatter_(1, window_patches, False)
    return keep.nonzero()[:, 1].view(len(window_patches), -1)


def patch_means(window_values: Tensor, window_patches: Tensor, num_patches: int) -> Tensor:
    """Averages, for each patch, the values of the windows that contain it.

    The paper divides by the window area, which understates patches at the border; this divides by the coverage.

    Args:
        window_values: ``(batch, windows)``.
        window_patches: ``(windows, removed)``.
        num_patches: Patches of the grid.

    Returns:
        ``(batch, patches)``.
    """
    index = window_patches.flatten().to(window_values.device)
    spread = window_values.repeat_interleave(window_patches.shape[1], dim=1)
    sums = window_values.new_zeros(len(window_values), num_patches).index_add_(1, index, spread)
    return sums / coverage(window_patches, num_patches).to(sums)
