"""Tables and charts of the comparison at shares of the dense MACs."""

from __future__ import annotations

from collections.abc import Iterable
from statistics import fmean
from typing import Any

from patchranking.methods import STYLES
from patchranking.methods.tally import DENSE
from patchranking.report.figures import accuracy_against_cost

DOMAINS = {"out": "out-of-domain", "in": "in-domain", None: ""}
"""Domain of a row -> what tables call it, in their order."""
_MEASURES = {
    "top1": ("top-1, points", "{:+.1f}", 1),
    "recall_at_1": ("recall@1, points", "{:+.1f}", 1),
    "feature_cosine": ("cosine", "{:+.3f}", 1),
    "overlap_at_10": ("same 10 neighbours, points", "{:+.1f}", 100),
}
"""Measure of a difference -> its name, how it is written, and what it is multiplied by."""
_OFF = 0.01
_HEAD = "share of the dense MACs"

Rows = list[dict[str, Any]]


def table(results: dict[str, Any], part: str | None) -> str:
    """The tables of the methods on every data set, or of a part.

    Args:
        results: The content of the JSON file.
        part: ``mean``, the methods averaged over the data sets; ``differences``, averaged too; ``every``, those of
            every data set; ``speed``; ``all``, everything.
    """
    parts = {None: _methods, "mean": _mean, "differences": _mean_differences, "every": _differences, "speed": _speed}
    shown = list(parts.values()) if part == "all" else [parts[part]]
    return "\n\n".join(text for make in shown for text in make(results))


def charts(results: dict[str, Any], measures: Iterable[tuple[str, str]]) -> dict[str, str]:
    """Charts over the counted share of the dense MACs: name -> SVG; those of in-domain fits end with ``-in-domain``.

    Args:
        results: The content of the JSON file.
        measures: Data set and measure of each chart; the data set's split is left out.
    """
    found = {}
    for short, measure in measures:
        (dataset,) = (name for name in _names(results["rows"], "dataset") if name.partition("/")[0] == short)
        for domain, words in list(DOMAINS.items())[:2]:
            rows = _for_charts(results["rows"], dataset, domain)
            if svg := accuracy_against_cost(rows, f"{dataset}, {words}", measure, "macs_share"):
                found[f"{short}-{measure}" + ("-in-domain" if domain == "in" else "")] = svg
    return found


def _for_charts(rows: Rows, dataset: str, domain: str | None) -> Rows:
    """Rows as charts have them, one a fit; none where nothing was fitted for this domain."""
    own = [row for row in rows if row["dataset"] == dataset and row["domain"] in (domain, None) and not row["oracle"]]
    own = [row for row in own if row["method"] in STYLES]
    if not any(row["domain"] == domain for row in own):
        return []
    as_they_are = ("method", "oracle", "n_images", "schedule", "macs_share", "top1_dense")
    return [
        {
            **{name: row.get(name) for name in as_they_are},
            "dataset": f"{dataset}, {DOMAINS[domain]}",
            "keep_rate": round(row["keep_rate"], 2),
            "index_overlap_at_10": row["overlap_at_10_fits"][fit],
            **{name: row[f"{name}_fits"][fit] for name in ("top1", "recall_at_1", "feature_cosine") if name in row},
        }
        for row in own
        for fit in range(len(row["fits"]))
    ]


def _names(rows: Rows, key: str) -> list[Any]:
    return list(dict.fromkeys(row[key] for row in rows))


def _shares(rows: Rows) -> list[float]:
    return sorted({row["macs"] for row in rows} - {1.0}, reverse=True)


def grid(heads: list[str], lines: list[list[str]]) -> str:
    """A table."""
    rows = [f"| {' | '.join(heads)} |", "|---|" + "---|" * (len(heads) - 1)]
    return "\n".join(rows + [f"| {' | '.join(line)} |" for line in lines])


def _methods(results: dict[str, Any]) -> list[str]:
    """Of every data set: accuracy or recall, cosine and neighbours of every method at every share."""
    tables = []
    for dataset in _names(results["rows"], "dataset"):
        rows = [row for row in results["rows"] if row["dataset"] == dataset]
        shares, lines = _shares(rows), []
        for method in dict.fromkeys([*STYLES, *_names(rows, "method")]):
            for domain in DOMAINS:
                own = {row["macs"]: row for row in rows if (row["method"], row["domain"]) == (method, domain)}
                if method != DENSE and own:
                    lines.append([_label(own[shares[0]]), *(_cell(own[share]) for share in shares)])
        (dense,) = (row for row in rows if row["method"] == DENSE)
        accuracy, words = _accuracy(dense)
        known = f"dense {words} {dense[accuracy]:.1f} %, " if accuracy in dense else ""
        fits = max(len(row["fits"]) for row in rows)
        tables.append(
            f"**{dataset}**, {_half(results)}, {dense['n_images']} images, {known}{fits} fit{'s' * (fits > 1)}: "
            f"{words} % / cosine / share of the 10 nearest neighbours that stay, in %\n\n"
            + grid([_HEAD, *(f"{share:.0%}" for share in shares)], lines)
        )
    return tables


