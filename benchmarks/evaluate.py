"""Dense, pruned and baselines on one or more data sets.

    python benchmarks/evaluate.py MODEL DATA [DATA ...] --pruner DIR --out benchmarks/results/evaluate-NAME.json

Writes one JSON file with the rows of all data sets and, with --picture, the wall of images as a PNG.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from jsonargparse import auto_cli

from patchranking.data import load_data
from patchranking.evaluation.evaluate import EvaluationSettings, evaluate
from patchranking.pruner import Pruner
from patchranking.report.figures import wall_picture
from patchranking.report.page import write_report
from patchranking.towers.load import load_model


def main(
    model: str,
    data: list[str],
    pruner: Path,
    out: Path,
    golden_images: int = 60,
    limit: int | None = None,
    timing_batch: int = 16,
    picture: Path | None = None,
    wall: int = 4,
    report: Path | None = None,
    seed: int = 0,
) -> None:
    """Evaluates a pruner.

    Args:
        model: The MODEL argument of the command line.
        data: One or more DATA arguments; each keeps its own prompt template.
        pruner: Folder written by patchranking fit.
        out: The JSON file.
        golden_images: Images of each data set for the golden oracle.
        limit: At most so many images of each data set.
        timing_batch: Images a batch when timing.
        picture: The wall of images as PNG.
        wall: Images of each data set on the wall.
        report: The report of all data sets as HTML.
        seed: Random seed.
    """
    torch.manual_seed(seed)
    loaded = load_model(model)
    fitted = Pruner.from_pretrained(pruner)
    fit = json.loads((pruner / "fit.json").read_text())
    settings = EvaluationSettings(golden_images=golden_images, timing_batch=timing_batch, wall=wall, seed=seed)
    rows, pictures = [], []
    results: dict[str, Any] = {}
    for name in data:
        results, images = evaluate(loaded, load_data(name, limit, seed), [fitted], settings)
        rows += results["rows"]
        pictures += images
    merged = {"environment": results["environment"], "fit": fit, "rows": rows}
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(json.dumps(merged, indent=2) + "\n")
    if picture is not None:
        wall_picture(pictures).save(picture, optimize=True)
    if report is not None:
        write_report(merged, pictures, report, f"patchranking, {model}")


if __name__ == "__main__":
    auto_cli(main, as_positional=False)
