"""Pictures of what merging and a lower resolution do."""

from __future__ import annotations

import numpy as np
from PIL import Image

from patchranking.report.pictures import photo

__all__ = ["merged_view", "small_view"]

_LINE = np.array((255, 255, 255), np.float32)
_BLEND = 0.8


def merged_view(image: Image.Image, tokens: np.ndarray, side: int = 224) -> Image.Image:
    """Paints patches that go on in one token in their mean colour, with a line around each such group.

    Args:
        image: RGB square.
        tokens: Number of the token in which each patch goes on, ``(rows, cols)``.
        side: Side of the result in pixels.

    Returns:
        RGB image of ``side`` x ``side`` pixels; a patch that goes on by itself stays as it is.
    """
    pixels = np.asarray(photo(image, side), np.float32)
    numbers, group = np.unique(_enlarged(tokens, side), return_inverse=True)
    group = group.reshape(side, side)
    patches = np.bincount(np.unique(tokens, return_inverse=True)[1].ravel())
    areas = np.bincount(group.ravel())
    means = np.stack([np.bincount(group.ravel(), pixels[..., c].ravel()) / areas for c in range(3)], axis=-1)
    several = (patches > 1)[group]
    assert len(numbers) == len(patches)
    canvas = np.where(several[..., None], (1 - _BLEND) * pixels + _BLEND * means[group], pixels)
    canvas[_lines(group, several)] = _LINE
    return Image.fromarray(canvas.round().astype(np.uint8))


def small_view(image: Image.Image, grid: tuple[int, int], patch: int, side: int = 224) -> Image.Image:
    """The picture at fewer pixels, with the lines of its patches.

    Args:
        image: RGB square.
        grid: Rows and columns of its patches.
        patch: Side of a patch in pixels.
        side: Side of the result in pixels.
    """
    rows, columns = grid
    small = image.convert("RGB").resize((columns * patch, rows * patch), Image.Resampling.BICUBIC)
    canvas = np.asarray(small.resize((side, side), Image.Resampling.NEAREST), np.float32).copy()
    squares = _enlarged(np.arange(rows * columns).reshape(grid), side)
    lines = _lines(squares, np.ones_like(squares, dtype=bool))
    canvas[lines] = 0.6 * canvas[lines] + 0.4 * _LINE
    return Image.fromarray(canvas.round().astype(np.uint8))


def _enlarged(numbers: np.ndarray, side: int) -> np.ndarray:
    """Numbers of patches ``(rows, cols)`` as numbers of pixels ``(side, side)``."""
    rows, columns = (np.arange(side) * count // side for count in numbers.shape)
    return np.asarray(numbers[rows][:, columns])


def _lines(group: np.ndarray, drawn: np.ndarray) -> np.ndarray:
    """Pixels above or left of which another group begins, where one of the two is drawn; all ``(side, side)``."""
    found = np.zeros_like(drawn)
    for axis in (0, 1):
        here, before = np.roll(group, 1, axis), np.roll(drawn, 1, axis)
        edge = (group != here) & (drawn | before)
        edge[(0, slice(None)) if axis == 0 else (slice(None), 0)] = False
        found |= edge
    return found
