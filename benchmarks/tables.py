"""Writes the tables of README.md from benchmarks/results: ``python benchmarks/tables.py``.

A table stands between ``<!-- table NAME -->`` and ``<!-- end -->``; NAME is a file in benchmarks/results.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
RATES = (0.9, 0.8, 0.7, 0.6, 0.5)
METHODS = ("patchranking", "cls-attention", "random", "golden")


def table(rows: list[dict[str, Any]]) -> str:
    """Top-1 and feature cosine of every method at every keep rate, one table a data set."""
    return "\n\n".join(_one(name, rows) for name in dict.fromkeys((r["dataset"], r["split"]) for r in rows))


def _one(name: tuple[str, str], rows: list[dict[str, Any]]) -> str:
    mine = {(r["method"], r["keep_rate"]): r for r in rows if (r["dataset"], r["split"]) == name}
    dense, golden = mine["dense", 1.0], mine["golden", RATES[0]]
    lines = [
        f"**{'/'.join(name)}**, {dense['n_images']} images, dense top-1 {dense['top1']:.1f} %, "
        f"{dense['gmacs']:.2f} GMACs: top-1 % (feature cosine)",
        "",
        "| patches kept | " + " | ".join(f"{rate:.0%}" for rate in RATES) + " |",
        "|---|" + "---|" * len(RATES),
    ]
    for method in METHODS:
        cells = [f"{r['top1']:.1f} ({r['feature_cosine']:.3f})" for r in (mine[method, rate] for rate in RATES)]
        label = f"{method}, oracle on {golden['n_images']} images" if method == "golden" else method
        lines.append(f"| {label} | " + " | ".join(cells) + " |")
    ours = [mine["patchranking", rate] for rate in RATES]
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
        return f"<!-- table {match[1]} -->\n{table(results['rows'])}\n<!-- end -->"

    return re.sub(r"<!-- table (\S+) -->.*?<!-- end -->", replace, text, flags=re.DOTALL)


if __name__ == "__main__":
    page = ROOT / "README.md"
    page.write_text(fill(page.read_text()))
