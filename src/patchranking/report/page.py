"""One self-contained HTML page from the results of an evaluation."""

from __future__ import annotations

import base64
import io
from collections.abc import Callable, Mapping, Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any

from PIL import Image

from patchranking.evaluation.examples import Example
from patchranking.extras import import_extra
from patchranking.files import replacing
from patchranking.pruning.select import kept_count
from patchranking.report.figures import MEASURES, accuracy_against_cost
from patchranking.report.pictures import heat_map, photo, shown_methods
from patchranking.report.styles import order, style

__all__ = ["write_report"]

_DASH = "–"
_PERCENT = "\u00a0%"
_SIDE = 224
_RATE = 0.6
"""The summary speaks of the keep rate nearest to this one."""

Row = Mapping[str, Any]


def write_report(results: dict[str, Any], examples: Sequence[Example], out: Path, title: str) -> Path:
    """Writes the report: summary, charts, examples, tables and environment, all in one file.

    Args:
        results: The content of ``results.json``: ``{"environment": {...}, "rows": [...]}``.
        examples: Images with the patches that each method keeps; may be empty.
        out: The HTML file to write; it appears complete or not at all.
        title: Heading of the page.

    Returns:
        ``out``.

    Raises:
        MissingExtraError: If jinja2 or matplotlib is not installed.
    """
    jinja = import_extra("jinja2", "The report", "report")
    engine = jinja.Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True, undefined=jinja.StrictUndefined)
    template = engine.from_string(files("patchranking.report").joinpath("page.html.j2").read_text("utf-8"))
    rows = results["rows"]
    environment = dict(results["environment"])
    command = environment.pop("command", None)
    html = template.render(
        title=title,
        groups=[_group(rows, key) for key in dict.fromkeys(map(_key, rows))],
        examples=[_card(item, shown_methods(examples)) for item in examples],
        rate=round(100 * _RATE),
        any_oracle=any(row["oracle"] for row in rows),
        environment={name.replace("_", " "): _plain(value) for name, value in environment.items()},
        command=command,
    )
    out.parent.mkdir(parents=True, exist_ok=True)
    with replacing(out) as partial:
        partial.write_text(html, encoding="utf-8")
    return out


def _key(row: Row) -> tuple[str, str, str | None]:
    return row["model"], row["dataset"], row.get("split")


def _group(rows: Sequence[Row], key: tuple[str, str, str | None]) -> dict[str, Any]:
    """Everything the page says about one model on one split of one data set."""
    model, dataset, split = key
    own = [row for row in rows if _key(row) == key]
    own.sort(key=lambda row: (-(row.get("keep_rate") or 0), row["oracle"], order(row["method"]), row.get("seed") or 0))
    seeds, models = {row.get("seed") for row in own}, {row["model"] for row in rows if _key(row)[1:] == key[1:]}
    lines = [_line(row, len(seeds) > 1) for row in own]
    for previous, line in zip([None, *lines], lines, strict=False):
        line["first"] = previous is None or previous["keep"] != line["keep"]
    return {
        "name": " · ".join(filter(None, (dataset, split, model if len(models) > 1 else None))),
        "model": model,
        "images": _number(max((row.get("n_images") or 0 for row in own), default=None), 0),
        "summary": _summary(own),
        "charts": _charts(own, dataset),
        "lines": lines,
        "objects": any(row.get("object_patches_kept") is not None for row in own),
        "recall": any(row.get("recall_at_1") is not None for row in own),
        "index": any(row.get("index_overlap_at_10") is not None for row in own),
        "same": _same_images(own),
    }


def _charts(rows: Sequence[Row], dataset: str) -> list[str]:
    """Every measure there is against multiply-accumulates, the first one against measured time too."""
    known = [name for name in MEASURES if any(row.get(name) is not None for row in rows)]
    drawn = [accuracy_against_cost(rows, dataset, name) for name in known]
    drawn[1:1] = [accuracy_against_cost(rows, dataset, name, "milliseconds") for name in known[:1]]
    return [svg for svg in drawn if svg]


def _line(row: Row, with_seed: bool) -> dict[str, Any]:
    """One line of the table; every value is text."""
    tuned = row.get("tuned") or "none"
    tags = [f"{tuned} tokens"] * (tuned != "none") + [f"seed {row.get('seed')}"] * with_seed
    top1, speed = row.get("top1"), row.get("images_per_second")
    return {
        "method": row["method"],
        "tags": tags,
        "colour": style(row["method"]).colour,
        "oracle": row["oracle"],
        "keep": _percent(row.get("keep_rate")),
        "patches": _number(row.get("kept_patches"), 0),
        "top1": _number(top1, 1),
        "change": _map(lambda a, b: _signed(a - b), top1, row.get("top1_dense")),
        "cosine": _number(row.get("feature_cosine"), 3),
        "objects": _map(lambda a, b: f"{a * b:.1f}{_PERCENT}", row.get("object_patches_kept"), 100),
        "recall": _number(row.get("recall_at_1"), 1),
        "index": _map(lambda a, b: f"{a * b:.1f}{_PERCENT}", row.get("index_overlap_at_10"), 100),
        "gmacs": _number(row.get("gmacs"), 3),
        "speed": _number(speed, 0 if (speed or 0) >= 100 else 1),
        "ratio": _map(lambda a, b: f"{a / b:.2f}×", speed, row.get("images_per_second_dense") or None),
    }


