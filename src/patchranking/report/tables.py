"""The tables of the page as text, and all rows as CSV."""

from __future__ import annotations

import base64
import csv
import io
import json
from collections.abc import Mapping, Sequence
from typing import Any

from patchranking.report.styles import order, style
from patchranking.report.text import PERCENT, both, number, percent, signed, span

__all__ = ["as_csv", "csv_link", "lines", "oracle_table"]

Row = Mapping[str, Any]


def lines(rows: Sequence[Row]) -> list[dict[str, Any]]:
    """The lines of the large table, from all patches to few; every value is text."""
    ordered = sorted(
        rows, key=lambda row: (-(row.get("keep_rate") or 0), row["oracle"], order(row["method"]), row.get("seed") or 0)
    )
    seeds = {row.get("seed") for row in rows}
    found = [_line(row, len(seeds) > 1) for row in ordered]
    for previous, line in zip([None, *found], found, strict=False):
        line["first"] = previous is None or previous["keep"] != line["keep"]
    return found


def _line(row: Row, with_seed: bool) -> dict[str, Any]:
    tuned = row.get("tuned") or "none"
    speed = row.get("images_per_second")
    return {
        "method": row["method"],
        "tags": [f"{tuned} tokens"] * (tuned != "none") + [f"seed {row.get('seed')}"] * with_seed,
        "colour": style(row["method"]).colour,
        "oracle": row["oracle"],
        "keep": percent(row.get("keep_rate")),
        "patches": number(row.get("kept_patches"), 0),
        "top1": number(row.get("top1"), 1),
        "change": _change(row),
        "interval": "" if row["method"] == "dense" and tuned == "none" else span(row.get("top1_change_interval")),
        "cosine": number(row.get("feature_cosine"), 3),
        "objects": both(lambda a, b: f"{a * b:.1f}{PERCENT}", row.get("object_patches_kept"), 100),
        "recall": number(row.get("recall_at_1"), 1),
        "text_recall": number(row.get("text_recall_at_1"), 1),
        "index": both(lambda a, b: f"{a * b:.1f}{PERCENT}", row.get("index_overlap_at_10"), 100),
        "share": both(lambda a, b: percent(a / b), row.get("gmacs"), row.get("gmacs_dense") or None),
        "gmacs": number(row.get("gmacs"), 3),
        "speed": number(speed, 0 if (speed or 0) >= 100 else 1),
        "ratio": both(lambda a, b: f"{a / b:.2f}×", speed, row.get("images_per_second_dense") or None),
    }


def _change(row: Row) -> str:
    return both(lambda a, b: signed(a - b), row.get("top1"), row.get("top1_dense"))


def oracle_table(rows: Sequence[Row]) -> dict[str, Any] | None:
    """Oracles that ran on few images, and the dense model and other methods on exactly these.

    Args:
        rows: The oracles' rows.

    Returns:
        The other ``methods`` with their colours, and ``lines``; None without rows.
    """
    if not rows:
        return None
    names = sorted({name for row in rows for name in row.get("same_images") or {}} - {"dense"}, key=order)
    found = []
    for row in sorted(rows, key=lambda row: (order(row["method"]), -(row.get("keep_rate") or 0))):
        same = row.get("same_images") or {}
        dense = same.get("dense", {})
        found.append(
            {
                "oracle": row["method"],
                "keep": percent(row.get("keep_rate")),
                "images": number(row.get("n_images"), 0),
                "change": both(lambda a, b: signed(a - b), row.get("top1"), dense.get("top1")),
                "interval": span(row.get("top1_change_interval")),
                "cells": [_pair(row), _pair(dense), *(_pair(same.get(name, {})) for name in names)],
            }
        )
    return {"methods": [(name, style(name).colour) for name in names], "lines": found}


def _pair(row: Row) -> tuple[str, str]:
    return number(row.get("top1"), 1), number(row.get("feature_cosine"), 3)


def as_csv(rows: Sequence[Row]) -> str:
    """All rows as comma-separated values; an interval becomes two columns, and what is nested JSON.

    Text that a spreadsheet would take for a formula is told apart by an apostrophe.
    """
    flat = [_flat(row) for row in rows]
    buffer = io.StringIO()
    writer = csv.DictWriter(buffer, list(dict.fromkeys(name for row in flat for name in row)), lineterminator="\r\n")
    writer.writeheader()
    writer.writerows(flat)
    return buffer.getvalue()


def _flat(row: Row) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, value in row.items():
        if name.endswith("_interval"):
            found[f"{name}_low"], found[f"{name}_high"] = value or (None, None)
        elif isinstance(value, Mapping):
            found[name] = json.dumps(value)
        else:
            found[name] = f"'{value}" if isinstance(value, str) and value.startswith(("=", "+", "-", "@")) else value
    return found


def csv_link(rows: Sequence[Row]) -> str:
    """The address of the rows as a CSV file, the file itself being in it."""
    data = base64.b64encode(as_csv(rows).encode("utf-8-sig")).decode("ascii")
    return f"data:text/csv;charset=utf-8;base64,{data}"
