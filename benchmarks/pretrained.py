"""Tables of the benchmarks of pretraining: what arms come to, how many times sooner, errors of gradients."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from statistics import fmean, pstdev
from typing import Any

import numpy as np
from compared import grid

__all__ = ["contrastive", "curriculum", "gradients", "systems"]

_MEASURES = {"knn": "k-NN", "linear_probe": "linear probe"}
_ALL = _MEASURES | {"zero_shot": "zero-shot"}

_SYSTEMS = {
    "mae": "MAE, prototypes first",
    "moco": "MoCo, few tokens first",
    "clip": "CLIP, few tokens first",
}
"""What a step of the three systems is."""

_RESAMPLES = 2000

Rows = list[dict[str, Any]]


def curriculum(results: Mapping[str, Any]) -> str:
    """Accuracies of every order of the pictures, and how many times sooner it is where ``uniform`` ends."""
    rows, lines = results["rows"], []
    for arm in _names(rows, "arm"):
        own = [row for row in rows if row["arm"] == arm]
        gains = [_gain(own, [row for row in rows if row["arm"] == "uniform"], name) for name in _MEASURES]
        sooner = [_sooner(results["headline"], arm=arm, measure=name, against="step") for name in _MEASURES]
        lines.append([f"`{arm}`", *_along(own), *(gains if arm != "uniform" else ["–", "–"]), *sooner])
    first = rows[0]
    heads = [f"{name}, {what}" for what in ("less `uniform`'s", "times fewer steps") for name in _MEASURES.values()]
    return (
        f"**{first['data']}**, {max(row['n_images'] for row in rows)} pictures, {_seeds(rows)} seeds, "
        f"{max(row['step'] for row in rows)} steps: accuracy in % half-way and in the end (standard deviation over "
        f"seeds; {_untrained(rows)}), its difference in the end, seed by seed, and how many times fewer steps to where "
        "`uniform` ends (95 % intervals)\n\n"
    ) + grid(["order", *_heads(), *heads], lines)


def contrastive(results: Mapping[str, Any]) -> str:
    """Accuracies of every method's arms, and how many times sooner they are where no compression ends."""
    parts = []
    for method in _names(results["rows"], "method"):
        rows, lines = [row for row in results["rows"] if row["method"] == method], []
        for arm in _names(rows, "arm"):
            own = [row for row in rows if row["arm"] == arm]
            steps = fmean(row["step"] for row in own if row["share"] == 1)
            about = {"method": method, "arm": arm, "over": "base"}
            sooner = [
                _sooner(results["headline"], **about, measure=measure, against=against)
                for measure in _MEASURES
                for against in ("budget", "seconds")
            ]
            lines.append([f"`{arm}`", f"{own[0]['learning_rate']:g}", f"{steps:.0f}", *_along(own), *sooner])
        heads = [f"{name}, times less {of}" for name in _MEASURES.values() for of in ("budget", "time")]
        budget = max(row["budget"] for row in rows)
        parts.append(
            f"**{method}, {rows[0]['dataset']}**, {_seeds(rows)} seeds, {budget:,.0f} passes: accuracy in % "
            f"half-way and in the end (standard deviation over seeds; {_untrained(rows)}), and how many times less to "
            "where `base` ends (95 % interval)\n\n" + grid(["arm", "rate", "steps", *_heads(), *heads], lines)
        )
    against = [one for one in results["headline"] if one["over"] == "two-phase"]
    lines = [
        [
            one["method"],
            _MEASURES[one["measure"]],
            {"seconds": "time"}.get(one["against"], one["against"]),
            _factor(one),
        ]
        for one in against
    ]
    if lines:
        parts.append(
            "How many times sooner `dynamic` is where `two-phase` ends (95 % interval):\n\n"
            + grid(["method", "by", "against", "times less"], lines)
        )
    return "\n\n".join(parts)


def gradients(results: Mapping[str, Any]) -> str:
    """Squared bias and cost-adjusted error of every compression at every stage."""
    rows, settings, lines = results["analysis"]["errors"], results["analysis"]["gradients"], []
    stages = _names(rows, "share")
    for patch, drop in dict.fromkeys((row["patch_size"], row["drop"]) for row in rows):
        at = {row["share"]: row for row in rows if (row["patch_size"], row["drop"]) == (patch, drop)}
        biases = [f"{at[stage]['bias2']:.2f} ({_interval(at[stage]['bias2_interval'])})" for stage in stages]
        errors = [f"{at[stage]['error']:.2f}" for stage in stages]
        best = [min(row["error"] for row in rows if row["share"] == stage) == at[stage]["error"] for stage in stages]
        errors = [f"**{error}**" if least else error for error, least in zip(errors, best, strict=True)]
        lines.append([f"{patch} px, {drop:.0%} dropped", f"{at[stages[0]]['cost']:.2f}", *biases, *errors])
    heads = [f"{name} at {stage:.0%}" for name in ("squared bias", "error") for stage in stages]
    return (
        f"{settings['base_batches']} batches without compression and {settings['batches']} of each compression, "
        f"{settings['batch_size']} images each, at shares of the training; in units of the variance of a batch without "
        "compression (95 % interval), the least error of a stage in bold\n\n"
    ) + grid(["compression", "cost", *heads], lines)


