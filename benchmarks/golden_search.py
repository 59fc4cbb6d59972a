"""Searches for the golden ranking, compared on the same images.

    python benchmarks/golden_search.py MODEL DATA --out benchmarks/results/golden_search-NAME.json

Every batch of images goes through every search in turn, so that all are timed under the same load; leave-out is always
among them, because all ratios are to leave-out. With --searches only some are run, and what the file already has of
the others on the same images stays. Every row is an oracle: a golden ranking looks at the result before it chooses.
"""

from __future__ import annotations

import copy
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jsonargparse import auto_cli
from torch import Tensor, nn

from patchranking.data import ImageData, load_data, read_batches
from patchranking.evaluation.cost import count_macs
from patchranking.evaluation.environment import environment
from patchranking.files import write_json
from patchranking.methods.tally import zero_shot_classes
from patchranking.pruning.select import gather_tokens, kept_count
from patchranking.ranking.objectives import feature_damage
from patchranking.ranking.search import SEARCHES, SearchSettings, prepare_search
from patchranking.towers import as_tower
from patchranking.towers.load import LoadedModel, load_model

BASELINE = "leave-out"
Run = tuple[str, int]
RATES = (0.8, 0.7, 0.6, 0.5, 0.4, 0.3, 0.2)
IMAGES_PER_BATCH = 4


def main(
    model: str,
    data: str,
    out: Path = Path("golden_search.json"),
    limit: int = 40,
    searches: list[str] = list(SEARCHES),  # noqa: B006
    probe_seeds: int = 3,
    score: str = "preservation",
    seed: int = 0,
) -> None:
    """Measures feature error, zero-shot top-1, MACs and seconds of each search.

    Args:
        model: The MODEL argument of the command line.
        data: The DATA argument of the command line.
        out: The JSON file.
        limit: Images, drawn by seed.
        searches: Which searches; leave-out is added.
        probe_seeds: Seeds of the probes, for the searches that have any.
        score: preservation, label or confidence.
        seed: Seed of the sample of images.
    """
    loaded, images = load_model(model), load_data(data, limit, seed)
    runs = {
        (name, probe_seed): SearchSettings(name, score, seed=probe_seed)
        for name in dict.fromkeys([BASELINE, *searches])
        for probe_seed in range(probe_seeds if name.startswith("sketched") else 1)
    }
    progress = out.with_name(f"{out.stem}.{'+'.join(dict.fromkeys(name for name, _ in runs))}.partial")
    orders, seconds, pixels, indices = _rank(loaded, images, runs, progress)
    quality = _judge(loaded, images, indices, pixels, runs[BASELINE, 0].block)
    baseline = {rate: quality(orders[BASELINE, 0], rate)[0] for rate in RATES}
    baseline_macs = _macs(loaded.model, runs[BASELINE, 0])
    top1_dense = quality(orders[BASELINE, 0], 1.0)[1]
    rows = []
    for (name, probe_seed), settings in runs.items():
        macs = _macs(loaded.model, settings)
        for rate in RATES:
            error, top1 = quality(orders[name, probe_seed], rate)
            rows.append(
                {
                    "model": model,
                    "dataset": images.name,
                    "split": images.split,
                    "search": name,
                    "score": score,
                    "settings": settings.to_dict(),
                    "keep_rate": rate,
                    "kept_patches": kept_count(rate, loaded.tower.num_patches),
                    "seed": probe_seed,
                    "n_images": len(pixels),
                    "oracle": True,
                    "feature_error": error,
                    "feature_error_ratio": error / baseline[rate],
                    "top1": top1,
                    "top1_dense": top1_dense,
                    "gmacs": macs / 1e9,
                    "gmacs_ratio": macs / baseline_macs,
                    "seconds": float(np.median(seconds[name, probe_seed])),
                    "seconds_ratio": float(np.median(np.divide(seconds[name, probe_seed], seconds[BASELINE, 0]))),
                }
            )
    environments = {name: environment(loaded.tower.device) for name, _ in runs}
    kept = _earlier(out, rows[0], {str(row["search"]) for row in rows})
    merged = {"environment": kept["environment"] | environments, "rows": kept["rows"] + rows}
    merged["rows"].sort(key=lambda row: (-row["keep_rate"], SEARCHES.index(row["search"]), row["seed"]))
    merged["cost_by_patches"] = _cost_by_patches(list(dict.fromkeys(row["search"] for row in merged["rows"])))
    out.parent.mkdir(parents=True, exist_ok=True)
    write_json(out, merged)
    progress.unlink()
    _print(merged)


def _rank(
    model: LoadedModel, data: ImageData, runs: dict[Run, SearchSettings], progress: Path
) -> tuple[dict[Run, Tensor], dict[Run, list[float]], Tensor, list[int]]:
    """Removal orders and seconds per image of every run, pixels and indices; goes on where a killed run stopped."""
    prepared = {run: prepare_search(model, data, settings) for run, settings in runs.items()}
    done: list[dict[str, Any]] = json.loads(progress.read_text()) if progress.is_file() else []
    batches: list[Tensor] = []
    indices: list[int] = []
    for found, pixels in read_batches(data, model.preprocess, IMAGES_PER_BATCH, {}, None, "rank"):
        if len(batches) == len(done):
            prepared[BASELINE, 0](pixels[:1], found[:1])  # warm-up
            done.append({})
            for run, search in prepared.items():
                began = time.perf_counter()
                order = search(pixels, found).removal_order
                done[-1][str(run)] = [order.tolist(), (time.perf_counter() - began) / len(found)]
            write_json(progress, done)
        batches.append(pixels)
        indices += found
    orders = {run: torch.cat([torch.tensor(part[str(run)][0]) for part in done]) for run in runs}
    seconds = {run: [part[str(run)][1] for part in done] for run in runs}
    return orders, seconds, torch.cat(batches), indices


