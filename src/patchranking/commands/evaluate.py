"""patchranking evaluate."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

from patchranking.commands.common import number, print_left_out, print_skipped
from patchranking.data import ClassesName, load_data, of_classes
from patchranking.evaluation.evaluate import EvaluationSettings
from patchranking.evaluation.evaluate import evaluate as run_evaluation
from patchranking.files import make_folder, write_json
from patchranking.pruner import Pruner
from patchranking.report.page import write_report
from patchranking.towers.load import load_model

__all__ = ["evaluate"]


def evaluate(
    model: str,
    data: str,
    settings: EvaluationSettings,
    out: Path = Path("runs/evaluate"),
    pruner: list[Path] = [],  # noqa: B006
    templates: list[str] | None = None,
    classes: ClassesName = "all",
    limit: int | None = None,
    device: str = "cpu",
) -> None:
    """Compares dense, pruner and baselines on labelled or captioned images; writes results.json and report.html.

    Killed and run again, it goes on where it stopped.

    Args:
        model: demo, open_clip:NAME/TAG, open_clip:local-dir:PATH, hf:NAME_OR_PATH or timm:NAME.
        data: demo[:split], hf:NAME[:split], wds:SHARDS, torchvision:NAME[:split], folders joined by commas, or a list
            of captions (.tsv, .csv, .json).
        settings: What to compare.
        out: Folder for results.json and report.html.
        pruner: Folders written by fit and tune: one not tuned, and at most one of each kind of tokens.
        templates: Prompt templates with one {}; the data set's own when omitted.
        classes: All classes, the first half of them (base), or the second (new).
        limit: Maximum number of images, drawn by seed.
        device: cpu, cuda, cuda:1, mps, ...
    """
    artefacts = [Pruner.from_pretrained(folder) for folder in pruner]
    loaded = load_model(model, device)
    images = of_classes(load_data(data, limit, settings.seed), classes)
    if templates:
        images.templates = tuple(templates)
    folder = make_folder(out)
    progress = folder / "progress"
    results, shown = run_evaluation(loaded, images, artefacts, settings, progress=progress)
    write_json(folder / "results.json", results)
    write_report(results, shown, folder / "report.html", f"{images.name} {images.split}, {loaded.name}")
    shutil.rmtree(progress)
    _print_table(results["rows"])
    totals = results["images"]
    print(f"{totals['in']} images in = {totals['evaluated']} evaluated + {totals['skipped']} skipped")
    print_skipped(results["skipped"])
    print_left_out(images)
    print(f"wrote {folder / 'results.json'} and {folder / 'report.html'}")


def _print_table(rows: list[dict[str, Any]]) -> None:
    shown = {"recall@1": "recall_at_1"} if "recall_at_1" in rows[0] else {"top-1": "top1"}
    heads = [*shown, "cosine", "index@10", "GMACs", "MACs", "speed-up"]
    print(f"{'method':<22}{'keep':>6}" + "".join(f"{head:>10}" for head in heads))
    for row in rows:
        speed, dense = row["images_per_second"], row["images_per_second_dense"]
        name = row["method"] + (f" + {row['tuned']}" if row["tuned"] != "none" else "") + " *" * row["oracle"]
        ratio = number(speed and dense and speed / dense, ".2f")
        figures = [
            *(number(row.get(measure), ".2f") for measure in shown.values()),
            number(row["feature_cosine"], ".4f"),
            number(row["index_overlap_at_10"], ".3f"),
            number(row["gmacs"], ".3f"),
            number(row["macs_share"], ".0%"),
            ratio if ratio == "-" else f"{ratio}x",
        ]
        print(f"{name:<22}{row['keep_rate']:>6.0%}" + "".join(f"{figure:>10}" for figure in figures))
    print("MACs: share of the dense model's multiply-accumulates")
    print("index@10: share of the 10 nearest neighbours in an index of the dense model's features that stay the same")
    print("* oracle: sees the result before it chooses, so it cannot be deployed")
