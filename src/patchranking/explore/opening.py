"""Opens a picture that someone brings, and says what became of it on the way."""

from __future__ import annotations

from contextlib import suppress
from io import BytesIO

from PIL import Image

from patchranking.data.images import UnreadableImageError, read_image
from patchranking.errors import UserError

__all__ = ["opened", "unusable"]


def opened(content: bytes, image_size: tuple[int, int]) -> tuple[Image.Image, list[str]]:
    """Opens a picture of any kind as RGB.

    Args:
        content: Of its file.
        image_size: Height and width that the model takes.

    Returns:
        The picture, and a sentence for everything about it that a reader should know.

    Raises:
        UserError: If it cannot be used; the sentence says why.
    """
    try:
        picture = read_image(content)
    except UnreadableImageError as error:
        raise unusable(error) from error
    return picture, _notes(content, picture.size, image_size)


def unusable(error: UnreadableImageError) -> UserError:
    """The sentence about a picture that cannot be used."""
    return UserError(f"This picture cannot be used: {str(error).rstrip('.')}.")


def _notes(content: bytes, size: tuple[int, int], image_size: tuple[int, int]) -> list[str]:
    notes, (width, height), (rows, columns) = [], size, image_size
    with suppress(Exception), Image.open(BytesIO(content)) as stored:
        if stored.mode == "CMYK":
            notes.append("Its colours were turned from CMYK into RGB.")
        if stored.mode.startswith(("I", "F")):
            notes.append("Its values, of more than 8 bits, were scaled to 8.")
        if (frames := getattr(stored, "n_frames", 1)) > 1:
            notes.append(f"It holds {frames} pictures, and this is the first of them.")
    if width < columns or height < rows:
        notes.append(
            f"It has {width} x {height} pixels, fewer than the {columns} x {rows} that the model takes, and was "
            "enlarged."
        )
    return notes