def systems(results: Mapping[str, Any]) -> str:
    """What every step of the three systems saves, and what both lines took and came to."""
    rows, lines = [row for row in results["rows"] if row["system"] != "pruning"], []
    for system, name in _SYSTEMS.items():
        at = {
            arm: [row for row in rows if (row["system"], row["arm"]) == (system, arm)]
            for arm in ("plain", "accelerated")
        }
        ends = {arm: [row for row in own if row["share"] == 1] for arm, own in at.items()}
        for measure in (key for key in _ALL if at["plain"][0].get(key) is not None):
            cells = [f"{fmean(row[measure] for row in at['plain'] if row['share'] == 0):.1f}"]
            for own in at.values():
                half, end = ([row[measure] for row in own if row["share"] == share] for share in (0.5, 1))
                cells.append(f"{fmean(half):.1f} → {fmean(end):.1f} ± {pstdev(end):.1f}")
            about = {"system": system, "measure": measure}
            saved = [_sooner(results["headline"], **about, against=against) for against in ("gmacs", "seconds")]
            spent = [f"{fmean(row['gmacs'] for row in ends['plain']) / 1000:,.1f}"]
            spent += [f"{fmean(row['seconds'] for row in own):,.0f}" for own in ends.values()]
            lines.append([name, _ALL[measure], *cells, *spent, *saved])
    heads = ["step", "measure in %", "start", "plain: half → end", "accelerated: half → end", "budget, TMACs"]
    heads += ["plain, s", "accelerated, s", "times less compute", "times less time"]
    return f"{grid(heads, lines)}\n\n{_pruned_shares(results['rows'])}\n\n{_whole(results)}"


def _pruned_shares(rows: Rows) -> str:
    """Zero-shot accuracy and speed of the pruned encoder at every share of the MACs."""
    own, lines = [row for row in rows if row["system"] == "pruning"], []
    for share in sorted(_names(own, "macs"), reverse=True):
        at = [row for row in own if row["macs"] == share and row["method"] != "random"]
        chance = [row["top1"] for row in own if row["macs"] == share and row["method"] == "random"]
        faster = fmean(row["seconds_dense"] / row["seconds"] for row in at)
        cells = [f"{fmean(row['macs_share'] for row in at):.0%}", f"{fmean(row['top1'] for row in at):.1f}"]
        cells.append(f"{fmean(chance):.1f}" if chance else "–")
        lines.append([*cells, f"{fmean(row['feature_cosine'] for row in at):.3f}", f"{faster:.2f}x"])
    return grid(["MACs of the encoder", "zero-shot, %", "random patches, %", "cosine to dense", "times faster"], lines)


def _whole(results: Mapping[str, Any]) -> str:
    """The plain line, the accelerated one, and its pruned encoder."""
    plain, fast = results["lines"]
    pruned, lines = results["pruning"], []
    for name, line in (("plain", plain), ("accelerated", fast)):
        spent = [f"{line['gmacs'] / 1000:,.1f}", f"{line['seconds']:,.0f}"]
        lines.append([name, *spent, "100%", f"{line['zero_shot']:.1f}"])
    if pruned is not None:
        seconds = f"{fast['seconds'] + pruned['fit_seconds']:,.0f}"
        kept = [f"{pruned['macs_share']:.0%}", f"{pruned['top1']:.1f}"]
        lines.append(["accelerated, pruned", lines[-1][1], seconds, *kept])
    return grid(["line", "TMACs to train", "seconds to train", "MACs of an image", "zero-shot, %"], lines)


def _names(rows: Iterable[Mapping[str, Any]], key: str) -> list[Any]:
    return list(dict.fromkeys(row[key] for row in rows))


def _seeds(rows: Rows) -> int:
    return len(_names(rows, "seed"))


def _heads() -> list[str]:
    return [f"{name}: {when}" for name in _MEASURES.values() for when in ("half", "end")]


def _along(rows: Rows) -> list[str]:
    """Means of both measures at 50 and 100 %, the latter with its deviation."""
    cells = []
    for measure in _MEASURES:
        half, end = (_at(rows, measure, share) for share in (0.5, 1))
        cells += [f"{fmean(half):.1f}", f"{fmean(end):.1f} ± {pstdev(end):.1f}"]
    return cells


def _at(rows: Rows, measure: str, share: float) -> list[float]:
    return [row[measure] for row in sorted(rows, key=lambda row: row["seed"]) if row["share"] == share]


def _untrained(rows: Rows) -> str:
    """What encoders come to before they are trained."""
    found = " and ".join(f"{fmean(_at(rows, measure, 0)):.1f}" for measure in _MEASURES)
    return f"before the training, {found}"


def _gain(ours: Rows, theirs: Rows, measure: str) -> str:
    """The mean difference in the end of paired seeds, and its bootstrap interval."""
    found = np.subtract(_at(ours, measure, 1), _at(theirs, measure, 1))
    drawn = np.random.default_rng(0).choice(found, (_RESAMPLES, len(found))).mean(1)
    low, high = np.quantile(drawn, [0.025, 0.975])
    return f"{found.mean():+.1f} ({low:+.1f} ... {high:+.1f})"


def _sooner(headline: Rows, **about: str) -> str:
    """The factor of one comparison; a dash where there is none."""
    found = [one for one in headline if all(one[name] == value for name, value in about.items())]
    return _factor(found[0]) if found else "–"


def _factor(one: Mapping[str, Any]) -> str:
    said = "never" if one["factor"] is None else f"{one['factor']:.2f}x"
    return f"{said} ({_interval(one['interval'])})"


def _interval(ends: tuple[float, float]) -> str:
    return " ... ".join(f"{end:.2f}" for end in ends)
