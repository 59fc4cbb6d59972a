"""Writes the tables and charts of README.md and docs/ from benchmarks/results: ``python benchmarks/tables.py``.

A table stands between ``<!-- table NAME -->`` and ``<!-- end -->``; NAME is a file in benchmarks/results.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np

from patchranking.report.figures import accuracy_against_cost

ROOT = Path(__file__).parents[1]
PAGES = (ROOT / "README.md", ROOT / "docs/how-it-works.md", ROOT / "docs/evaluation.md")
CHARTS = (
    ("imagenette", "top1"),
    ("flowers", "top1"),
    ("flickr8k", "recall_at_1"),
    ("flickr8k", "index_overlap_at_10"),
)
METHODS = (
    "patchranking",
    "tome",
    "evit",
    "cls-attention",
    "low-res",
    "centre-crop",
    "random",
    "a-vit",
    "golden",
)


def table(name: str, results: dict[str, Any]) -> str:
    """The tables of one file of results."""
    kinds = {
        "golden_search": _searches,
        "predictors": _predictors,
        "few_shot": _few_shot,
        "schedules": _schedules,
        "throughput": _throughput,
        "compare": _comparison,
    }
    return kinds.get(name.partition("-")[0], _methods)(results)


def charts(rows: list[dict[str, Any]]) -> dict[Path, str]:
    """The charts of the comparison, as files of SVG text."""
    return {
        ROOT / f"docs/images/compare-{dataset}-{measure}.svg": accuracy_against_cost(rows, dataset, measure) + "\n"
        for dataset, measure in CHARTS
    }


def _mean(rows: list[dict[str, Any]], key: str) -> float:
    return fmean(row[key] for row in rows if row.get(key) is not None)


def _grid(heads: list[str], lines: list[list[str]]) -> str:
    rows = [f"| {' | '.join(heads)} |", "|---|" + "---|" * (len(heads) - 1)]
    return "\n".join(rows + [f"| {' | '.join(line)} |" for line in lines])


def _predictors(results: dict[str, Any]) -> str:
    """Top-1 and feature error of every predictor, means over seeds."""
    rows, rates = results["rows"], (0.6, 0.5, 0.4)
    parts = []
    for dataset in dict.fromkeys(row["dataset"] for row in rows):
        mine = [row for row in rows if row["dataset"] == dataset]
        lines = []
        for kind in dict.fromkeys((row["network"], row["objective"], row["n_train"]) for row in mine):
            own = [row for row in mine if (row["network"], row["objective"], row["n_train"]) == kind]
            at = {rate: [row for row in own if row["keep_rate"] == rate] for rate in rates}
            cells = [f"{_mean(at[r], 'top1'):.1f} ({1 - _mean(at[r], 'feature_cosine'):.3f})" for r in rates]
            share = own[0]["macs_share"]
            lines.append(
                [
                    kind[0],
                    kind[1] or "–",
                    str(kind[2] or "–"),
                    *cells,
                    f"{_mean(at[0.5], 'matching_rate'):.2f}",
                    "–" if share is None else f"{share:.2%}",
                    str(len({row["seed"] for row in own})),
                ]
            )
        images, dense = mine[0]["n_images"], mine[0]["top1_dense"]
        heads = ["predictor", "objective", "images", *(f"{rate:.0%} kept" for rate in rates)]
        parts.append(
            f"**{dataset}**, {images} images, dense top-1 {dense:.1f} %, fitted to {_fitted(mine)}: top-1 % "
            "(1 - cosine), matching rate at 50 % (chance 0.5), share of the encoder's multiply-accumulates\n\n"
            + _grid([*heads, "matching", "share", "seeds"], lines)
        )
    return "\n\n".join(parts)


def _fitted(rows: list[dict[str, Any]]) -> str:
    return next(row["fit_on"] for row in rows if row["fit_on"])


def _few_shot(results: dict[str, Any]) -> str:
    """Top-1 of every kind of tokens at every keep rate, mean and standard deviation over seeds."""
    rows, parts = results["rows"], []
    for dataset in dict.fromkeys(row["dataset"] for row in rows):
        mine = [row for row in rows if row["dataset"] == dataset]
        rates = sorted({row["keep_rate"] for row in mine}, reverse=True)
        lines = []
        for kind in dict.fromkeys(row["tuned"] for row in mine):
            cells = []
            for rate in rates:
                found = [row["top1"] for row in mine if (row["tuned"], row["keep_rate"]) == (kind, rate)]
                cells.append(f"{np.mean(found):.1f}" + (f" ± {np.std(found):.1f}" if len(found) > 1 else ""))
            lines.append([{"none": "untuned"}.get(kind, f"{kind} tokens"), *cells])
        seeds = len({row["seed"] for row in mine} - {None})
        shots, images = max(row["shots"] for row in mine), mine[0]["n_images"]
        parts.append(
            f"**{dataset}**, {images} images, {shots} shots a class, {seeds} seeds: top-1 % "
            "(standard deviation over seeds)\n\n"
            + _grid(["", *("dense" if rate == 1 else f"{rate:.0%} kept" for rate in rates)], lines)
        )
    return "\n\n".join(parts)


def _schedules(results: dict[str, Any]) -> str:
    """Top-1 and feature error of every shape of schedule, means over seeds."""
    rows, parts = results["rows"], []
    rates = sorted({row["keep_rate"] for row in rows}, reverse=True)
    for dataset in dict.fromkeys(row["dataset"] for row in rows):
        mine = [row for row in rows if row["dataset"] == dataset]
        lines = []
        for kind, early in dict.fromkeys((row["schedule"], row["early"]) for row in mine):
            cells = []
            for rate in rates:
                own = [row for row in mine if (row["schedule"], row["early"], row["keep_rate"]) == (kind, early, rate)]
                cells.append(f"{_mean(own, 'top1'):.1f} ({1 - _mean(own, 'feature_cosine'):.4f})")
            lines.append([kind, "–" if early is None else f"{early:.0%}", *cells])
        seeds = len({row["seed"] for row in mine})
        first = mine[0]
        parts.append(
            f"**{dataset}**, {first['n_images']} images, dense top-1 {first['top1_dense']:.1f} %, {seeds} "
            f"seed{'s' * (seeds > 1)}: top-1 % (1 - cosine), in a column at equal multiply-accumulates\n\n"
            + _grid(["schedule", "gone at the first stage", *(f"as {rate:.0%} at once" for rate in rates)], lines)
        )
    return "\n\n".join(parts)


def _throughput(results: dict[str, Any]) -> str:
    """Speed-up over the dense model, and what share of the ceiling that is."""
    rows = results["rows"]
    rates = sorted({row["keep_rate"] for row in rows if row["keep_rate"] < 1}, reverse=True)
    lines = []
    for key in dict.fromkeys((row["model"], row["backend"], row["precision"], row["batch"]) for row in rows):
        own = {
            row["keep_rate"]: row
            for row in rows
            if (row["model"], row["backend"], row["precision"], row["batch"]) == key
        }
        cells = [f"{own[rate]['ratio_to_stock']:.2f}x ({own[rate]['realised_share']:.2f})" for rate in rates]
        dense = own[1.0]
        lines.append([f"{key[0]}, {key[1]}, {key[2]}", str(key[3]), f"{dense['p50_ms']:.0f}", *cells])
    return _grid(["", "batch", "dense, ms a batch", *(f"{rate:.0%} kept" for rate in rates)], lines)


def _comparison(results: dict[str, Any]) -> str:
    """One table a data set: accuracy or recall, feature cosine and agreement with a dense index."""
    rows, parts = results["rows"], []
    for dataset in dict.fromkeys((row["dataset"], row["split"]) for row in rows):
        mine = [row for row in rows if (row["dataset"], row["split"]) == dataset]
        measure = "top1" if mine[0]["top1"] is not None else "recall_at_1"
        rates = sorted({row["keep_rate"] for row in mine if row["keep_rate"] < 1}, reverse=True)
        dense = next(row for row in mine if row["method"] == "dense")
        lines = []
        for method in METHODS:
            own = {rate: [r for r in mine if r["method"] == method and r["keep_rate"] == rate] for rate in rates}
            if not own[rates[0]]:
                continue
            cells = [f"{_mean(own[r], measure):.1f} / {100 * _mean(own[r], 'index_overlap_at_10'):.0f}" for r in rates]
            half = own[0.5]
            low, high = half[0]["top1_change_interval"] or (None, None)
            change = "–" if low is None else f"{low:+.1f} ... {high:+.1f}"
            lines.append([method, *cells, f"{_mean(half, 'feature_cosine'):.3f}", change])
        words = {"top1": "top-1", "recall_at_1": "recall@1 of the picture of a caption"}[measure]
        parts.append(
            f"**{'/'.join(dataset)}**, {dense['n_images']} images, dense {words} {dense[measure]:.1f} %: {words} in % "
            "/ share of the 10 nearest neighbours in a dense index that stay, in %\n\n"
            + _grid(
                ["", *(f"{rate:.0%}" for rate in rates), "cosine at 50%", "change of top-1 at 50%, 95 % interval"],
                lines,
            )
        )
    return "\n\n".join(parts)


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


def _methods(results: dict[str, Any]) -> str:
    """Top-1 and feature cosine of every method at every keep rate, one table a data set."""
    rows = results["rows"]
    return "\n\n".join(_one(name, rows) for name in dict.fromkeys((r["dataset"], r["split"]) for r in rows))


def _one(name: tuple[str, str], rows: list[dict[str, Any]]) -> str:
    mine = {(r["method"], r["keep_rate"]): r for r in rows if (r["dataset"], r["split"]) == name}
    rates = sorted({rate for _, rate in mine if rate < 1}, reverse=True)
    dense, golden = mine["dense", 1.0], mine["golden", rates[0]]
    lines = [
        f"**{'/'.join(name)}**, {dense['n_images']} images, dense top-1 {dense['top1']:.1f} %, "
        f"{dense['gmacs']:.2f} GMACs: top-1 % (feature cosine)",
        "",
        "| patches left | " + " | ".join(f"{rate:.0%}" for rate in rates) + " |",
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
        return f"<!-- table {match[1]} -->\n{table(match[1], results)}\n<!-- end -->"

    return re.sub(r"<!-- table (\S+) -->.*?<!-- end -->", replace, text, flags=re.DOTALL)


if __name__ == "__main__":
    for page in PAGES:
        page.write_text(fill(page.read_text()))
    for file, svg in charts(json.loads((ROOT / "benchmarks/results/compare-photos.json").read_text())["rows"]).items():
        file.write_text(svg)