def _mean(results: dict[str, Any]) -> list[str]:
    """Averaged over data sets: change of accuracy or recall, cosine and neighbours of every method at every share."""
    rows = [row for row in results["rows"] if not row["oracle"]]
    datasets, shares, lines = _names(rows, "dataset"), _shares(rows), []
    for method in dict.fromkeys([*STYLES, *_names(rows, "method")]):
        for domain in DOMAINS:
            own = [row for row in rows if (row["method"], row["domain"]) == (method, domain)]
            at = {share: [row for row in own if row["macs"] == share] for share in shares}
            if all(_names(some, "dataset") == datasets for some in at.values()):
                lines.append([_label(own[0]), *(_mean_cell(at[share]) for share in shares)])
    images = sum(row["n_images"] for row in rows if row["method"] == DENSE)
    return [
        f"Mean over {', '.join(datasets)}, {_half(results)}, {images:,} images: change of {_accuracies(rows)} from the "
        "dense model's in points / cosine / share of the 10 nearest neighbours that stay, in %\n\n"
        + grid([_HEAD, *(f"{share:.0%}" for share in shares)], lines)
    ]


def _accuracies(rows: Rows) -> str:
    return " or ".join(sorted({"top-1" if "top1" in row else "recall@1" for row in rows}, reverse=True))


def _mean_cell(rows: Rows) -> str:
    """Says the counted share where it is another than that of the column."""
    measures = [_accuracy(row)[0] for row in rows]
    change = fmean(row[name] - row[f"{name}_dense"] for row, name in zip(rows, measures, strict=True))
    cosine, overlap, share = (fmean(row[n] for row in rows) for n in ("feature_cosine", "overlap_at_10", "macs_share"))
    shown = f"{change:+.1f} / {cosine:.3f} / {100 * overlap:.0f}"
    return shown if abs(share - rows[0]["macs"]) <= _OFF else f"{shown} (at {share:.0%})"


def _half(results: dict[str, Any]) -> str:
    return "all images" if results["split"] == "all" else f"{results['split']} half"


def _label(row: dict[str, Any]) -> str:
    """An oracle's says how many images it saw, and what the dense model has on these."""
    if not row["oracle"]:
        return ", ".join(filter(None, [row["method"], DOMAINS[row["domain"]]]))
    accuracy = _accuracy(row)[0]
    dense = f", dense {row[f'{accuracy}_dense']:.1f}" if accuracy in row else ""
    return f"{row['method']}, oracle on {row['n_images']} images{dense}"


def _accuracy(row: dict[str, Any]) -> tuple[str, str]:
    """The measure of accuracy that a row has, and its name."""
    return ("top1", "top-1") if "top1" in row else ("recall_at_1", "recall@1 of the picture of a caption")


def _cell(row: dict[str, Any]) -> str:
    """Says the counted share where it is another than that of the column."""
    values = [(_accuracy(row)[0], "{:.1f}", 1), ("feature_cosine", "{:.3f}", 1), ("overlap_at_10", "{:.0f}", 100)]
    shown = " / ".join(form.format(scale * row[name]) if name in row else "–" for name, form, scale in values)
    return shown if abs(row["macs_share"] - row["macs"]) <= _OFF else f"{shown} (at {row['macs_share']:.0%})"


def _differences(results: dict[str, Any]) -> list[str]:
    """Of every domain, the average and every data set: our value minus each rival's, and who is ahead."""
    rows, tables = results["differences"], []
    datasets = sorted(_names(rows, "dataset"), key=lambda name: name != "mean")
    for domain, words in DOMAINS.items():
        for dataset in datasets:
            own = [row for row in rows if (row["dataset"], row["domain"]) == (dataset, domain)]
            if not own:
                continue
            title = "Mean over the data sets" if dataset == "mean" else dataset
            tables.append(_differences_table(own, f"**{title}**, patchranking {words}"))
    return tables


def _mean_differences(results: dict[str, Any]) -> list[str]:
    """Of every domain, averaged over the data sets that have a measure: our value minus each rival's."""
    rows, tables = results["differences"], []
    for domain, words in DOMAINS.items():
        own = [row for row in rows if row["domain"] == domain]
        averaged = {row["measure"] for row in own if row["dataset"] == "mean"}
        own = [row for row in own if row["dataset"] == "mean" or row["measure"] not in averaged]
        if own:
            tables.append(_differences_table(own, f"Patchranking {words}"))
    return tables


def _differences_table(rows: Rows, title: str) -> str:
    lines = []
    for measure, (name, form, scale) in _MEASURES.items():
        for rival in _names(rows, "rival"):
            at = {row["macs"]: row for row in rows if (row["measure"], row["rival"]) == (measure, rival)}
            if at:
                cells = [_difference(at[share], form, scale) for share in _shares(rows)]
                lines.append([f"{name}: minus {rival}", *cells])
    heads = [_HEAD, *(f"{share:.0%}" for share in _shares(rows))]
    return f"{title}: difference (95 % interval)\n\n" + grid(heads, lines)


def _difference(row: dict[str, Any], form: str, scale: int) -> str:
    value, low, high = (form.format(scale * end) for end in (row["difference"], *row["interval"]))
    return f"{value} ({low} ... {high}) {row['verdict']}"


def _speed(results: dict[str, Any]) -> list[str]:
    """Images per second as a multiple of the dense model's."""
    rows = results["speed"]
    lines = []
    for method in _names(rows, "method"):
        at = {row["macs"]: row for row in rows if row["method"] == method}
        speeds = [at[share]["images_per_second"] / at[share]["images_per_second_dense"] for share in _shares(rows)]
        lines.append([method, *(f"{speed:.2f}x" for speed in speeds)])
    return [
        f"Images per second as a multiple of the dense model's, {rows[0]['batch']} images per batch\n\n"
        + grid([_HEAD, *(f"{share:.0%}" for share in _shares(rows))], lines)
    ]
