"""Reads pictures of any kind, or says in one sentence why not."""

from __future__ import annotations

from io import BytesIO
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

from patchranking.errors import reason

__all__ = ["SUFFIXES", "UnreadableImageError", "read_image", "reason"]

SUFFIXES = {".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".ppm", ".avif"}
"""Ends of the names of files that are read as pictures."""


class UnreadableImageError(Exception):
    """A picture cannot be used; the message is the reason."""


def read_image(source: Path | bytes | Image.Image) -> Image.Image:
    """Opens a picture as RGB: turned as its EXIF says, first frame of animations, 16 bits scaled to 8.

    Args:
        source: A file, the content of one, or a picture opened by someone else.

    Raises:
        UnreadableImageError: If the file is empty, damaged, huge or no picture.
    """
    try:
        with _opened(source) as opened:
            image = ImageOps.exif_transpose(opened)
            if image.mode.startswith("I"):
                image = _eight_bits(image)
            if image.mode == "P":
                image = image.convert("RGBA")
            return image.convert("RGB")
    except UnreadableImageError:
        raise
    except Exception as error:
        raise UnreadableImageError(reason(error)) from error


def _opened(source: Path | bytes | Image.Image) -> Image.Image:
    if isinstance(source, Image.Image):
        return source
    if (len(source) if isinstance(source, bytes) else source.stat().st_size) == 0:
        raise UnreadableImageError("empty file")
    return Image.open(BytesIO(source) if isinstance(source, bytes) else source)


def _eight_bits(image: Image.Image) -> Image.Image:
    levels = np.asarray(image, np.int64).clip(0, 65535)
    wide = image.mode != "I" or levels.max() > 255
    return Image.fromarray((levels >> 8 if wide else levels).astype(np.uint8))
