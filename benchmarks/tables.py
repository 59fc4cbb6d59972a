"""Writes the tables of README.md and docs/ from benchmarks/results: ``python benchmarks/tables.py``.

A table stands between ``<!-- table NAME -->`` and ``<!-- end -->``; NAME is a file in benchmarks/results.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).parents[1]
PAGES = (ROOT / "README.md", ROOT / "docs/how-it-works.md")
METHODS = ("patchranking", "tome", "evit", "cls-attention", "random", "golden")


def table(results: dict[str, Any]) -> str:
    """The tables of one file of results."""
    return _searches(results) if "cost_by_patches" in results else _methods(results["rows"])


def _searches(results: dict[str, Any]) -> str:
    """Feature error of every search, and what it costs by the number of patches."""
    rows = results["rows"]
    shown = (0.8, 0.6, 0.5, 0.3)
    first = rows[0]
    lines = [
        f"**{first['dataset']}/{first['split']}**, {first['n_images']} images, "
        f"dense top-1 {first['top1_dense']:.1f} %; "
        "1 - cosine as a multiple of leave-out's (standard deviation over seeds of the probes):",
        "",
        "| search | " + " | ".join(f"{rate:.0%} kept" for rate in shown) + " | top-1 at 50% | GMACs | seconds |",
        "|---|" + "---|" * (len(shown) + 3),
    ]
    for name in dict.fromkeys(row["search"] for row in rows):
        mine = [row for row in rows if row["search"] == name]
        cells = []
        for rate in shown:
            ratios = np.array([row["feature_error_ratio"] for row in mine if row["keep_rate"] == rate])
            cells.append(f"{ratios.mean():.2f}" + (f" ({ratios.std():.2f})" if len(ratios) > 1 else ""))
        half = [row for row in mine if row["keep_rate"] == 0.5]
        top1, seconds, relative = (np.mean([r[key] for r in half]) for key in ("top1", "seconds", "seconds_ratio"))
        lines.append(
            f"| {name} | {' | '.join(cells)} | {top1:.1f} | {half[0]['gmacs']:.0f} ({half[0]['gmacs_ratio']:.3f}x) "
            f"| {seconds:.1f} ({relative:.2f}x) |"
        )
    lines += ["", "| dense forward passes an image, ViT-B/16 | 196 patches | 576 patches |", "|---|---|---|"]
    cost = {(row["search"], row["patches"]): row for row in results["cost_by_patches"]}
    for name in dict.fromkeys(search for search, _ in cost):
        cells = [
            f"{row['dense_forwards']:,.1f} ({row['gmacs_ratio']:.3f}x)" for row in (cost[name, 196], cost[name, 576])
        ]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join(lines)


def _methods(rows: list[dict[str, Any]]) -> str:
    """Top-1 and feature cosine of every method at every keep rate, one table a data set."""
    return "\n\n".join(_one(name, rows) for name in dict.fromkeys((r["dataset"], r["split"]) for r in rows))


def _one(name: tuple[str, str], rows: list[dict[str, Any]]) -> str:
    mine = {(r["method"], r["keep_rate"]): r for r in rows if (r["dataset"], r["split"]) == name}
    rates = sorted({rate for _, rate in mine if rate < 1}, reverse=True)
    dense, golden = mine["dense", 1.0], mine["golden", rates[0]]
    lines = [
        f"**{'/'.join(name)}**, {dense['n_images']} images, dense top-1 {dense['top1']:.1f} %, "
        f"{dense['gmacs']:.2f} GMACs: top-1 % (feature cosine)",
        "",
        "| patches kept | " + " | ".join(f"{rate:.0%}" for rate in rates) + " |",
        "|---|" + "---|" * len(rates),
    ]
    for method in filter(lambda name: (name, rates[0]) in mine, METHODS):
        cells = [f"{r['top1']:.1f} ({r['feature_cosine']:.3f})" for r in (mine[method, rate] for rate in rates)]
        label = f"{method}, oracle on {golden['n_images']} images" if method == "golden" else method
        lines.append(f"| {label} | " + " | ".join(cells) + " |")
    ours = [mine["patchranking", rate] for rate in rates]
    saved = [f"-{1 - r['gmacs'] / r['gmacs_dense']:.0%}" for r in ours]
    speed = [f"{r['images_per_second'] / r['images_per_second_dense']:.2f}x" for r in ours]
    lines += [
        f"| GMACs, predictor included | {' | '.join(saved)} |",
        f"| images/s against dense | {' | '.join(speed)} |",
    ]
    return "\n".join(lines)


def fill(text: str) -> str:
    """Replaces every marked table of a page."""

    def replace(match: re.Match[str]) -> str:
        results = json.loads((ROOT / "benchmarks/results" / f"{match[1]}.json").read_text())
        return f"<!-- table {match[1]} -->\n{table(results)}\n<!-- end -->"

    return re.sub(r"<!-- table (\S+) -->.*?<!-- end -->", replace, text, flags=re.DOTALL)


if __name__ == "__main__":
    for page in PAGES:
        page.write_text(fill(page.read_text()))