def _judge(
    model: LoadedModel, data: ImageData, indices: list[int], pixels: Tensor, block: int
) -> Callable[[Tensor, float], tuple[float, float | None]]:
    """Returns a function of removal orders and a keep rate: mean feature error and zero-shot top-1 in percent."""
    tower = model.tower
    with torch.inference_mode():
        tokens = tower.embed(pixels, block)
        full = tower.pool(tower.run(tokens, block))
        classes = zero_shot_classes(model, data)
        labels = None if data.labels is None else torch.tensor([data.labels[index] for index in indices])

    @torch.inference_mode()
    def quality(order: Tensor, rate: float) -> tuple[float, float | None]:
        kept = order[:, -kept_count(rate, tower.num_patches) :].sort(dim=1).values
        features = tower.pool(tower.run(gather_tokens(tokens, kept, tower.num_prefix_tokens), block))
        top1 = None
        if classes is not None and labels is not None:
            top1 = 100 * (features.float() @ classes.T).argmax(1).eq(labels).float().mean().item()
        return feature_damage(features, full).mean().item(), top1

    return quality


def _macs(model: nn.Module, settings: SearchSettings) -> float:
    """MACs of a search on one image, backward passes included, counted on a model without data."""
    shadow = as_tower(copy.deepcopy(model).to("meta"))
    pixels = torch.empty(1, 3, *shadow.image_size, device="meta")
    return count_macs(lambda batch: settings.function(shadow, batch, **settings.arguments), pixels)


def _cost_by_patches(searches: list[str]) -> list[dict[str, Any]]:
    """MACs of every search on ViT-B/16 at 224 and 384 pixels, whose cost does not depend on the weights."""
    import timm  # after patchranking, which makes torchvision importable beside a CPU-only torch

    rows = []
    for size in (224, 384):
        with torch.device("meta"):
            model = timm.create_model("vit_base_patch16_clip_224", pretrained=False, img_size=size, num_classes=512)
        model.eval().requires_grad_(False)
        baseline = _macs(model, SearchSettings(BASELINE))
        dense = count_macs(model, torch.empty(1, 3, size, size, device="meta"))
        for name in searches:
            macs = _macs(model, SearchSettings(name))
            patches = (size // 16) ** 2
            rows.append(
                {
                    "model": f"ViT-B/16 at {size} px",
                    "patches": patches,
                    "search": name,
                    "gmacs": macs / 1e9,
                    "dense_forwards": macs / dense,
                    "gmacs_ratio": macs / baseline,
                }
            )
    return rows


def _earlier(out: Path, like: dict[str, Any], measured: set[str]) -> dict[str, Any]:
    """What the file holds of other searches on the same images."""
    if not out.is_file():
        return {"environment": {}, "rows": []}
    earlier = json.loads(out.read_text())
    same = ("model", "dataset", "split", "score", "n_images")
    rows = [
        row
        for row in earlier["rows"]
        if row["search"] not in measured and all(row[field] == like[field] for field in same)
    ]
    names = {row["search"] for row in rows}
    return {"environment": {n: e for n, e in earlier["environment"].items() if n in names}, "rows": rows}


def _print(results: dict[str, Any]) -> None:
    rows = results["rows"]
    for rate in RATES:
        some = [row for row in rows if row["keep_rate"] == rate]
        print(f"\nkeep {rate:.0%}, dense top-1 {some[0]['top1_dense']}")
        print(f"{'search':<18}{'1 - cos':>18}{'ratio':>15}{'top-1':>8}{'GMACs':>9}{'ratio':>8}{'s':>8}{'ratio':>8}")
        for name in dict.fromkeys(row["search"] for row in some):
            mine = [row for row in some if row["search"] == name]
            error, ratio = ([row[key] for row in mine] for key in ("feature_error", "feature_error_ratio"))
            top1 = "-" if mine[0]["top1"] is None else f"{np.mean([row['top1'] for row in mine]):.2f}"
            print(
                f"{name:<18}{np.mean(error):>9.5f} ±{np.std(error):.5f}{np.mean(ratio):>7.3f} ±{np.std(ratio):.3f}"
                f"{top1:>8}{mine[0]['gmacs']:>9.1f}{mine[0]['gmacs_ratio']:>8.3f}"
                f"{np.mean([r['seconds'] for r in mine]):>8.2f}{np.mean([r['seconds_ratio'] for r in mine]):>8.3f}"
            )
    print("\nAll of them are oracles. Cost of one image by patches, in dense forward passes and against leave-out:")
    for row in results["cost_by_patches"]:
        print(
            f"{row['patches']:>5} patches {row['search']:<18}{row['dense_forwards']:>10.1f}{row['gmacs_ratio']:>8.4f}"
        )


if __name__ == "__main__":
    auto_cli(main, as_positional=True)
