"""Ranks networks, objectives and training-set sizes by what they keep of the feature and the accuracy.

    python benchmarks/predictors.py MODEL DATA '[TEST, ...]' --out benchmarks/results/predictors-NAME.json

One thing at a time differs from the first of each list, the default. Images are read once. Imitation learns the
sketched rankings of the same images, of 400 at most before a distillation, as ``fit`` does. Every finished fit is
written, so a killed run goes on where it stopped. Rows with network cls-attention and random are baselines without a
fit.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from jsonargparse import auto_cli
from torch import Tensor

from patchranking.data import ImageData, load_data, subset
from patchranking.evaluation.cost import count_macs
from patchranking.evaluation.environment import environment
from patchranking.files import as_file_name, write_json
from patchranking.fitting.fit import cache_tokens, with_mirrored
from patchranking.methods import BASELINES
from patchranking.methods.tally import zero_shot_classes
from patchranking.predictor.distill import distill
from patchranking.predictor.imitate import imitate
from patchranking.predictor.losses import LOSSES
from patchranking.predictor.measures import kendall, matching_rate, spearman
from patchranking.predictor.networks import Predictor
from patchranking.pruning.select import kept_count, top_patches
from patchranking.pruning.stages import Drop, dropping
from patchranking.ranking.job import rank
from patchranking.ranking.objectives import feature_damage
from patchranking.ranking.search import SearchSettings
from patchranking.ranking.store import iter_rankings
from patchranking.towers.load import LoadedModel, load_model

BLOCK = 3
RATES = (0.8, 0.7, 0.6, 0.5, 0.4, 0.3)
RANKED = 400


@dataclass
class Images:
    """A data set read once: views of tokens and dense features, golden importance of some, labels, classes."""

    name: str
    tokens: Tensor
    features: Tensor
    golden: dict[int, Tensor]
    labels: Tensor | None
    classes: Tensor | None


def main(
    model: str,
    data: str,
    test: list[str],
    out: Path = Path("benchmarks/results/predictors.json"),
    networks: list[str] = ["mixer", "transformer", "mlp"],  # noqa: B006
    objectives: list[str] = ["both", "distill", *LOSSES],  # noqa: B006
    sizes: list[int] = [1000, 250],  # noqa: B006
    seeds: int = 3,
    steps: int = 300,
    golden_images: int = 60,
    train_limit: int | None = None,
    limit: int | None = None,
    work: Path = Path("runs/predictors"),
) -> None:
    """Runs the comparison.

    Args:
        model: The MODEL argument of the command line.
        data: Training images.
        test: DATA arguments to test on.
        out: The JSON file.
        networks: mixer, transformer, mlp.
        objectives: both, which is listnet and then distill, distill, listnet, bce, margin, top-list.
        sizes: Numbers of training images.
        seeds: Seeds 0, 1, ... of the sample, the weights and the order.
        steps: Steps of distillation.
        golden_images: Test images of each set whose golden ranking is searched, for the matching rate.
        train_limit: At most so many training images, drawn once for all seeds.
        limit: At most so many images of each test set.
        work: Folder for the rankings.
    """
    loaded = load_model(model)
    ranked = sys.maxsize if set(objectives) & set(LOSSES) else RANKED
    train = _read(loaded, load_data(data, train_limit, 0), ranked, work, mirrored=True)
    tests = [_read(loaded, load_data(name, limit, 0), golden_images, work) for name in test]
    done: dict[str, list[dict[str, Any]]] = {}
    unfinished = out.with_suffix(".partial")
    if unfinished.is_file():
        done = json.loads(unfinished.read_text())
    out.parent.mkdir(parents=True, exist_ok=True)

    def keep(name: str, rows: Callable[[], list[dict[str, Any]]]) -> None:
        if name not in done:
            done[name] = rows()
            write_json(unfinished, done)
            half = [row for row in done[name] if row["keep_rate"] == 0.5]
            print(name, *(f"{row['dataset']} {row['top1']} {row['feature_cosine']:.4f}" for row in half), flush=True)

    for seed in range(seeds):
        for name in ("random", "cls-attention") if seed == 0 else ("random",):
            scorer = BASELINES[name](loaded.tower, BLOCK, seed)
            drop = dropping(scorer, loaded.tower.num_prefix_tokens)
            about = {"fit_on": None, "network": name, "objective": None, "n_train": 0, "seed": seed, "macs_share": None}
            keep(f"{name} {seed}", partial(_rows, loaded, scorer, drop, tests, about))
        default = (networks[0], objectives[0], sizes[0])
        others = [(network, *default[1:]) for network in networks]
        others += [(default[0], objective, default[2]) for objective in objectives]
        others += [(*default[:2], size) for size in sizes]
        for chosen in dict.fromkeys(others):
            name = " ".join(map(str, (*chosen, seed)))
            keep(name, partial(_fit, loaded, train, tests, steps, *chosen, seed))
    rows = [row for rows in done.values() for row in rows]
    write_json(out, {"environment": environment(loaded.tower.device), "rows": rows})
    unfinished.unlink()


def _read(
    model: LoadedModel, images: ImageData, golden_images: int | None, work: Path, mirrored: bool = False
) -> Images:
    used, _, tokens, features = cache_tokens(model, images, None, BLOCK, dense=True, mirrored=mirrored)
    assert features is not None
    golden: dict[int, Tensor] = {}
    if golden_images is not None:
        ranked = subset(images, golden_images, 0)
        folder = work / as_file_name(f"{model.name}-{images.name}-{images.split}-{len(ranked)}")
        rank(model, ranked, folder, SearchSettings(block=BLOCK))
        place = {images.keys[index]: row for row, index in enumerate(used)}
        golden = {place[key]: torch.from_numpy(row) for key, row in iter_rankings(folder) if key in place}
    labels = None if images.labels is None else torch.tensor([images.labels[index] for index in used])
    classes = zero_shot_classes(model, images)
    return Images(f"{images.name}/{images.split}", tokens, features, golden, labels, classes)


def _fit(
    model: LoadedModel,
    train: Images,
    tests: list[Images],
    steps: int,
    network: str,
    objective: str,
    size: int,
    seed: int,
) -> list[dict[str, Any]]:
    torch.manual_seed(seed)
    tower = model.tower
    predictor = Predictor(tower.width, tower.num_prefix_tokens, tower.num_patches, network)
    rows = torch.randperm(train.tokens.shape[1], generator=torch.Generator().manual_seed(seed))[:size]
    if objective != "distill":
        ranked = torch.tensor([row for row in rows.tolist() if row in train.golden])
        ranked = ranked[: RANKED if objective == "both" else None]
        importance = torch.stack([train.golden[row] for row in ranked.tolist()])
        views = with_mirrored(importance, tower.grid)
        imitate(predictor, train.tokens[:, ranked], views, LOSSES.get(objective, LOSSES["listnet"]), seed=seed)
    if objective in ("distill", "both"):
        distill(predictor, tower, train.tokens[:, rows], train.features[:, rows], BLOCK, steps, seed=seed)
    predictor.eval()
    scoring = count_macs(lambda tokens: predictor.correct(tokens, 0.5), train.tokens[0, :1].float())
    dense = count_macs(tower, torch.zeros(1, 3, *tower.image_size, dtype=tower.dtype))
    about = {"fit_on": train.name, "network": network, "objective": objective, "n_train": len(rows), "seed": seed}
    return _rows(model, predictor, predictor.prune, tests, about | {"macs_share": scoring / dense})


@torch.inference_mode()
def _rows(
    model: LoadedModel, scorer: Callable[[Tensor], Tensor], drop: Drop, tests: list[Images], about: dict[str, Any]
) -> list[dict[str, Any]]:
    return [row for images in tests for row in _test(model, scorer, drop, images, about)]


def _test(
    model: LoadedModel, scorer: Callable[[Tensor], Tensor], drop: Drop, images: Images, about: dict[str, Any]
) -> list[dict[str, Any]]:
    tower, patches = model.tower, model.tower.num_patches
    some = sorted(images.golden)
    scores = scorer(images.tokens[0, some].float()) if some else None
    golden = torch.stack([images.golden[row] for row in some]) if some else None
    rows = []
    for rate in RATES:
        count = kept_count(rate, patches)
        batches = images.tokens[0].split(64)
        features = torch.cat(
            [tower.pool(tower.run(drop(tokens.float(), count, top_patches), BLOCK)) for tokens in batches]
        )
        agreement = {}
        if scores is not None and golden is not None:
            agreement = {
                "matching_rate": matching_rate(scores, golden, count),
                "kendall": kendall(scores, golden),
                "spearman": spearman(scores, golden),
            }
        rows.append(
            about
            | {
                "dataset": images.name,
                "keep_rate": rate,
                "n_images": len(features),
                "top1": _top1(features, images),
                "top1_dense": _top1(images.features[0], images),
                "feature_cosine": 1 - feature_damage(features, images.features[0]).mean().item(),
                "chance": count / patches,
            }
            | agreement
        )
    return rows


def _top1(features: Tensor, images: Images) -> float | None:
    if images.classes is None or images.labels is None:
        return None
    return 100 * (features @ images.classes.T).argmax(1).eq(images.labels).float().mean().item()


if __name__ == "__main__":
    auto_cli(main, as_positional=True)
