"""The pages of a pretraining and of the errors of its gradients."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import groupby
from pathlib import Path
from typing import Any

from patchranking.pretrain.filled import Reconstruction
from patchranking.report.curves import distinct_chart, error_map, learning_curve, schedule_chart
from patchranking.report.pictures import kept_view, photo
from patchranking.report.tables import csv_link
from patchranking.report.template import write_page
from patchranking.report.text import DASH, circumstances, number
from patchranking.report.wall import source

__all__ = ["write_gradient_errors", "write_pretraining"]

Row = Mapping[str, Any]


def write_pretraining(results: Mapping[str, Any], out: Path, title: str, filled: Sequence[Reconstruction] = ()) -> Path:
    """Writes the page of a pretraining: learning curves, the schedule, every evaluation and the environment.

    Args:
        results: ``rows`` of ``results.json``, one an evaluation, ``environment``; ``schedule`` and ``costs``, or the
            share of ``distinct`` pictures in every epoch.
        out: The HTML file to write; it appears complete or not at all.
        title: Heading of the page.
        filled: What a masked autoencoder makes of some pictures.

    Returns:
        ``out``.

    Raises:
        MissingExtraError: If jinja2 or matplotlib is not installed.
    """
    rows = results["rows"]
    charts = [learning_curve(rows, measure, "budget") for measure in ("knn", "linear_probe", "loss")]
    charts.insert(1, learning_curve(rows, "knn", "seconds"))
    if results.get("schedule"):
        charts.append(schedule_chart(results["schedule"], results["costs"]))
    if results.get("distinct"):
        charts.append(distinct_chart(results["distinct"]))
    last = rows[-1]
    tiles = [
        (number(last["knn"], 1), "k-NN accuracy, %"),
        (number(last["linear_probe"], 1), "linear probe, %"),
        (number(last["step"], 0), "steps"),
        (number(last["budget"], 0), "passes, uncompressed forward and backward"),
        (number(last["seconds"], 0), "seconds of training"),
    ]
    names = ("arm", "seed", "share", "budget", "seconds", "step", "loss", "knn", "linear_probe")
    shown = [tile for tile in tiles if tile[0] != DASH]
    return _written(results, out, title, shown, charts, names, [_filled(one) for one in filled])


def write_gradient_errors(results: Mapping[str, Any], out: Path, title: str) -> Path:
    """Writes the page of an analysis of gradients: maps of error, bias and variance at every stage, and all numbers.

    Args:
        results: ``rows`` and ``environment``.
        out: The HTML file to write; it appears complete or not at all.
        title: Heading of the page.

    Returns:
        ``out``.

    Raises:
        MissingExtraError: If jinja2 or matplotlib is not installed.
    """
    rows = results["rows"]
    stages = [list(found) for _, found in groupby(rows, key=lambda row: row["share"])]
    charts = [error_map(stage, part) for stage in stages for part in ("error", "bias2", "variance")]
    names = ("share", "patch_size", "drop", "cost", "bias2", "variance", "error")
    return _written(results, out, title, [], charts, names)


def _written(
    results: Mapping[str, Any],
    out: Path,
    title: str,
    tiles: Sequence[tuple[str, str]],
    charts: Sequence[str],
    names: Sequence[str],
    filled: Sequence[Mapping[str, str]] = (),
) -> Path:
    return write_page(
        out,
        "pretraining.html.j2",
        title=title,
        tiles=tiles,
        filled=filled,
        charts=[chart for chart in charts if chart],
        names=[name.replace("_", " ") for name in names],
        lines=[[_plain(row[name]) for name in names] for row in results["rows"]],
        csv=csv_link(results["rows"]),
        **circumstances(results["environment"]),
    )


def _filled(one: Reconstruction) -> dict[str, str]:
    """A picture, what is seen of it, and how the rest is filled in, as they stand on the page."""
    views = {"whole": photo(one.image), "seen": kept_view(one.image, one.visible), "made": photo(one.filled)}
    return {"key": one.key} | {name: source(view) for name, view in views.items()}


def _plain(value: Any) -> str:
    return number(value, 3) if isinstance(value, float) else DASH if value is None else str(value)
