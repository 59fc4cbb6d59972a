"""Dense, pruned, merged and cropped models side by side, on classes and on captions.

    python benchmarks/compare.py MODEL '[DATA, ...]' --pruner DIR --out benchmarks/results/compare-NAME.json

Every finished data set is written, and a run that is killed goes on after it. The random baseline is measured with
three seeds.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from jsonargparse import auto_cli

from patchranking.data import load_data
from patchranking.evaluation.evaluate import EvaluationSettings, evaluate
from patchranking.files import write_json
from patchranking.pruner import Pruner
from patchranking.towers.load import load_model

METHODS = ("random", "centre-crop", "cls-attention", "evit", "a-vit", "tome", "low-res")


def main(
    model: str,
    data: list[str],
    pruner: Path = Path("runs/fit"),
    out: Path = Path("benchmarks/results/compare.json"),
    keep: list[float] = [1.0, 0.9, 0.8, 0.7, 0.6, 0.5, 0.4],  # noqa: B006
    seeds: int = 3,
    limit: int | None = None,
    timing_batch: int = 16,
) -> None:
    """Runs the comparison.

    Args:
        model: The MODEL argument of the command line.
        data: DATA arguments, with classes or captions.
        pruner: Folder written by patchranking fit.
        out: The JSON file.
        keep: Keep rates; the methods that do not drop patches are matched by multiply-accumulates.
        seeds: Seeds 0, 1, ... of the random baseline.
        limit: At most so many images of each data set.
        timing_batch: Images a batch when timing.
    """
    torch.manual_seed(0)
    loaded, fitted = load_model(model), Pruner.from_pretrained(pruner)
    partial = out.with_suffix(".partial")
    done: dict[str, dict[str, Any]] = json.loads(partial.read_text()) if partial.is_file() else {}
    out.parent.mkdir(parents=True, exist_ok=True)
    for name in data:
        if name in done:
            continue
        images = load_data(name, limit, 0)
        settings = EvaluationSettings(methods=METHODS, keep_rates=keep, timing_batch=timing_batch, wall=0)
        done[name], _ = evaluate(loaded, images, [fitted], settings)
        for seed in range(1, seeds):
            again = EvaluationSettings(("random",), keep, fitted.schedule, timing_batch=0, wall=0, seed=seed)
            rows = evaluate(loaded, images, [], again)[0]["rows"]
            done[name]["rows"] += [row for row in rows if row["method"] == "random"]
        write_json(partial, done)
    rows = [row for results in done.values() for row in results["rows"]]
    write_json(out, {"environment": done[data[-1]]["environment"], "rows": rows})
    partial.unlink(missing_ok=True)


if __name__ == "__main__":
    auto_cli(main, as_positional=True)
