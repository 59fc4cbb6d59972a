"""Writes the tables and charts of README.md and docs/ from benchmarks/results.

    python benchmarks/tables.py

A table stands between ``<!-- table NAME -->`` and ``<!-- end -->``; NAME is a file in benchmarks/results. The
comparison has more: ``<!-- table NAME PART -->``, where PART is ``mean``, ``differences`` or ``speed``, and contrastive
pretraining has ``gradients``.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from statistics import fmean, pstdev
from typing import Any

import compared
import ladders
import pretrained
from compared import grid

ROOT = Path(__file__).parents[1]
PAGES = (
    ROOT / "README.md",
    *(
        ROOT / f"docs/{name}.md"
        for name in (
            "choosing",
            "evaluation",
            "exporting",
            "how-it-works",
            "models",
            "pretraining",
            "prototypes",
            "three-systems",
        )
    ),
)
CHARTS = (
    ("imagenette", "top1"),
    ("flowers", "top1"),
    ("flickr8k", "recall_at_1"),
    ("flickr8k", "index_overlap_at_10"),
)

Rows = list[dict[str, Any]]


def table(name: str, results: dict[str, Any], part: str | None = None) -> str:
    """The tables of one file of results, one for each data set; of a part of it where one is named."""
    if "differences" in results:
        return compared.table(results, part)
    if name.startswith("ladder"):
        return ladders.table(results)
    if name.startswith("mae_curriculum"):
        return pretrained.curriculum(results)
    if name.startswith("contrastive_budget"):
        return pretrained.gradients(results) if part else pretrained.contrastive(results)
    if name.startswith("systems-"):
        return pretrained.systems(results)
    one = {
        "golden_search": _searches,
        "few_shot": _few_shot,
        "throughput": _throughput,
        "coverage": _coverage,
        "fallback": _fallback,
        "prototypes": _prototypes,
        "tome_schedules": _tome_schedules,
    }[name.partition("-")[0]]
    parts = [one(rows) for rows in _groups(results["rows"], "dataset", "split").values()]
    if "cost_by_patches" in results:
        parts.append(_cost_by_patches(results["cost_by_patches"]))
    return "\n\n".join(parts)


def charts(results: dict[str, Any]) -> dict[Path, str]:
    """The charts of the comparison, as files of SVG text."""
    found = compared.charts(results, CHARTS)
    return {ROOT / f"docs/images/compare-{name}.svg": svg + "\n" for name, svg in found.items()}


def _groups(rows: Rows, *keys: str) -> dict[tuple[Any, ...], Rows]:
    """Rows by what they have under some keys, in order of appearance."""
    groups: dict[tuple[Any, ...], Rows] = {}
    for row in rows:
        groups.setdefault(tuple(row.get(key) for key in keys), []).append(row)
    return groups


def _at_rates(rows: Rows) -> dict[float, Rows]:
    """Rows of the pruned model by keep rate, the highest first."""
    pruned = {rate: own for (rate,), own in _groups(rows, "keep_rate").items() if rate < 1}
    return dict(sorted(pruned.items(), reverse=True))


def _values(rows: Rows, key: str) -> list[float]:
    return [row[key] for row in rows]


def _mean(rows: Rows, key: str) -> float:
    return fmean(_values(rows, key))


def _few_shot(rows: Rows) -> str:
    """Top-1 of every kind of tokens at every keep rate, mean and standard deviation over seeds."""
    rates, lines = sorted({row["keep_rate"] for row in rows}, reverse=True), []
    for (kind,), own in _groups(rows, "tuned").items():
        found = {rate: _values(at, "top1") for (rate,), at in _groups(own, "keep_rate").items()}
        cells = [
            f"{fmean(found[rate]):.1f}" + (f" ± {pstdev(found[rate]):.1f}" if len(found[rate]) > 1 else "")
            for rate in rates
        ]
        lines.append(["untuned" if kind == "none" else f"{kind} tokens", *cells])
    seeds, shots = len({row["seed"] for row in rows} - {None}), max(row["shots"] for row in rows)
    return (
        f"**{rows[0]['dataset']}**, {rows[0]['n_images']} images, {shots} shots per class, {seeds} seeds: top-1 % "
        "(standard deviation over seeds)\n\n"
    ) + grid(["", *("dense" if rate == 1 else f"{rate:.0%} kept" for rate in rates)], lines)


def _throughput(rows: Rows) -> str:
    """Speed-up over the dense model, and what share of the ceiling that is."""
    shares, lines = list(dict.fromkeys(row["macs"] for row in rows if row["macs"])), []
    for (*names, batch), own in _groups(rows, "model", "backend", "precision", "pruner", "batch").items():
        at = {row["macs"]: row for row in own}
        cells = [f"{at[share]['ratio_to_stock']:.2f}x ({at[share]['realised_share']:.2f})" for share in shares]
        lines.append([", ".join(names), str(batch), f"{at[None]['p50_ms']:.0f}", *cells])
    heads = ["", "images per batch", "dense, ms per batch", *(f"{share:.0%} of the dense MACs" for share in shares)]
    return grid(heads, lines)


def _searches(rows: Rows) -> str:
    """Feature error of every search, and what it costs."""
    shown, lines, first = (0.8, 0.6, 0.5, 0.3), [], rows[0]
    for (name,), own in _groups(rows, "search").items():
        at, cells = _at_rates(own), []
        for rate in shown:
            ratios = _values(at[rate], "feature_error_ratio")
            cells.append(f"{fmean(ratios):.2f}" + (f" ({pstdev(ratios):.2f})" if len(ratios) > 1 else ""))
        top1, seconds, relative = (_mean(at[0.5], key) for key in ("top1", "seconds", "seconds_ratio"))
        cost = f"{own[0]['gmacs']:.0f} ({own[0]['gmacs_ratio']:.3f}x)"
        lines.append([name, *cells, f"{top1:.1f}", cost, f"{seconds:.1f} ({relative:.2f}x)"])
    return (
        f"**{first['dataset']}/{first['split']}**, {first['n_images']} images, dense top-1 {first['top1_dense']:.1f} "
        "%; 1 - cosine as a multiple of leave-out's (standard deviation over seeds of the probes):\n\n"
    ) + grid(["search", *(f"{rate:.0%} kept" for rate in shown), "top-1 at 50%", "GMACs", "seconds"], lines)


def _cost_by_patches(rows: Rows) -> str:
    """What a search costs by the number of patches."""
    lines = []
    for (name,), own in _groups(rows, "search").items():
        lines.append([name, *(f"{row['dense_forwards']:,.1f} ({row['gmacs_ratio']:.3f}x)" for row in own)])
    patches = (f"{count} patches" for (count,) in _groups(rows, "patches"))
    return grid(["dense forward passes per image, ViT-B/16", *patches], lines)


def _fallback(rows: Rows) -> str:
    """What the cosine gains over pruning all images less, at equal mean MACs."""
    again, lines = [share for share in dict.fromkeys(row["again"] for row in rows) if share], []
    for (macs, kind), own in _groups(rows, "macs", "kind").items():
        if kind != "pruned":
            at = {row["again"]: row for row in own}
            cells = [_gain(at[share]) for share in again]
            named = "oracle, largest true errors" if kind == "oracle" else kind
            lines.append([f"{macs:.0%}", named, f"{own[0]['rank_correlation']:.2f}", *cells])
    first = rows[0]
    return (
        f"**{first['dataset']}**, {first['n_images']} images, {first['fits']} fits: 1,000 times what the cosine gains "
        "over pruning all images less at the same mean MACs (95 % interval)\n\n"
    ) + grid(["MACs of the first run", "run again", "rank correlation", *(f"{s:.0%} again" for s in again)], lines)


def _gain(row: dict[str, Any]) -> str:
    value, low, high = (1000 * end for end in (row["feature_cosine_gain"], *row["feature_cosine_gain_interval"]))
    return f"{value:+.1f} ({low:+.1f} ... {high:+.1f})"


def _coverage(rows: Rows) -> str:
    """Families of models that work in every library, and those that are refused."""
    parts: list[str] = []
    refused: dict[tuple[str, str], dict[str, Any]] = {}
    for (library,), own in _groups(rows, "library").items():
        lines = []
        for (family,), some in _groups(own, "family").items():
            works = [row for row in some if row["supported"]]
            if works:
                lines.append([family, f"{len(works)} of {len(some)}", _passed(works), _holds(works)])
            refused |= {(library, row["image_tower"]): row for row in reversed(some) if not row["supported"]}
        parts.append(f"**{library}**\n\n" + grid(["", "works", "for example", "holds"], lines))
    lines = [[tower, library, row["sentence"]] for (library, tower), row in refused.items()]
    return "\n\n".join([*parts, "**refused**\n\n" + grid(["image tower", "library", "sentence"], lines)])


def _tome_schedules(rows: Rows) -> str:
    """Cosine of every schedule at every share."""
    shares, lines = list(dict.fromkeys(row["macs"] for row in rows)), []
    for (shape,), own in _groups(rows, "shape").items():
        at = {row["macs"]: row["feature_cosine"] for row in own}
        lines.append([shape, *(f"{at[share]:.4f}" for share in shares)])
    heads = ["blocks merge", *(f"{share:.0%} of the dense MACs" for share in shares)]
    return f"**{rows[0]['dataset']}**, {rows[0]['n_images']} images: cosine\n\n" + grid(heads, lines)


def _prototypes(rows: Rows) -> str:
    """What distances have to do with what is known of the scenes."""
    factors = ("clutter", "rotation", "smallness", "all")
    lines = [
        [f"`{row['features']}`", str(row["clusters"]), str(row["found"]), f"{row['purity']:.0%}"]
        + [f"{row[f'spearman_{factor}']:+.2f}" for factor in factors]
        for row in rows
    ]
    return grid(["features", "`--clusters`", "clusters", "purity", *factors], lines)


def _passed(rows: Rows) -> str:
    """How to pass a model of a family."""
    given = next((row["model"] for row in rows if row["model"]), None)
    return "from Python" if given is None else f"`{given}`"


def _holds(rows: Rows) -> str:
    """Which checks hold for how many of some models."""
    names = ("dense", "keep_1", "masked", "detached", "compiled", "exported")
    missing = {name: sum(not row[name] for row in rows) for name in names}
    return "all" if not any(missing.values()) else ", ".join(f"not {name}: {n}" for name, n in missing.items() if n)


def fill(text: str) -> str:
    """Replaces every marked table of a page."""

    def replace(match: re.Match[str]) -> str:
        results = json.loads((ROOT / "benchmarks/results" / f"{match[1]}.json").read_text())
        return (
            f"<!-- table {match[1]}{match[2]} -->\n{table(match[1], results, match[2].strip() or None)}\n<!-- end -->"
        )

    return re.sub(r"<!-- table (\S+)((?: \w+)?) -->.*?<!-- end -->", replace, text, flags=re.DOTALL)


def main() -> None:
    """Fills the pages and draws the charts."""
    for page in PAGES:
        page.write_text(fill(page.read_text()))
    for file, svg in charts(json.loads((ROOT / "benchmarks/results/compare-photos.json").read_text())).items():
        file.write_text(svg)
    ladder = json.loads((ROOT / "benchmarks/results/ladder-photos.json").read_text())
    (ROOT / "docs/images/ladder-photos.svg").write_text(ladders.figure(ladder) + "\n")


if __name__ == "__main__":
    main()
