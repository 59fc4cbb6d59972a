"""Charts of accuracy against cost as SVG text."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from patchranking.evaluation.rows import comparable
from patchranking.report.styles import order, style
from patchranking.report.svg import CARD, INK, LINE, chart

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["MEASURES", "accuracy_against_cost"]

MEASURES = {
    "top1": "Zero-shot top-1 (%)",
    "recall_at_1": "Recall@1, the picture of a caption (%)",
    "feature_cosine": "Cosine to the dense features",
    "index_overlap_at_10": "Dense index: same 10 neighbours (%)",
    "object_patches_kept": "Object patches kept (%)",
}
"""The measures a chart can show, with their titles."""

_COSTS = {
    "gmacs": "GMACs of the image tower per image",
    "macs_share": "Share of the dense MACs, counted (%)",
    "milliseconds": "Milliseconds per image, measured",
}
_SHARES = ("object_patches_kept", "index_overlap_at_10")

_AXES_POINTS, _LETTER_POINTS, _TITLE_POINTS = 270, 6.5, 470
"""Width of the axes at the least, of a letter of a tick label at the most; letters of a title times their size."""


@dataclass(frozen=True)
class _Curve:
    """One method of one chart, points from cheap to dear; ``low`` and ``high`` span the seeds."""

    method: str
    label: str
    oracle: bool
    tuned: bool
    rate: np.ndarray
    cost: np.ndarray
    value: np.ndarray
    low: np.ndarray
    high: np.ndarray


def accuracy_against_cost(
    rows: Sequence[Mapping[str, Any]], dataset: str, measure: str = "top1", cost: str = "gmacs"
) -> str:
    """Draws a measure against the cost of the image tower, one line a method.

    Several seeds of one setting become their mean with a band from the lowest to the highest. An oracle that ran on
    fewer images than the others is left out: it cannot be compared with them.

    Args:
        rows: Rows of ``results.json``.
        dataset: The data set to draw; rows of other data sets are ignored.
        measure: A key of ``MEASURES``.
        cost: ``gmacs``, ``macs_share``, or ``milliseconds`` as they were measured.

    Returns:
        An SVG element as text, or an empty string if no pruned row has both the measure and its cost.

    Raises:
        MissingExtraError: If matplotlib is not installed.
    """
    chosen, _ = comparable([row for row in rows if row["dataset"] == dataset])
    curves = _curves(chosen, measure, cost)
    if not curves:
        return ""

    def draw(figure: Any, axes: Any) -> None:
        for curve in curves:
            _draw(axes, curve)
        _draw_dense(axes, chosen, measure, cost)
        axes.margins(x=0.06, y=0.1)
        axes.xaxis.get_major_locator().set_params(nbins=6)
        axes.set_xlabel(_COSTS[cost])
        _mark_rates(axes, next((curve for curve in curves if not curve.oracle), curves[0]))
        figure.legend(*axes.get_legend_handles_labels(), loc="outside lower left", ncols=2, frameon=False)

    title = f"{MEASURES[measure]} · {dataset}"
    said = f"{MEASURES[measure]} against {_COSTS[cost]} on {dataset}"
    return chart(draw, title, said, 4.0, min(11.5, _TITLE_POINTS / len(title)))


def _curves(rows: Sequence[Mapping[str, Any]], measure: str, cost_of: str) -> list[_Curve]:
    most = max((row.get("n_images") or 0 for row in rows), default=0)
    found: dict[tuple[str, str, bool, int], dict[tuple[float, str], list[tuple[float, float]]]] = defaultdict(
        lambda: defaultdict(list)
    )
    for row in rows:
        value, cost, rate = row.get(measure), _cost(row, cost_of), row.get("keep_rate")
        method, tuned = row["method"], row.get("tuned") or "none"
        if (method == "dense" and tuned == "none") or value is None or cost is None or rate is None:
            continue
        method = "patchranking" if method == "dense" else method
        line = (method, tuned, row["oracle"], row.get("n_images") or most)
        found[line][rate, json.dumps(row.get("schedule"), sort_keys=True)].append((cost, _scaled(value, measure)))
    curves = []
    for (method, tuned, oracle, images), settings in found.items():
        label = method + (f" + {tuned} tokens" if tuned != "none" else "") + (" (oracle)" if oracle else "")
        points = sorted(
            (np.mean([cost for cost, _ in seeds]), rate, [value for _, value in seeds])
            for (rate, _), seeds in settings.items()
        )
        curves.append(
            _Curve(
                method=method,
                label=label + (f", {images:,} images" if images < most else ""),
                oracle=oracle,
                tuned=tuned != "none",
                rate=np.array([rate for _, rate, _ in points]),
                cost=np.array([cost for cost, _, _ in points]),
                value=np.array([np.mean(values) for _, _, values in points]),
                low=np.array([min(values) for _, _, values in points]),
                high=np.array([max(values) for _, _, values in points]),
            )
        )
    return sorted(curves, key=lambda curve: (order(curve.method), curve.tuned, curve.label))


def _cost(row: Mapping[str, Any], cost: str, dense: str = "") -> float | None:
    if cost == "macs_share":
        share = 1.0 if dense else row.get(cost)
        return None if share is None else 100 * share
    if cost == "gmacs":
        return row.get(f"gmacs{dense}")
    speed = row.get(f"images_per_second{dense}")
    return 1000 / speed if speed else None


def _scaled(value: float, measure: str) -> float:
    return 100 * value if measure in _SHARES else value


def _draw(axes: Axes, curve: _Curve) -> None:
    look, ours = style(curve.method), curve.method == "patchranking"
    axes.plot(
        curve.cost,
        curve.value,
        label=curve.label,
        color=look.colour,
        marker=look.marker,
        linestyle=(0, (4, 2.2)) if curve.oracle else (0, (1, 1.2)) if curve.tuned else "-",
        linewidth=2.8 if ours else 1.6,
        markersize=(9.5 if look.marker == "*" else 7.5 if ours else 6),
        markeredgecolor=CARD,
        markeredgewidth=1.1,
        zorder=5 if ours else 4 if curve.oracle else 3,
    )
    if (curve.high > curve.low).any():
        axes.fill_between(curve.cost, curve.low, curve.high, color=look.colour, alpha=0.15, linewidth=0)


def _draw_dense(axes: Axes, rows: Sequence[Mapping[str, Any]], measure: str, cost_of: str) -> None:
    """Marks the unpruned model, taken from the rows with the most images."""
    row = max(rows, key=lambda row: (row.get("n_images") or 0, row["method"] == "dense"))
    cost = _cost(row, cost_of, "_dense")
    value = row.get("top1_dense") if measure == "top1" else row.get(measure) if measure == "recall_at_1" else 1.0
    if cost is None or value is None:
        return
    value = _scaled(value, measure)
    axes.axhline(value, color=INK, linewidth=0.8, alpha=0.55, zorder=2)
    axes.plot(
        [cost],
        [value],
        label="dense",
        color=INK,
        marker=style("dense").marker,
        markersize=7,
        markeredgecolor=CARD,
        markeredgewidth=1.1,
        linestyle="none",
        zorder=6,
    )


def _mark_rates(axes: Axes, curve: _Curve) -> None:
    """Marks on the upper edge which cost belongs to which keep rate."""
    top = axes.twiny()
    top.spines[:].set_visible(False)
    top.set_xlim(axes.get_xlim())
    labels = [f"{100 * rate:.3g}%" for rate in curve.rate]
    top.set_xticks(curve.cost, _apart(curve.cost, labels, axes))
    top.tick_params(pad=1)
    top.grid(axis="x", color=LINE, linewidth=0.8)
    top.set_zorder(axes.get_zorder() - 1)
    top.set_xlabel(f"patches kept by {curve.method}", loc="left", labelpad=5)


def _apart(places: np.ndarray, labels: Sequence[str], axes: Axes) -> list[str]:
    """Blanks the labels that would touch the one before; places go from left to right."""
    low, high = axes.get_xlim()
    per_unit = _AXES_POINTS / (high - low)
    shown, free = [], -np.inf
    for place, label in zip((places - low) * per_unit, labels, strict=True):
        half = _LETTER_POINTS * len(label) / 2
        shown.append(label if place - half >= free else "")
        free = place + half + _LETTER_POINTS if shown[-1] else free
    return shown
