"""Pictures of what a method keeps: the golden ranking as a heat map, the kept patches on a greyed image, and both."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import product
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from patchranking.evaluation.examples import Example
from patchranking.extras import import_extra
from patchranking.report.styles import order

__all__ = ["examples_picture", "heat_map", "kept_view", "photo", "sheet", "shown_methods"]

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


def examples_picture(examples: Sequence[Example], rates: Sequence[float] = (0.6, 0.5), side: int = 168) -> Image.Image:
    """Lays examples out as one picture with a row for each.

    Args:
        examples: The images.
        rates: Keep rates to show for every method, next to the image and its golden ranking.
        side: Side of one image in pixels.

    Returns:
        RGB picture on white; an image that lacks a method has a gap there.

    Raises:
        MissingExtraError: If matplotlib, whose font the headings use, is not installed.
    """
    shown = list(product(shown_methods(examples), rates))
    golden = any(item.importance is not None for item in examples)
    heads = [("image", "")] + [("golden", "ranking")] * golden + [(name, f"{rate:.0%} kept") for name, rate in shown]
    rows = []
    for item in examples:
        pictures: list[Image.Image | None] = [photo(item.image, side)]
        if golden:
            pictures.append(None if item.importance is None else heat_map(item.image, item.importance, side))
        for method, rate in shown:
            view = item.views.get(method, {}).get(rate)
            pictures.append(None if view is None else kept_view(item.image, view.kept, side))
        rows.append(pictures)
    return sheet(heads, rows, side)


def sheet(
    heads: Sequence[tuple[str, str]], rows: Sequence[Sequence[Image.Image | None]], side: int = 168
) -> Image.Image:
    """Lays pictures out below headings.

    Args:
        heads: A bold and a plain line over every column.
        rows: Squares of ``side`` pixels, one a column; a gap where there is none.
        side: Side of one picture in pixels.

    Returns:
        RGB picture on white.

    Raises:
        MissingExtraError: If matplotlib, whose font the headings use, is not installed.
    """
    matplotlib = import_extra("matplotlib", "The report", "report")
    gap, band = max(4, side // 21), side // 4
    canvas = Image.new("RGB", (len(heads) * (side + gap) + gap, band + len(rows) * (side + gap)), "white")
    draw = ImageDraw.Draw(canvas)
    fonts = Path(matplotlib.get_data_path()) / "fonts/ttf"
    bold = ImageFont.truetype(str(fonts / "DejaVuSans-Bold.ttf"), side // 13)
    plain = ImageFont.truetype(str(fonts / "DejaVuSans.ttf"), side // 13)
    for column, (name, note) in enumerate(heads):
        x = gap + column * (side + gap)
        draw.text((x, band * 0.14), name, "#1b1f2a", bold)
        draw.text((x, band * 0.52), note, "#646b7a", plain)
    for row, pictures in enumerate(rows):
        for column, picture in enumerate(pictures):
            if picture is not None:
                canvas.paste(picture, (gap + column * (side + gap), band + row * (side + gap)))
    return canvas
