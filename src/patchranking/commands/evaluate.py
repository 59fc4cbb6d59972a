"""patchranking evaluate."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from patchranking.commands.common import load, make_folder, number, print_skipped
from patchranking.data import ClassesName, load_data, of_classes
from patchranking.evaluation.evaluate import EvaluationSettings
from patchranking.evaluation.evaluate import evaluate as run_evaluation
from patchranking.files import write_json
from patchranking.pruner import Pruner
from patchranking.pruning.select import check_keep_rate
from patchranking.report.page import write_report
from patchranking.towers.load import LoadedModel

__all__ = ["evaluate"]


def evaluate(
    model: str,
    data: str,
    out: Path = Path("runs/evaluate"),
    pruner: list[Path] = [],  # noqa: B006
    methods: list[str] = ["random", "cls-attention", "evit", "tome", "golden"],  # noqa: B006
    keep: list[float] = [1.0, 0.9, 0.8, 0.7, 0.6, 0.5, 0.4],  # noqa: B006
    templates: list[str] | None = None,
    classes: ClassesName = "all",
    golden_images: int = 100,
    batch_size: int = 32,
    timing_batch: int = 16,
    limit: int | None = None,
    seed: int = 0,
    device: str = "cpu",
) -> None:
    """Compares dense, pruner and baselines on labelled or captioned images; writes results.json and report.html.

    Args:
        model: demo, open_clip:NAME/TAG, open_clip:local-dir:PATH, hf:NAME_OR_PATH or timm:NAME.
        data: demo[:split], hf:NAME[:split], wds:SHARDS, torchvision:NAME[:split], folders joined by commas, or a list
            of captions (.tsv, .csv, .json).
        out: Folder for results.json and report.html.
        pruner: Folders written by fit and tune: one not tuned, and at most one of each kind of tokens.
        methods: random, centre-crop, cls-attention, evit, a-vit, tome, low-res, and golden, the oracle; dense and the
            pruner are always measured.
        keep: Keep rates; 1.0 is the dense model.
        templates: Prompt templates with one {}; the data set's own when omitted.
        classes: All classes, the first half of them (base), or the second (new).
        golden_images: Images, drawn by seed, on which the oracle runs.
        batch_size: Images a batch.
        timing_batch: Images a batch when timing; 0 leaves timing out.
        limit: At most so many images, drawn by seed.
        seed: Random seed.
        device: cpu, cuda, cuda:1, mps, ...
    """
    for rate in keep:
        check_keep_rate(rate)
    artefacts = [Pruner.from_pretrained(folder) for folder in pruner]
    loaded = load(model, device, seed)
    images = of_classes(load_data(data, limit, seed), classes)
    if templates:
        images.templates = tuple(templates)
    settings = EvaluationSettings(
        methods=methods,
        keep_rates=keep,
        golden_images=golden_images,
        batch_size=batch_size,
        timing_batch=timing_batch,
        seed=seed,
    )
    _evaluate(loaded, images, artefacts, settings, out)


def _evaluate(loaded: LoadedModel, images: Any, pruners: list[Pruner], settings: EvaluationSettings, out: Path) -> None:
    make_folder(out)
    results, wall = run_evaluation(loaded, images, pruners, settings)
    write_json(out / "results.json", results)
    write_report(results, wall, out / "report.html", f"{images.name} {images.split}, {loaded.name}")
    _print_table(results["rows"])
    totals = results["images"]
    print(f"{totals['in']} images in = {totals['evaluated']} evaluated + {totals['skipped']} skipped")
    print_skipped(results["skipped"])
    print(f"wrote {out / 'results.json'} and {out / 'report.html'}")


def _print_table(rows: list[dict[str, Any]]) -> None:
    shown = {"recall@1": "recall_at_1"} if "recall_at_1" in rows[0] else {"top-1": "top1"}
    heads = [*shown, "cosine", "index@10", "GMACs", "speed-up"]
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
            ratio if ratio == "-" else f"{ratio}x",
        ]
        print(f"{name:<22}{row['keep_rate']:>6.0%}" + "".join(f"{figure:>10}" for figure in figures))
    print("index@10: share of the 10 nearest neighbours in an index of the dense model's features that stay the same")
    print("* oracle: saw the result before it chose; no deployable method")
