"""One self-contained HTML page from the results of an evaluation."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from itertools import chain, islice
from pathlib import Path
from typing import Any

from patchranking.evaluation.examples import Example
from patchranking.evaluation.recommend import recommend, spotlight
from patchranking.evaluation.rows import comparable
from patchranking.report.figures import MEASURES, accuracy_against_cost
from patchranking.report.summary import summary
from patchranking.report.tables import csv_link, lines, oracle_table
from patchranking.report.template import write_page
from patchranking.report.text import DASH, PERCENT, circumstances, number, percent
from patchranking.report.wall import wall

__all__ = ["write_report"]

_RATE = 0.6
_NAMED = 20

Row = Mapping[str, Any]


def write_report(results: dict[str, Any], examples: Sequence[Example], out: Path, title: str) -> Path:
    """Writes the report: what to use, charts, examples, tables and environment, all in one file.

    Args:
        results: The content of ``results.json``: ``{"environment": {...}, "rows": [...]}``.
        examples: Images with the patches that each method keeps; may be empty.
        out: The HTML file to write; it appears complete or not at all.
        title: Heading of the page.

    Returns:
        ``out``.

    Raises:
        MissingExtraError: If jinja2 or matplotlib is not installed.
    """
    rows = results["rows"]
    spoken_of = spotlight(rows)
    return write_page(
        out,
        "page.html.j2",
        title=title,
        dash=DASH,
        percent=PERCENT,
        groups=[_group(rows, key) for key in dict.fromkeys(map(_key, rows))],
        wall=wall(examples, _RATE if spoken_of is None else spoken_of["keep_rate"]),
        account=_account(results),
        **circumstances(results["environment"]),
    )


def _key(row: Row) -> tuple[str, str, str | None]:
    return row["model"], row["dataset"], row.get("split")


def _group(rows: Sequence[Row], key: tuple[str, str, str | None]) -> dict[str, Any]:
    """Everything the page says about one model on one split of one data set."""
    model, dataset, split = key
    own = [row for row in rows if _key(row) == key]
    models = {row["model"] for row in rows if _key(row)[1:] == key[1:]}
    together, apart = comparable(own)
    table, spoken_of = lines(together), spotlight(own)
    return {
        "name": " · ".join(filter(None, (dataset, split, model if len(models) > 1 else None))),
        "model": model,
        "images": number(max((row.get("n_images") or 0 for row in own), default=None), 0),
        "use": recommend(own),
        "spoken_of": ""
        if spoken_of is None
        else f"{spoken_of['method']} at {percent(spoken_of['keep_rate'])} of the patches",
        "summary": summary(own),
        "charts": _charts(own, dataset),
        "lines": table,
        "methods": sorted({line["method"] for line in table}),
        "csv": csv_link(own),
        "file": re.sub(r"[^\w.-]+", "-", "-".join(filter(None, ("patchranking", dataset, split)))) + ".csv",
        "top1": any(row.get("top1") is not None for row in own),
        "objects": any(row.get("object_patches_kept") is not None for row in own),
        "recall": any(row.get("recall_at_1") is not None for row in own),
        "index": any(row.get("index_overlap_at_10") is not None for row in own),
        "oracle": oracle_table(apart),
    }


def _charts(rows: Sequence[Row], dataset: str) -> list[str]:
    """Every measure there is against multiply-accumulates, the first one against measured time too."""
    known = [name for name in MEASURES if any(row.get(name) is not None for row in rows)]
    drawn = [accuracy_against_cost(rows, dataset, name) for name in known]
    drawn[1:1] = [accuracy_against_cost(rows, dataset, name, "milliseconds") for name in known[:1]]
    return [svg for svg in drawn if svg]


def _account(results: Mapping[str, Any]) -> dict[str, Any] | None:
    """Where the images went, and the first that are not in the results; None where it is not known."""
    images = results.get("images")
    if images is None:
        return None
    left_out = images.get("left_out", 0)
    parts = [f"{number(images['evaluated'], 0)} evaluated", f"{number(images['skipped'], 0)} skipped"]
    total = f"{number(images['in'] + left_out, 0)} in = {' + '.join(parts)} + {number(left_out, 0)} left out"
    named = chain(results.get("skipped", {}).items(), results.get("left_out", {}).get("first", {}).items())
    shown = list(islice(named, _NAMED))
    return {
        "total": f"{total}.",
        "notes": results.get("notes", []),
        "files": shown,
        "more": images["skipped"] + left_out - len(shown),
    }
