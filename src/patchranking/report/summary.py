"""What the page says first: which keep rate to use, and the key figures of it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from patchranking.evaluation.recommend import spotlight
from patchranking.report.styles import order
from patchranking.report.text import PERCENT, listed, number, percent, signed, span

__all__ = ["Tile", "summary"]

Row = Mapping[str, Any]

_RECALLS = {"recall_at_1": "caption to picture", "text_recall_at_1": "picture to caption"}


class Tile(NamedTuple):
    """A key figure.

    Attributes:
        value: The figure.
        label: What it is.
        note: More about it, in small print; may be empty.
    """

    value: str
    label: str
    note: str = ""


def summary(rows: Sequence[Row]) -> dict[str, Any] | None:
    """The row to speak of, in words and as key figures; seeds are averaged.

    Args:
        rows: Rows about one model and one data set.

    Returns:
        ``text`` and ``tiles``; None where no method can be deployed.
    """
    chosen = spotlight(rows)
    if chosen is None:
        return None
    method, rate = chosen["method"], percent(chosen["keep_rate"])
    level = [
        row
        for row in rows
        if row["keep_rate"] == chosen["keep_rate"] and row["method"] != "dense" and not row["oracle"]
    ]
    own = [row for row in level if all(row.get(name) == chosen.get(name) for name in ("method", "tuned", "schedule"))]
    top1, dense, cosine = _mean(own, "top1"), _mean(own, "top1_dense"), _mean(own, "feature_cosine")
    cost, full = _mean(own, "gmacs"), _mean(own, "gmacs_dense")
    speed, stock = _mean(own, "images_per_second"), _mean(own, "images_per_second_dense")
    does, tiles = [], []
    if cost is not None and full:
        saved = signed(100 * (cost / full - 1), 0) + PERCENT
        does.append(f"costs {cost:.3f} instead of {full:.3f} GMACs ({saved})")
        tiles.append(Tile(saved, "compute (GMACs)", f"{cost:.3f} instead of {full:.3f}"))
    if top1 is not None and dense is not None:
        does.append(f"changes top-1 from {dense:.1f} to {top1:.1f}{PERCENT}")
        tiles.append(Tile(signed(top1 - dense), "points of top-1", _interval(own)))
    elif cosine is not None:
        does.append(f"keeps a cosine of {cosine:.3f} to the dense features")
    tiles += _recall_tiles(rows, own)
    if speed is not None and stock:
        does.append(f"runs at {speed / stock:.2f}× the speed")
        tiles.append(Tile(f"{speed / stock:.2f}×", "images per second", f"{_rate(speed)} instead of {_rate(stock)}"))
    if cosine is not None:
        tiles.append(Tile(f"{cosine:.3f}", "cosine to dense features"))
    text = f"At {rate} of the patches kept, {method} {listed(does)}." if does else ""
    names = sorted({row["method"] for row in level} - {method}, key=order)
    reached = [(name, _mean([row for row in level if row["method"] == name], "top1")) for name in names]
    others = [f"{name} reaches {value:.1f}{PERCENT}" for name, value in reached if value is not None]
    if others and top1 is not None:
        text += f" At the same rate {listed(others)}."
    return {"text": text, "tiles": tiles}


def _rate(speed: float) -> str:
    return number(speed, 0 if speed >= 100 else 1)


def _interval(own: Sequence[Row]) -> str:
    """The interval of the change in top-1; several seeds have none in common."""
    words = span(own[0].get("top1_change_interval")) if len(own) == 1 else ""
    return f"95{PERCENT} interval {words}" if words else ""


def _recall_tiles(rows: Sequence[Row], own: Sequence[Row]) -> list[Tile]:
    """What pruning changes in recall@1, each way that was measured."""
    stock = [row for row in rows if row["method"] == "dense" and (row.get("tuned") or "none") == "none"]
    tiles = []
    for name, way in _RECALLS.items():
        found, dense = _mean(own, name), _mean(stock, name)
        if found is not None and dense is not None:
            label = f"points of recall@1, {way}"
            tiles.append(Tile(signed(found - dense), label, f"{found:.1f} instead of {dense:.1f}{PERCENT}"))
    return tiles


def _mean(rows: Sequence[Row], name: str) -> float | None:
    values = [row[name] for row in rows if row.get(name) is not None]
    return sum(values) / len(values) if values else None
