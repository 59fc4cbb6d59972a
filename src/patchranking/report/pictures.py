"""Pictures of what a method keeps: the golden ranking as a heat map and the kept patches on a greyed image."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from PIL import Image

from patchranking.evaluation.examples import Example
from patchranking.report.styles import order

__all__ = ["heat_map", "kept_view", "photo", "shown_methods"]

_MAGMA = np.array(
    [
        (0, 0, 4),
        (29, 17, 71),
        (81, 18, 124),
        (130, 37, 129),
        (183, 55, 121),
        (230, 81, 100),
        (252, 137, 97),
        (254, 194, 135),
        (252, 253, 191),
    ],
    np.float32,
)
"""Nine evenly spaced colours of matplotlib's magma."""

_PALE = np.array((203, 207, 216), np.float32)

_OUTLINE = np.array((38, 42, 54), np.float32)


def shown_methods(examples: Sequence[Example]) -> list[str]:
    """All methods whose choice the examples show, in the order of the report."""
    return sorted({method for item in examples for method in item.views}, key=order)


def photo(image: Image.Image, side: int = 168) -> Image.Image:
    """The image as an RGB square of ``side`` pixels."""
    return image.convert("RGB").resize((side, side), Image.Resampling.LANCZOS)


def heat_map(image: Image.Image, importance: np.ndarray, side: int = 168) -> Image.Image:
    """Lays the importance of the patches over a greyscale copy of the image, dark = least, bright = most important.

    Args:
        image: RGB square.
        importance: ``(rows, cols)``, higher = keep; only the order counts, equal values share a colour.
        side: Side of the result in pixels.

    Returns:
        RGB image of ``side`` x ``side`` pixels.
    """
    _, place, count = np.unique(importance, return_inverse=True, return_counts=True)
    middle = np.cumsum(count) - (count + 1) / 2
    share = (middle / max(importance.size - 1, 1))[place.reshape(importance.shape)]
    anchors = np.linspace(0, 1, len(_MAGMA))
    colours = np.stack([np.interp(share, anchors, channel) for channel in _MAGMA.T], axis=-1)
    layer = Image.fromarray(colours.round().astype(np.uint8)).resize((side, side), Image.Resampling.NEAREST)
    return Image.blend(photo(image, side).convert("L").convert("RGB"), layer, 0.74)


def kept_view(image: Image.Image, kept: np.ndarray, side: int = 168) -> Image.Image:
    """Shows the kept patches in full colour and the dropped ones as a grey ghost.

    Args:
        image: RGB square.
        kept: Boolean ``(rows, cols)``, true where the patch is kept.
        side: Side of the result in pixels.

    Returns:
        RGB image of ``side`` x ``side`` pixels with a thin line between kept and dropped patches.
    """
    picture = photo(image, side)
    grid = Image.fromarray(kept.astype(np.uint8) * 255).resize((side, side), Image.Resampling.NEAREST)
    mask = np.asarray(grid) > 0
    ghost = np.asarray(picture.convert("L"), np.float32)[..., None] * 0.14 + _PALE * 0.86
    canvas = np.where(mask[..., None], np.asarray(picture, np.float32), ghost)
    canvas[_border(mask)] = _OUTLINE
    return Image.fromarray(canvas.round().astype(np.uint8))


def _border(mask: np.ndarray) -> np.ndarray:
    """Dropped pixels that touch a kept one, both ``(side, side)``."""
    padded = np.pad(mask, 1)
    near = padded[:-2, 1:-1] | padded[2:, 1:-1] | padded[1:-1, :-2] | padded[1:-1, 2:]
    return np.asarray(near & ~mask)
