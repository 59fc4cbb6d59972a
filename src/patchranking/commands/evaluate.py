"""patchranking evaluate."""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from patchranking.commands.common import number, print_left_out, print_skipped
from patchranking.data import ClassesName, load_data, of_classes
from patchranking.errors import UserError
from patchranking.evaluation.evaluate import EvaluationSettings
from patchranking.evaluation.evaluate import evaluate as run_evaluation
from patchranking.evaluation.rows import comparable
from patchranking.exporting.method import ExportedFile
from patchranking.files import make_folder, write_json
from patchranking.methods.attach import pruner_or_method
from patchranking.predictor.fallback import ONE_PASS
from patchranking.pruner import Pruner
from patchranking.report.page import write_report
from patchranking.report.text import model_name
from patchranking.towers.load import load_model

__all__ = ["evaluate"]

_ORACLE = "* oracle: sees the result before it chooses, so it cannot be deployed"


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
        model: demo, open_clip:NAME/TAG, open_clip:local-dir:PATH, hf:NAME_OR_PATH or timm:NAME; or the folder of an
            exported model, which is compared with the model that it was made of, and with pruners.
        data: demo[:split], hf:NAME[:split], wds:SHARDS, torchvision:NAME[:split], folders joined by commas, or a list
            of captions (.tsv, .csv, .json).
        settings: What to compare.
        out: Folder for results.json and report.html.
        pruner: Folders written by fit and tune, or repositories on the Hub: one not tuned, and at most one of each kind
            of tokens; and names of methods that need no fit, which join those of --methods.
        templates: Prompt templates with one {}; the data set's own when omitted.
        classes: All classes, the first half of them (base), or the second (new).
        limit: Maximum number of images, drawn by seed.
        device: cpu, cuda, cuda:1, mps, ...
    """
    given = [pruner_or_method(one) for one in pruner]
    artefacts = [one for one in given if isinstance(one, Pruner)]
    more = [one.name for one in given if not isinstance(one, Pruner)]
    settings = replace(settings, methods=list(dict.fromkeys([*settings.methods, *more])))
    file = ExportedFile.at_path(model)
    if file is not None:
        if settings.fallback:
            raise UserError(ONE_PASS)
        settings = replace(settings, methods=more, keep=[])
    loaded = load_model(model if file is None else file.about.model, device)
    images = of_classes(load_data(data, limit, settings.seed), classes)
    if templates:
        images.templates = tuple(templates)
    if file is not None:
        file.check(loaded.tower, images)
    folder = make_folder(out)
    progress, files = folder / "progress", [] if file is None else [file]
    results, shown = run_evaluation(loaded, images, artefacts, settings, progress=progress, files=files)
    write_json(folder / "results.json", results)
    title = f"{model_name(loaded.name)} on {images.name} ({images.split})"
    write_report(results, shown, folder / "report.html", title)
    shutil.rmtree(progress)
    together, apart = comparable(results["rows"])
    _print_table(together)
    if apart:
        _print_oracle(apart)
    if results["recommendation"]:
        print(f"\n{results['recommendation']['text']}\n{results['recommendation']['rule']}")
    totals = results["images"]
    print(f"{totals['in']} images in = {totals['evaluated']} evaluated + {totals['skipped']} skipped")
    print_skipped(results["skipped"])
    print_left_out(images)
    print(f"wrote {folder / 'results.json'} and {folder / 'report.html'}")


def _print_table(rows: Sequence[Mapping[str, Any]]) -> None:
    recall = "recall_at_1" in rows[0]
    accuracy = ["recall@1"] if recall else ["top-1", "change", "95 % interval"]
    heads = [*accuracy, "cosine", "index@10", "GMACs", "MACs", "speed-up"]
    print(f"{'method':<22}{'keep':>6}" + "".join(f"{head:>{_width(head)}}" for head in heads))
    for row in rows:
        speed, dense = row["images_per_second"], row["images_per_second_dense"]
        ratio = number(speed and dense and speed / dense, ".2f")
        figures = [
            *([number(row.get("recall_at_1"), ".2f")] if recall else [number(row["top1"], ".2f"), *_change(row)]),
            number(row["feature_cosine"], ".4f"),
            number(row["index_overlap_at_10"], ".3f"),
            number(row["gmacs"], ".3f"),
            number(row["macs_share"], ".0%"),
            ratio if ratio == "-" else f"{ratio}x",
        ]
        print(_start(row) + "".join(f"{one:>{_width(head)}}" for one, head in zip(figures, heads, strict=True)))
    print("MACs: share of the dense model's multiply-accumulates")
    if not recall:
        print("change: of top-1, in points, from the dense model on the same images, with its interval")
    print("index@10: share of the 10 nearest neighbours in an index of the dense model's features that stay the same")
    for row in rows:
        if "fallback" in row:
            about = f"estimated 1 - cosine above {row['fallback']:g}, ran densely, too: MACs are the mean"
            print(f"{row['method']} at {row['keep_rate']:.0%}: {row['ran_densely']:.1%} of the images, {about}")
    if any(row["oracle"] for row in rows):
        print(_ORACLE)


def _print_oracle(rows: Sequence[Mapping[str, Any]]) -> None:
    """Oracles on fewer images, beside the dense model on the same."""
    print(f"\nthe oracle, on fewer images: no figure to compare with those above\n{_ORACLE}")
    labelled = any(row["top1"] is not None for row in rows)
    heads = ["images", *["top-1", "dense", "change", "95 % interval"] * labelled, "cosine"]
    print(f"{'method':<22}{'keep':>6}" + "".join(f"{head:>{_width(head)}}" for head in heads))
    for row in rows:
        top1, dense = number(row["top1"], ".2f"), number(row["top1_dense"], ".2f")
        accuracy = [top1, dense, *_change(row)] if labelled else []
        figures = [str(row["n_images"]), *accuracy, number(row["feature_cosine"], ".4f")]
        print(_start(row) + "".join(f"{one:>{_width(head)}}" for one, head in zip(figures, heads, strict=True)))


def _start(row: Mapping[str, Any]) -> str:
    name = row["method"] + (f" + {row['tuned']}" if row["tuned"] != "none" else "") + " *" * row["oracle"]
    return f"{name:<22}{row['keep_rate']:>6.0%}"


def _change(row: Mapping[str, Any]) -> tuple[str, str]:
    """The change in top-1 and its interval."""
    known, interval = row["top1"] is not None, row["top1_change_interval"]
    change = row["top1"] - row["top1_dense"] if known else None
    return number(change, "+.2f"), f"{interval[0]:+.2f} to {interval[1]:+.2f}" if interval else "-"


def _width(head: str) -> int:
    return 18 if head == "95 % interval" else 10
