"""Reads pictures of any kind, or says in one sentence why not."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

__all__ = ["UnreadableImageError", "read_image", "reason"]


class UnreadableImageError(Exception):
    """A picture cannot be used; the message is the reason."""


def read_image(path: Path) -> Image.Image:
    """Opens a picture as RGB: turned as its EXIF says, first frame of animations, 16 bits scaled to 8.

    Args:
        path: The file.

    Raises:
        UnreadableImageError: If the file is empty, damaged, huge or no picture.
    """
    try:
        if path.stat().st_size == 0:
            raise UnreadableImageError("empty file")
        with Image.open(path) as opened:
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


def _eight_bits(image: Image.Image) -> Image.Image:
    levels = np.asarray(image, np.int64).clip(0, 65535)
    wide = image.mode != "I" or levels.max() > 255
    return Image.fromarray((levels >> 8 if wide else levels).astype(np.uint8))


def reason(error: Exception) -> str:
    """An error on one line: its type and the start of its message."""
    return f"{type(error).__name__}: {' '.join(str(error).split())[:160]}"
