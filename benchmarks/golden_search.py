"""Searches for the golden ranking, compared on the same images.

    python benchmarks/golden_search.py demo demo:test --limit 20 --out benchmarks/results/golden_search-demo.json

Every batch of images goes through every search in turn, so that all are timed under the same load; leave-out, the
paper's search, is always among them, with windows of 1, 2 and 3 patches. Errors are compared with those of its best
window at the same keep rate, costs with those of single patches. Every row is an oracle: a golden ranking looks at the
result before it chooses. A run that is killed goes on after the last finished batch.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from common import Results, main
from torch import Tensor

from patchranking.data import ImageData, load_data, read_batches
from patchranking.evaluation.cost import count_macs
from patchranking.evaluation.environment import environment
from patchranking.methods.golden import by_golden
from patchranking.methods.measure import measure
from patchranking.methods.tally import DENSE
from patchranking.pruning.schedule import Schedule
from patchranking.pruning.select import kept_count
from patchranking.ranking.ranking import places
from patchranking.ranking.search import SEARCHES, ScoreName, Search, SearchName, SearchSettings, prepare_search
from patchranking.towers import VisionTower, as_tower
from patchranking.towers.load import LoadedModel, load_model

LEAVE_OUT = {f"leave-out, r = {window}": window for window in (1, 2, 3)}
BASELINE = next(iter(LEAVE_OUT))
RATES = (0.8, 0.7, 0.6, 0.5, 0.4, 0.3, 0.2)
IMAGES_PER_BATCH = 4

Run = tuple[str, int]
"""Name of a search and seed of its probes."""


def golden_search(
    model: str,
    data: list[str],
    out: Path = Path("benchmarks/results/golden_search.json"),
    searches: list[SearchName] = ["sketched", "sketched-quality", "leave-out", "iterative"],  # noqa: B006
    score: ScoreName = "preservation",
    seeds: int = 3,
    limit: int = 40,
    sizes: list[int] = [224, 384],  # noqa: B006
) -> None:
    """Measures feature error, zero-shot top-1, MACs and seconds of each search.

    Args:
        model: The MODEL argument of the command line.
        data: DATA arguments.
        out: The JSON file.
        searches: Which searches; leave-out is added.
        score: preservation, label or confidence.
        seeds: Seeds 0, 1, ... of the probes, for the searches that have any.
        limit: At most so many images of each data set.
        sizes: Image sizes, in pixels, for which the MACs on ViT-B/16 are counted.
    """
    loaded, results = load_model(model), Results(out)
    runs: dict[Run, SearchSettings] = {}
    for name in SEARCHES:
        if name == "leave-out":
            runs |= {(label, 0): SearchSettings(name, score, window=window) for label, window in LEAVE_OUT.items()}
        elif name in searches:
            drawn = range(seeds if name.startswith("sketched") else 1)
            runs |= {(name, seed): SearchSettings(name, score, seed=seed) for seed in drawn}
    rows = [row for name in data for row in _rows(loaded, load_data(name, limit), runs, results, name)]
    costs = [row for size in sizes for row in results.once(f"MACs at {size}", partial(_cost, size, _once(runs)))]
    results.write(environment(loaded.tower.device), rows, cost_by_patches=costs)


def _rows(
    model: LoadedModel, data: ImageData, runs: Mapping[Run, SearchSettings], results: Results, name: str
) -> list[dict[str, Any]]:
    tower, own = model.tower, _once(runs)
    golden, seconds = _searched(model, data, runs, results, name)
    keys = [(run, rate) for rate in RATES for run in runs]
    encodings = {(run, rate): by_golden(tower, Schedule({runs[run].block: rate}), golden[run]) for run, rate in keys}
    tally = measure(model, data, encodings)
    errors = {key: 1 - (tally.mean(key, "feature_cosine") or 0) for key in keys}
    best = {rate: min(errors[(label, 0), rate] for label in LEAVE_OUT) for rate in RATES}
    macs = {name: _macs(tower, settings) for name, settings in own.items()}
    return [
        {
            "model": model.name,
            "dataset": data.name,
            "split": data.split,
            "search": run[0],
            "score": runs[run].score,
            "settings": runs[run].to_dict(),
            "keep_rate": rate,
            "kept_patches": kept_count(rate, tower.num_patches),
            "seed": run[1],
            "n_images": tally.count((run, rate)),
            "oracle": True,
            "feature_error": errors[run, rate],
            "feature_error_ratio": errors[run, rate] / best[rate],
            "top1": tally.mean((run, rate), "top1"),
            "top1_dense": tally.mean(DENSE, "top1"),
            "gmacs": macs[run[0]] / 1e9,
            "gmacs_ratio": macs[run[0]] / macs[BASELINE],
            "seconds": float(np.median(seconds[run])),
            "seconds_ratio": float(np.median(np.divide(seconds[run], seconds[BASELINE, 0]))),
        }
        for run, rate in keys
    ]


def _once(runs: Mapping[Run, SearchSettings]) -> dict[str, SearchSettings]:
    """Settings by name, without the seeds."""
    return {name: settings for (name, seed), settings in runs.items() if seed == 0}


def _searched(
    model: LoadedModel, data: ImageData, runs: Mapping[Run, SearchSettings], results: Results, name: str
) -> tuple[dict[Run, dict[int, Tensor]], dict[Run, list[float]]]:
    """Golden importance of every image by every search, and seconds per image of every batch."""
    searches = {run: prepare_search(model, data, settings) for run, settings in runs.items()}
    golden: dict[Run, dict[int, Tensor]] = {run: {} for run in runs}
    seconds: dict[Run, list[float]] = {run: [] for run in runs}
    for images, pixels in read_batches(data, model.preprocess, IMAGES_PER_BATCH, {}, None, "search"):
        found = results.once(f"{name} image {images[0]}", partial(_in_turn, searches, pixels, images))
        for run, (orders, took) in zip(runs, found, strict=True):
            golden[run].update(zip(images, places(torch.tensor(orders)), strict=True))
            seconds[run].append(took)
    return golden, seconds


def _in_turn(
    searches: Mapping[Run, Search], pixels: Tensor, images: Sequence[int]
) -> list[tuple[list[list[int]], float]]:
    """Removal orders by every search and its seconds per image, after a warm-up."""
    searches[BASELINE, 0](pixels[:1], images[:1])
    found = []
    for search in searches.values():
        began = time.perf_counter()
        orders = search(pixels, images).removal_order
        found.append((orders.tolist(), (time.perf_counter() - began) / len(images)))
    return found


def _macs(tower: VisionTower, settings: SearchSettings) -> float:
    """MACs of a search on one image, backward passes included."""
    pixels = torch.zeros(1, 3, *tower.image_size, dtype=tower.dtype, device=tower.device)
    return count_macs(lambda batch: settings.function(tower, batch, **settings.arguments), pixels)


def _cost(size: int, searches: Mapping[str, SearchSettings]) -> list[dict[str, Any]]:
    """MACs of every search on ViT-B/16, counted on a model without data."""
    import timm  # after patchranking, which makes torchvision importable beside a CPU-only torch

    with torch.device("meta"):
        model = timm.create_model("vit_base_patch16_clip_224", pretrained=False, img_size=size, num_classes=512)
    tower = as_tower(model.eval().requires_grad_(False))
    dense = count_macs(model, torch.empty(1, 3, size, size, device="meta"))
    macs = {name: _macs(tower, settings) for name, settings in searches.items()}
    return [
        {
            "model": f"ViT-B/16 at {size} px",
            "patches": (size // 16) ** 2,
            "search": name,
            "gmacs": macs[name] / 1e9,
            "dense_forwards": macs[name] / dense,
            "gmacs_ratio": macs[name] / macs[BASELINE],
        }
        for name in searches
    ]


if __name__ == "__main__":
    main(golden_search)
