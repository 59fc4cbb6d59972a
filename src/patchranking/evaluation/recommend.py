"""Which keep rate to use: the lowest that is measured to lose little."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

__all__ = ["Recommendation", "recommend", "spotlight"]

Row = Mapping[str, Any]

_POINTS = 1.0
_COSINE = 0.98
_IMAGES = 300
"""Where none of so many images changes, the 95 % interval still reaches to one in a hundred (the rule of three)."""
_USUAL = 0.6
"""Without a pruner, the method to speak of is that of the row nearest to this keep rate."""


@dataclass(frozen=True)
class Recommendation:
    """The keep rate to use.

    Attributes:
        method: The method it is for.
        tuned: Its tuned tokens.
        keep_rate: The keep rate; None where no measured one keeps to the rule.
        macs_share: Share of the dense model's multiply-accumulates at this keep rate.
        text: What to use and what it costs, in a sentence.
        rule: How it was found, in a sentence.
    """

    method: str
    tuned: str
    keep_rate: float | None
    macs_share: float | None
    text: str
    rule: str


def recommend(rows: Sequence[Row]) -> Recommendation | None:
    """The lowest keep rate at which, as at every higher one, little is lost; going down and stopping keeps chance out.

    Little is lost where the 95 % interval of the change in top-1 stays within a point. Without labels, or with too few
    images for such an interval to mean anything, it is where the mean cosine to the dense features is .98 or more.

    Args:
        rows: Rows of ``results.json`` about one model and one data set.

    Returns:
        None where no deployable method was measured.
    """
    own = _of_one_method(rows)
    images = min((row.get("n_images") or 0 for row in own), default=0)
    labelled = all(row.get("top1_change_interval") for row in own)
    by_points = labelled and images >= _IMAGES
    if not own or not (by_points or all(row.get("feature_cosine") is not None for row in own)):
        return None
    best = None
    rates = sorted({row["keep_rate"] for row in own}, reverse=True)
    for rate in rates:
        level = [row for row in own if row["keep_rate"] == rate]
        if not all(_loses_little(row, by_points) for row in level):
            break
        best = min(level, key=lambda row: _share(row) or 1)
    rule = "The rule: the lowest keep rate at which, as at all higher ones measured, "
    if by_points:
        rule += f"the 95 % interval of the change in top-1 does not reach below -{_POINTS:g} point."
    else:
        why = f"{images} images are too few to rule out a loss of a point, which takes {_IMAGES}"
        rule += f"the mean cosine to the dense features is {_COSINE:g} or more"
        rule += f"; {why}." if labelled else "; top-1 was not measured."
    if best is None:
        text = f"No keep rate to recommend: {own[0]['method']} loses too much even at keep = {rates[0]:g}."
        return Recommendation(own[0]["method"], own[0].get("tuned") or "none", None, None, text, rule)
    text = f"Use keep = {best['keep_rate']:g} with {best['method']}: {_said(best, by_points)}."
    if best["keep_rate"] == rates[-1]:
        text += " Lower keep rates were not measured."
    return Recommendation(best["method"], best.get("tuned") or "none", best["keep_rate"], _share(best), text, rule)


def _share(row: Row) -> float | None:
    """Share of the dense model's multiply-accumulates; rows of older results have it as two figures."""
    cost, dense = row.get("gmacs"), row.get("gmacs_dense")
    share: float | None = row.get("macs_share")
    return cost / dense if share is None and cost is not None and dense else share


def _loses_little(row: Row, by_points: bool) -> bool:
    if by_points:
        return bool(row["top1_change_interval"][0] >= -_POINTS - 1e-9)
    return bool(row["feature_cosine"] >= _COSINE)


def _said(row: Row, by_points: bool) -> str:
    share, says = _share(row), list[str]()
    if share is not None:
        says.append(f"{share:.0%} of the dense model's MACs".replace("%", " %"))
    if by_points:
        low, high = row["top1_change_interval"]
        change = round(row["top1"] - row["top1_dense"], 1)
        moved = f"top-1 changes by {change:+.1f} points" if change else "top-1 stays"
        says.append(f"{moved} (95 % interval {low:+.1f} to {high:+.1f})")
    else:
        says.append(f"a mean cosine of {row['feature_cosine']:.3f} to the dense features")
    return ", ".join(says)


def spotlight(rows: Sequence[Row]) -> Row | None:
    """The row to speak of: that of the recommended keep rate, else of the one nearest to the usual rate."""
    found = recommend(rows)
    rate = _USUAL if found is None or found.keep_rate is None else found.keep_rate
    return min(_of_one_method(rows), key=lambda row: abs(row["keep_rate"] - rate), default=None)


def _of_one_method(rows: Sequence[Row]) -> list[Row]:
    """The pruned rows of one deployable method: a pruner's where there is one; empty without any."""
    pruned = [row for row in rows if not row["oracle"] and row["method"] != "dense" and row.get("keep_rate")]
    if not pruned:
        return []
    first = min(pruned, key=lambda row: (row["method"] != "patchranking", abs(row["keep_rate"] - _USUAL)))
    return [row for row in pruned if (row["method"], row.get("tuned")) == (first["method"], first.get("tuned"))]
