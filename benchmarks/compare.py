r"""The dense model, a pruner, every baseline and, if wanted, the oracle side by side, on classes and on captions.

    python benchmarks/compare.py open_clip:local-dir:photos/photo-clip-s14 photos/imagenette/val photos/flowers/val \
        --pruner runs/photos --golden_images 30 --picture docs/images/photos.jpg \
        --out benchmarks/results/compare-photos.json

A run that is killed goes on after the last finished data set.
"""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path
from typing import Any

from common import Results, main

from patchranking.data import ImageData, load_data, subset
from patchranking.evaluation.evaluate import EvaluationSettings, evaluate
from patchranking.evaluation.examples import Example
from patchranking.methods import METHODS
from patchranking.pruner import Pruner
from patchranking.report.page import write_report
from patchranking.report.pictures import examples_picture
from patchranking.report.text import model_name
from patchranking.towers.load import LoadedModel, load_model


def compare(
    model: str,
    data: list[str],
    pruner: Path = Path("runs/fit"),
    out: Path = Path("benchmarks/results/compare.json"),
    keep: list[float] = [1.0, 0.9, 0.8, 0.7, 0.6, 0.5, 0.4],  # noqa: B006
    golden_images: int = 0,
    seeds: int = 3,
    limit: int | None = None,
    timing_batch: int = 16,
    picture: Path | None = None,
    report: Path | None = None,
    examples: int = 4,
) -> None:
    """Compares a pruner with the baselines.

    Args:
        model: The MODEL argument of the command line.
        data: DATA arguments, with classes or captions.
        pruner: Folder written by patchranking fit.
        out: The JSON file.
        keep: Keep rates; methods that do not drop patches are matched by MACs.
        golden_images: Images of each data set for the golden oracle; 0 leaves it out.
        seeds: Seeds 0, 1, ... of the random baseline.
        limit: At most so many images of each data set.
        timing_batch: Images per batch when timing; 0 leaves timing out.
        picture: Picture of the examples.
        report: Report on all data sets as HTML.
        examples: Images of each data set in the picture and the report.
    """
    loaded, fitted, results = load_model(model), Pruner.from_pretrained(pruner), Results(out)
    methods = [name for name, method in METHODS.items() if golden_images or not method.oracle]
    settings = EvaluationSettings(methods, keep, golden_images, timing_batch=timing_batch, examples=0, worst=0)

    def rows_of(images: ImageData) -> dict[str, Any]:
        found, _ = evaluate(loaded, images, [fitted], settings)
        for seed in range(1, seeds):
            again = EvaluationSettings(["random"], keep, timing_batch=0, examples=0, worst=0, seed=seed)
            rows = evaluate(loaded, images, [], again, fitted.fitted)[0]["rows"]
            found["rows"] += [row for row in rows if row["method"] == "random"]
        return found

    found, shown = [], list[Example]()
    for name in data:
        images = load_data(name, limit)
        found.append(results.once(name, partial(rows_of, images)))
        if picture or report:
            shown += _examples(loaded, images, fitted, methods, examples)
    environment, rows = found[-1]["environment"], [row for one in found for row in one["rows"]]
    if picture:
        examples_picture(shown).save(picture, optimize=True)
    if report:
        write_report({"environment": environment, "rows": rows}, shown, report, f"patchranking, {model_name(model)}")
    fit = pruner / "fit.json"
    results.write(environment, rows, fit=json.loads(fit.read_text()) if fit.is_file() else None)


def _examples(model: LoadedModel, data: ImageData, pruner: Pruner, methods: list[str], number: int) -> list[Example]:
    """A few images, drawn by seed, with what the methods keep of them."""
    settings = EvaluationSettings(methods, [0.6, 0.5], number, timing_batch=0, examples=number, worst=0)
    return evaluate(model, subset(data, number, 0), [pruner], settings)[1]


if __name__ == "__main__":
    main(compare)
