"""The wall: images, what every stage keeps of them, and what the model then says."""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping, Sequence
from typing import Any

from PIL import Image

from patchranking.evaluation.examples import Example, View
from patchranking.report.pictures import heat_map, photo, shown_methods
from patchranking.report.text import number, percent

__all__ = ["source", "wall"]

_SIDE = 224
_KEPT, _FIRST, _LATER = "kab"
"""Classes of a patch on the page: kept, dropped by the first stage, dropped by a later one."""


def wall(examples: Sequence[Example], rate: float) -> dict[str, Any] | None:
    """Everything the page says about single images.

    Args:
        examples: The images.
        rate: The keep rate to start at, the nearest there is.

    Returns:
        The ``rates`` from low to high, as keys and as read, and the ``place`` of the first shown; whether there are
        ``later`` stages, predicted ``classes`` and ``golden`` rankings; and two lists of cards, ``worst`` and
        ``first``. None without images.
    """
    if not examples:
        return None
    views = [(rate, view) for item in examples for known in item.views.values() for rate, view in known.items()]
    rates = sorted({rate for rate, _ in views})
    start = min(rates, key=lambda known: abs(known - rate), default=rate)
    methods = shown_methods(examples)
    return {
        "rates": [(str(known), percent(known)) for known in rates],
        "place": rates.index(start) if rates else 0,
        "later": any(view.stages > 1 for _, view in views),
        "classes": any(item.prediction is not None for item in examples),
        "golden": any(item.importance is not None for item in examples),
        "worst": [_card(item, methods, start) for item in examples if item.worst],
        "first": [_card(item, methods, start) for item in examples if not item.worst],
    }


def _card(item: Example, methods: Sequence[str], start: float) -> dict[str, Any]:
    golden = None if item.importance is None else source(heat_map(item.image, item.importance, _SIDE))
    masks = [_mask(name, item.views[name], start, item.prediction) for name in methods if item.views.get(name)]
    return {
        "caption": item.caption,
        "key": item.key if item.key != item.caption else "",
        "prediction": item.prediction,
        "right": item.prediction == item.caption,
        "photo": source(photo(item.image, _SIDE)),
        "golden": golden,
        "masks": masks,
    }


def _mask(name: str, views: Mapping[float, View], start: float, dense: str | None) -> dict[str, Any]:
    """One method on one image: the grid, and for every keep rate the class of every patch and what is said below."""
    said = {str(rate): _said(view, dense) for rate, view in views.items()}
    rows, columns = next(iter(views.values())).passed.shape
    shown = said.get(str(start)) or next(iter(said.values()))
    patches = [
        {"x": place % columns, "y": place // columns, "kind": kind} for place, kind in enumerate(shown["patches"])
    ]
    return {"name": name, "rows": rows, "columns": columns, "patches": patches, "shown": shown, "views": said}


def _said(view: View, dense: str | None) -> dict[str, Any]:
    kinds = (_KEPT if passed == view.stages else _LATER if passed else _FIRST for passed in view.passed.flatten())
    return {
        "patches": "".join(kinds),
        "cosine": number(view.cosine, 3),
        "prediction": view.prediction or "",
        "changed": view.prediction != dense,
    }


def source(image: Image.Image) -> str:
    """A picture as the address of itself."""
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=80, subsampling=0, optimize=True)
    return f"data:image/jpeg;base64,{base64.b64encode(buffer.getvalue()).decode('ascii')}"
