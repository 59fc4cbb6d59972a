"""Charts of a pretraining as SVG text: learning curves, the schedule, and maps of the errors of gradients."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from patchranking.report.svg import CARD, INK, chart

__all__ = ["distinct_chart", "error_map", "learning_curve", "schedule_chart"]

Row = Mapping[str, Any]

_COLOURS = ("#c8460f", "#2f6fb0", "#3f8f4f", "#8a5cab", "#a0643c", "#3b9aa8")
_MEASURES = {"knn": "k-NN accuracy (%)", "linear_probe": "Linear probe (%)", "loss": "Loss, running mean"}
_COSTS = {"budget": "Passes (uncompressed forward and backward)", "seconds": "Seconds of training", "step": "Steps"}
_PARTS = {"error": "Cost-adjusted error", "bias2": "Squared bias", "variance": "Cost-adjusted variance"}


def learning_curve(rows: Sequence[Row], measure: str, against: str) -> str:
    """Draws a measure along a training, a line for each arm; several seeds become their mean and a band.

    Args:
        rows: Rows with ``arm``, ``seed`` and ``share`` besides the two measures.
        measure: ``knn``, ``linear_probe`` or ``loss``.
        against: ``budget``, ``seconds`` or ``step``.

    Returns:
        An SVG element as text, empty if no row has the measure.

    Raises:
        MissingExtraError: If matplotlib is not installed.
    """
    points: dict[str, dict[float, list[tuple[float, float]]]] = defaultdict(lambda: defaultdict(list))
    for row in rows:
        if row[measure] is not None and (measure != "loss" or row["step"]):
            points[row["arm"]][row["share"]].append((row[against], row[measure]))
    if not points:
        return ""

    def draw(_: Any, axes: Any) -> None:
        for colour, (arm, found) in zip(_COLOURS * len(points), points.items(), strict=False):
            cost = [np.mean([at for at, _ in seeds]) for _, seeds in sorted(found.items())]
            values = [[value for _, value in seeds] for _, seeds in sorted(found.items())]
            mean = [np.mean(seeds) for seeds in values]
            axes.plot(cost, mean, label=arm, color=colour, marker="o", markeredgecolor=CARD, linewidth=2)
            axes.fill_between(cost, [min(s) for s in values], [max(s) for s in values], color=colour, alpha=0.15)
        axes.set_xlabel(_COSTS[against])
        axes.xaxis.get_major_locator().set_params(nbins=6)
        if len(points) > 1:
            axes.legend(frameon=False)

    return chart(draw, _MEASURES[measure], f"{_MEASURES[measure]} against {_COSTS[against]}")


def schedule_chart(stages: Sequence[Row], costs: Mapping[str, float]) -> str:
    """Draws what one image costs over the share of the budget.

    Args:
        stages: ``start``, ``patch_size`` and ``drop`` of each.
        costs: Passes of one image in each of them, in the same order, by name.
    """
    starts = [100 * stage["start"] for stage in stages] + [100]
    heights = list(costs.values())

    def draw(_: Any, axes: Any) -> None:
        axes.stairs(heights, starts, color=_COLOURS[0], fill=True, alpha=0.25)
        axes.stairs(heights, starts, color=_COLOURS[0], linewidth=2)
        for stage, start, end, height in zip(stages, starts, starts[1:], heights, strict=False):
            text = f"{stage['patch_size']} px" + (f"\n−{stage['drop']:.0%}" if stage["drop"] else "")
            axes.text((start + end) / 2, height / 2, text, ha="center", va="center", color=INK, fontsize=9)
        axes.set_xlim(0, 100)
        axes.set_xlabel("Share of the budget (%)")

    return chart(draw, "Passes of one image", "What an image costs over the share of the budget")


def distinct_chart(shares: Sequence[float]) -> str:
    """Draws the expected share of distinct pictures over the epochs of a curriculum."""

    def draw(_: Any, axes: Any) -> None:
        axes.stairs([100 * share for share in shares], np.arange(len(shares) + 1), color=_COLOURS[0], linewidth=2)
        axes.set_ylim(0, 70)
        axes.set_xlabel("Epoch, of as many draws as there are pictures")

    return chart(draw, "Distinct pictures an epoch (%)", "Expected share of distinct pictures in every epoch")


def error_map(rows: Sequence[Row], part: str) -> str:
    """Draws a map of patch sizes against dropped shares at one stage, as in the paper's figures 3 and 4.

    Args:
        rows: Those of one stage.
        part: ``error``, ``bias2`` or ``variance``, which is multiplied by the cost.
    """
    sizes = sorted({row["patch_size"] for row in rows})
    drops = sorted({row["drop"] for row in rows})
    found = {(row["drop"], row["patch_size"]): row for row in rows}

    def value(row: Row) -> float:
        return float(row["variance"] * row["cost"] if part == "variance" else row[part])

    table = np.array([[value(found[d, p]) if (d, p) in found else np.nan for p in sizes] for d in drops])
    best = min(rows, key=lambda row: row["error"])

    def draw(_: Any, axes: Any) -> None:
        shown = np.log10(np.maximum(table, 1e-3))
        axes.pcolormesh(shown, cmap="YlOrBr", alpha=0.85, edgecolor="none")
        middle = np.nanmean([np.nanmin(shown), np.nanmax(shown)])
        for (y, x), number in np.ndenumerate(table):
            chosen = (drops[y], sizes[x]) == (best["drop"], best["patch_size"])
            dark = shown[y, x] > middle
            if not np.isnan(number):
                text = f"{number:.2g}" + (" ★" if chosen and part == "error" else "")
                axes.text(
                    x + 0.5, y + 0.5, text, ha="center", va="center", fontsize=9, color="#ffffff" if dark else "#1b1f2a"
                )
        axes.set_xticks(np.arange(len(sizes)) + 0.5, [str(size) for size in sizes])
        axes.set_yticks(np.arange(len(drops)) + 0.5, [f"{drop:.0%}" for drop in drops])
        axes.set_xlabel("Patch size (pixels)")
        axes.set_ylabel("Patches dropped")
        axes.grid(visible=False)

    title = f"{_PARTS[part]} at {rows[0]['share']:.0%}"
    return chart(draw, title, f"{title} of the budget, by patch size and share dropped")
