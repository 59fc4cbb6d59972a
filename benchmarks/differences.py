"""Means, intervals and paired differences of the comparison, from its table of single pictures."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import numpy as np
from pictures import MEASURES, Group, Measured

from patchranking.evaluation.bootstrap import mcnemar, paired_interval, stratified_interval
from patchranking.methods import METHODS, PatchRanking
from patchranking.methods.tally import DENSE

OURS = PatchRanking.name
MEAN = "mean"
"""What rows call the average over all data sets that have a measure, each of which counts the same."""


class _Pair(NamedTuple):
    """Our values and a rival's, ``(fits, pictures)`` each, of the same pictures."""

    ours: np.ndarray
    theirs: np.ndarray


def rows_of(groups: Mapping[Group, Measured], costs: Mapping[Group, Mapping[str, Any]]) -> list[dict[str, Any]]:
    """One row for every data set, method, domain and share of the MACs, with means over pictures and fits.

    Of every measure, ``NAME_fits`` are the means of the single fits, ``NAME_dense`` is the dense model's on the same
    pictures, and ``NAME_change_interval`` the 95 % interval of the difference to it, over pictures and fits. ``macs``
    is the share of the dense MACs that is aimed at, ``macs_share`` the one that is counted. Measures that were not
    taken are missing.

    Args:
        groups: What was measured.
        costs: Group -> what its rows say of cost.
    """
    rows = []
    for group, found in groups.items():
        dense = groups[Group(group.dataset, DENSE, None, 1.0)].of(found.keys)
        row: dict[str, Any] = {**group._asdict(), **costs[group], "n_images": len(found.keys), "fits": found.fits}
        for measure, scale in MEASURES.items():
            if measure in found.values:
                own, base = scale * found.values[measure], scale * dense.values[measure]
                row[measure] = float(own.mean())
                row[f"{measure}_fits"] = own.mean(1).tolist()
                row[f"{measure}_dense"] = float(base.mean())
                row[f"{measure}_change_interval"] = paired_interval(own, base)
        rows.append(row)
    return rows


def differences_of(groups: Mapping[Group, Measured]) -> list[dict[str, Any]]:
    """Our value minus each rival's and the dense model's, by data set, domain, share of the MACs and measure.

    Where several data sets have a measure, there is their average, too.

    ``interval`` is the paired 95 % interval over pictures and fits. ``verdict`` is ``ahead`` or ``behind`` where it
    excludes zero, ``level`` elsewhere. For top-1, ``p`` has McNemar's exact p of each of our fits against the rival's
    of the same place. A rival that is fitted too is compared within its domain. The oracle is no rival.

    Args:
        groups: What was measured.
    """
    rows = []
    for domain, macs in dict.fromkeys((g.domain, g.macs) for g in groups if g.method == OURS):
        for rival in dict.fromkeys(g.method for g in groups if g.method != OURS and not _oracle(g.method)):
            for measure, scale in MEASURES.items():
                pairs = _pairs(groups, domain, macs, rival, measure, scale)
                common = {"domain": domain, "rival": rival, "macs": macs, "measure": measure}
                for dataset, pair in pairs.items():
                    p = [mcnemar(*fit) for fit in _hits(pair)] if measure == "top1" else None
                    rows.append({"dataset": dataset, **common, **_difference([pair]), "p": p})
                if len(pairs) > 1:
                    datasets = {"datasets": list(pairs)}
                    rows.append({"dataset": MEAN, **common, **_difference(list(pairs.values())), "p": None, **datasets})
    return rows


def _oracle(method: str) -> bool:
    return method in METHODS and METHODS[method].oracle


def _pairs(
    groups: Mapping[Group, Measured], domain: str | None, macs: float, rival: str, measure: str, scale: float
) -> dict[str, _Pair]:
    """Data set -> the values of both, where both were measured."""
    pairs = {}
    for dataset in dict.fromkeys(group.dataset for group in groups):
        ours = groups.get(Group(dataset, OURS, domain, macs))
        shares = (domain, macs), (None, macs), (None, 1.0)
        theirs = next((groups[at] for share in shares if (at := Group(dataset, rival, *share)) in groups), None)
        if ours and theirs and measure in ours.values and measure in theirs.values:
            pairs[dataset] = _Pair(scale * ours.values[measure], scale * theirs.of(ours.keys).values[measure])
    return pairs


def _hits(pair: _Pair) -> Iterator[tuple[list[bool], list[bool]]]:
    """The hits of each of our fits, and of the rival's of the same place."""
    for place, own in enumerate(pair.ours):
        yield (own > 0).tolist(), (pair.theirs[place % len(pair.theirs)] > 0).tolist()


def _difference(pairs: list[_Pair]) -> dict[str, Any]:
    low, high = stratified_interval(pairs)
    mean = float(np.mean([pair.ours.mean() - pair.theirs.mean() for pair in pairs]))
    verdict = "ahead" if low > 0 else "behind" if high < 0 else "level"
    return {"difference": mean, "interval": [low, high], "verdict": verdict}