def _summary(rows: Sequence[Row]) -> dict[str, Any] | None:
    """The method to deploy at the keep rate nearest to 60 %, in words and as key figures; seeds are averaged."""
    pruned = [row for row in rows if row["method"] != "dense" and row.get("keep_rate") is not None]
    deployable = [row for row in pruned if not row["oracle"]]
    if not deployable:
        return None
    chosen = min(deployable, key=lambda row: (row["method"] != "patchranking", abs(row["keep_rate"] - _RATE)))
    method, rate = chosen["method"], _percent(chosen["keep_rate"])
    level = [row for row in deployable if row["keep_rate"] == chosen["keep_rate"]]
    own = [row for row in level if all(row.get(name) == chosen.get(name) for name in ("method", "tuned", "schedule"))]
    top1, dense, cosine = _mean(own, "top1"), _mean(own, "top1_dense"), _mean(own, "feature_cosine")
    cost, full = _mean(own, "gmacs"), _mean(own, "gmacs_dense")
    speed, stock = _mean(own, "images_per_second"), _mean(own, "images_per_second_dense")
    does, tiles = [], []
    if cost is not None and full:
        saved = _signed(100 * (cost / full - 1), 0) + _PERCENT
        does.append(f"costs {cost:.3f} instead of {full:.3f} GMACs ({saved})")
        tiles.append((saved, "compute (GMACs)"))
    if top1 is not None and dense is not None:
        does.append(f"changes top-1 from {dense:.1f} to {top1:.1f}{_PERCENT}")
        tiles.append((_signed(top1 - dense), "points of top-1"))
    elif cosine is not None:
        does.append(f"keeps a cosine of {cosine:.3f} to the dense features")
    if speed is not None and stock:
        does.append(f"runs at {speed / stock:.2f}× the speed")
        tiles.append((f"{speed / stock:.2f}×", "images per second"))
    if cosine is not None:
        tiles.append((f"{cosine:.3f}", "cosine to dense features"))
    text = f"At {rate} of the patches kept, {method} {_listed(does)}." if does else ""
    names = sorted({row["method"] for row in level} - {method}, key=order)
    reached = [(name, _mean([row for row in level if row["method"] == name], "top1")) for name in names]
    others = [f"{name} reaches {value:.1f}{_PERCENT}" for name, value in reached if value is not None]
    if others and top1 is not None:
        text += f" At the same rate {_listed(others)}."
    return {"text": text, "tiles": tiles, "heading": f"{method} at {rate} of the patches"}


def _mean(rows: Sequence[Row], name: str) -> float | None:
    values = [row[name] for row in rows if row.get(name) is not None]
    return sum(values) / len(values) if values else None


def _same_images(rows: Sequence[Row]) -> dict[str, Any] | None:
    """An oracle and the other methods on exactly the images that the oracle was run on."""
    compared = [row for row in rows if row.get("same_images")]
    if not compared:
        return None
    names = sorted({name for row in compared for name in row["same_images"]}, key=order)
    return {
        "methods": [(name, style(name).colour) for name in names],
        "lines": [
            {
                "oracle": row["method"],
                "keep": _percent(row.get("keep_rate")),
                "images": _number(row.get("n_images"), 0),
                "cells": [_pair(row), *(_pair(row["same_images"].get(name, {})) for name in names)],
            }
            for row in compared
        ],
    }


def _pair(row: Row) -> tuple[str, str]:
    return _number(row.get("top1"), 1), _number(row.get("feature_cosine"), 3)


def _card(item: Example, methods: Sequence[str]) -> dict[str, Any]:
    pictures = [_picture(photo(item.image, _SIDE), "image", "", item.caption)]
    if item.importance is not None:
        drawn = heat_map(item.image, item.importance, _SIDE)
        pictures.append(_picture(drawn, "golden", "ranking", f"Golden ranking of the patches: {item.caption}"))
    masks = []
    for method in methods:
        if method in item.places:
            places = item.places[method]
            rows, columns = places.shape
            patches = [
                {"x": number % columns, "y": number // columns, "place": place}
                for number, place in enumerate(places.flatten().tolist())
            ]
            kept = kept_count(_RATE, len(patches))
            masks.append({"name": method, "rows": rows, "columns": columns, "patches": patches, "kept": kept})
    return {"caption": item.caption, "pictures": pictures, "masks": masks}


def _picture(image: Image.Image, name: str, note: str, alt: str) -> dict[str, str]:
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=86, subsampling=0, optimize=True)
    data = base64.b64encode(buffer.getvalue()).decode("ascii")
    return {"source": f"data:image/jpeg;base64,{data}", "name": name, "note": note, "alt": alt}


def _map(function: Callable[[float, float], str], first: float | None, second: float | None) -> str:
    return _DASH if first is None or second is None else function(first, second)


def _number(value: float | None, digits: int) -> str:
    return _DASH if value is None else f"{value:,.{digits}f}"


def _percent(share: float | None) -> str:
    return _DASH if share is None else f"{100 * share:.3g}{_PERCENT}"


def _signed(value: float, digits: int = 1) -> str:
    text = f"{value:+.{digits}f}"
    return text[1:] if float(text) == 0 else text.replace("-", "−")


def _listed(parts: Sequence[str]) -> str:
    return parts[0] if len(parts) == 1 else f"{', '.join(parts[:-1])} and {parts[-1]}"


def _plain(value: Any) -> str:
    if value is None or value == "":
        return _DASH
    return str(value)
