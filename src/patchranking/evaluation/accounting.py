"""Where the images went: in = evaluated + skipped + left out."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from itertools import islice
from typing import Any

from patchranking.data import ImageData

__all__ = ["accounting"]

_FIRST = 10


def accounting(data: ImageData, evaluated: int, skipped: Mapping[str, str]) -> dict[str, Any]:
    """What ``results.json`` says about the images.

    Args:
        data: The images.
        evaluated: How many were.
        skipped: Key -> why an image was not.

    Returns:
        ``images``: totals, of which ``in`` is ``evaluated`` plus ``skipped``; ``skipped``; ``left_out``: how many files
        lie among the images and are none of them, how often for which reason, and the first of them; ``notes``.
    """
    reasons = Counter(data.left_out.values()).most_common(_FIRST)
    return {
        "images": {"in": len(data), "evaluated": evaluated, "skipped": len(skipped), "left_out": len(data.left_out)},
        "skipped": dict(skipped),
        "left_out": {
            "count": len(data.left_out),
            "reasons": dict(reasons),
            "first": dict(islice(data.left_out.items(), _FIRST)),
        },
        "notes": list(data.notes),
    }
