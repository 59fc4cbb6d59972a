"""A page of thumbnails of the images that a search found."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from PIL import Image

from patchranking.report.template import write_page
from patchranking.report.wall import source

__all__ = ["write_found"]

_SIDE = 224


def write_found(title: str, found: Sequence[tuple[str, float, Image.Image | str]], out: Path) -> Path:
    """Writes a page of images in the order in which they were found.

    Args:
        title: What was looked for.
        found: Key, similarity, and the picture or why it cannot be shown, of each.
        out: The HTML file to write; it appears complete or not at all.

    Returns:
        ``out``.

    Raises:
        MissingExtraError: If jinja2 is not installed.
    """
    return write_page(out, "found.html.j2", title=title, cards=[_card(*one) for one in found])


def _card(key: str, similarity: float, picture: Image.Image | str) -> dict[str, str]:
    card = {"key": key, "similarity": f"{similarity:.4f}"}
    if isinstance(picture, str):
        return card | {"picture": "", "why": picture}
    small = picture.convert("RGB")
    small.thumbnail((_SIDE, _SIDE))
    return card | {"picture": source(small), "why": ""}
