r"""Ranks networks, objectives and training-set sizes by what they keep of the feature and the accuracy.

    python benchmarks/predictors.py demo demo:test --train demo:train --sizes 1000 250 2000 --train_limit 2000 \
        --limit 1000 --out benchmarks/results/predictors-demo.json

One thing at a time differs from the first of each list, the default. Training images are read once. Imitation learns
the sketched rankings of the same images, of 400 at most before a distillation, as ``fit`` does. Rows with network
cls-attention and random are baselines without a fit. A run that is killed goes on after the last finished fit.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from common import DEFAULTS, Results, main, training_data
from scipy.stats import kendalltau, spearmanr
from torch import Tensor

from patchranking.data import ImageData, load_data, subset
from patchranking.evaluation.cost import count_macs, noise
from patchranking.evaluation.environment import environment
from patchranking.files import as_file_name, make_folder
from patchranking.fitting.cache import FileRows, cache_tokens, with_mirrored
from patchranking.fitting.fit import MATCHED_ON, match_by_keys
from patchranking.methods import Method, PatchRanking
from patchranking.methods.cls_attention import ClsAttention
from patchranking.methods.measure import measure
from patchranking.methods.random import Random, random_importance
from patchranking.methods.tally import DENSE
from patchranking.predictor.distill import distill
from patchranking.predictor.imitate import imitate
from patchranking.predictor.losses import LOSSES
from patchranking.predictor.measures import matching_rate
from patchranking.predictor.networks import NetworkName, Predictor
from patchranking.predictor.targets import FEATURE
from patchranking.pruner import Pruner
from patchranking.pruning.attach import Scorer
from patchranking.pruning.schedule import Schedule
from patchranking.pruning.select import kept_count
from patchranking.ranking.job import rank
from patchranking.ranking.search import SearchSettings
from patchranking.ranking.store import golden_by_index
from patchranking.seeding import seeded
from patchranking.towers.identity import BaseModel
from patchranking.towers.load import LoadedModel, load_model

BLOCK = 3
RATES = (0.8, 0.7, 0.6, 0.5, 0.4, 0.3)
RANKED = 400

Objective = Literal["both", "distill", "listnet", "bce", "margin", "top-list"]


@dataclass(frozen=True)
class Training:
    """Training images: views of the tokens that enter the block, dense features, golden importance of some by row."""

    name: str
    tokens: FileRows
    features: FileRows
    golden: dict[int, Tensor]


@dataclass(frozen=True)
class Test:
    """Test images; of some, the tokens that enter the block and the golden importance."""

    data: ImageData
    tokens: Tensor
    golden: Tensor


def predictors(
    model: str,
    data: list[str],
    train: str | None = None,
    out: Path = Path("benchmarks/results/predictors.json"),
    networks: list[NetworkName] = ["mixer", "transformer", "mlp"],  # noqa: B006
    objectives: list[Objective] = ["both", "distill", "listnet", "bce", "margin", "top-list"],  # noqa: B006
    sizes: list[int] = [1000, 250],  # noqa: B006
    seeds: int = 3,
    steps: int = 1000,
    golden_images: int = 60,
    limit: int | None = None,
    train_limit: int | None = None,
    work: Path = Path("runs/predictors"),
) -> None:
    """Fits predictors and tests them.

    Args:
        model: The MODEL argument of the command line.
        data: DATA arguments to test on.
        train: Training images.
        out: The JSON file.
        networks: mixer, transformer, mlp.
        objectives: both, which is listnet and then distill, distill, listnet, bce, margin, top-list.
        sizes: Numbers of training images.
        seeds: Seeds 0, 1, ... of the sample, the weights and the order.
        steps: Steps of distillation.
        golden_images: Test images of each set whose golden ranking is searched, for the matching rate.
        limit: At most so many images of each test set.
        train_limit: At most so many training images, drawn once for all seeds.
        work: Folder for the rankings.
    """
    images, results, loaded = training_data(train, train_limit), Results(out), load_model(model)
    tests = [_test(loaded, load_data(name, limit), golden_images, work) for name in data]
    training = _training(loaded, images, len(images) if set(objectives) & set(LOSSES) else RANKED, work)
    rows: list[dict[str, Any]] = []
    for seed in range(seeds):
        scorers: dict[Method, Scorer] = {Random(): partial(_at_random, seed)}
        if seed == 0:
            scorers[ClsAttention()] = ClsAttention().scorer(loaded.tower, BLOCK, seed)
        for method, scorer in scorers.items():
            about = {"fit_on": None, "network": method.name, "objective": None, "n_train": 0, "seed": seed}
            baseline = partial(_rows, loaded, tests, method, scorer, about | {"macs_share": None})
            rows += results.once(f"{method.name} {seed}", baseline)
        chosen = [(network, objectives[0], sizes[0]) for network in networks]
        chosen += [(networks[0], objective, sizes[0]) for objective in objectives]
        chosen += [(networks[0], objectives[0], size) for size in sizes]
        for kind in dict.fromkeys(chosen):
            fitted = partial(_fitted, loaded, training, tests, steps, *kind, seed)
            rows += results.once(" ".join(map(str, (*kind, seed))), fitted)
    results.write(environment(loaded.tower.device), rows, defaults=DEFAULTS)


def _at_random(seed: int, tokens: Tensor) -> Tensor:
    return random_importance(tokens.shape[1] - 1, range(len(tokens)), seed)


def _golden(model: LoadedModel, data: ImageData, limit: int, work: Path) -> dict[int, Tensor]:
    """Golden importance of some images by index."""
    some = subset(data, limit, 0)
    folder = work / as_file_name(f"{model.name}-{data.name}-{data.split}-{len(data)}-{len(some)}")
    rank(model, some, folder, SearchSettings(block=BLOCK))
    return golden_by_index(folder, data.keys)


def _training(model: LoadedModel, data: ImageData, ranked: int, work: Path) -> Training:
    golden = _golden(model, data, ranked, work)
    used, _, tokens, features = cache_tokens(
        model, data, None, BLOCK, FEATURE, make_folder(work / f"{as_file_name(data.name)}-fit"), mirrored=True
    )
    assert features is not None
    by_row = {row: golden[image] for row, image in enumerate(used) if image in golden}
    return Training(f"{data.name}/{data.split}", tokens, features, by_row)


def _test(model: LoadedModel, data: ImageData, golden_images: int, work: Path) -> Test:
    golden = _golden(model, data, golden_images, work)
    folder = make_folder(work / f"{as_file_name(data.name)}-test")
    used, _, tokens, _ = cache_tokens(model, data, sorted(golden), BLOCK, None, folder)
    return Test(data, tokens[0, torch.arange(len(used))].float(), torch.stack([golden[image] for image in used]))


def _fitted(
    model: LoadedModel,
    training: Training,
    tests: Sequence[Test],
    steps: int,
    network: str,
    objective: str,
    size: int,
    seed: int,
) -> list[dict[str, Any]]:
    tower, schedule = model.tower, Schedule({BLOCK: 0.5})
    rows = torch.randperm(training.tokens.shape[1], generator=torch.Generator().manual_seed(seed))[:size]
    with seeded(seed):
        distilled = objective in ("distill", "both")
        predictor = Predictor.for_tower(tower, network, merges=distilled)
        if objective != "distill":
            ranked = [row for row in rows.tolist() if row in training.golden]
            ranked = ranked[: RANKED if objective == "both" else None]
            views = with_mirrored(torch.stack([training.golden[row] for row in ranked]), tower.grid)
            imitate(predictor, training.tokens.of(ranked), views, LOSSES.get(objective, LOSSES["listnet"]), seed=seed)
        predictor.to(tower.device)
        if distilled:
            tokens, features = training.tokens.of(rows.tolist()), training.features.of(rows.tolist())
            match_by_keys(tower, {BLOCK: predictor}, tokens[0, torch.arange(min(len(rows), MATCHED_ON))], BLOCK)
            distill({BLOCK: predictor}, tower, tokens, features, schedule, steps, seed=seed)
    pruner = Pruner({BLOCK: predictor}, BaseModel.of(tower, model.name), schedule).eval()
    half = partial(predictor.prune, count=kept_count(0.5, tower.num_patches))
    scoring = count_macs(half, tests[0].tokens[:1].to(tower.device))
    about = {
        "fit_on": training.name,
        "network": network,
        "objective": objective,
        "n_train": len(rows),
        "seed": seed,
        "macs_share": scoring / count_macs(tower, noise(tower, 1)),
    }
    return _rows(model, tests, PatchRanking(pruner), predictor, about)


@torch.inference_mode()
def _rows(
    model: LoadedModel, tests: Sequence[Test], method: Method, scorer: Scorer, about: dict[str, Any]
) -> list[dict[str, Any]]:
    tower, rows = model.tower, []
    for test in tests:
        encodings = {rate: method.at(tower, Schedule({BLOCK: rate}), about["seed"]) for rate in RATES}
        tally = measure(model, test.data, encodings)
        scores = scorer(test.tokens.to(tower.device)).cpu()
        order = {"kendall": _mean(kendalltau, scores, test.golden), "spearman": _mean(spearmanr, scores, test.golden)}
        for rate in RATES:
            count = kept_count(rate, tower.num_patches)
            found = {
                "dataset": f"{test.data.name}/{test.data.split}",
                "keep_rate": rate,
                "n_images": tally.count(rate),
                "top1": tally.mean(rate, "top1"),
                "top1_dense": tally.mean(DENSE, "top1"),
                "feature_cosine": tally.mean(rate, "feature_cosine"),
                "chance": count / tower.num_patches,
                "matching_rate": matching_rate(scores, test.golden, count),
            }
            rows.append(about | found | order)
    return rows


def _mean(statistic: Callable[..., Any], scores: Tensor, golden: Tensor) -> float:
    """A rank correlation of each image's patches, averaged over images; 0 where undefined."""
    pairs = zip(scores.numpy(), golden.numpy(), strict=True)
    return float(np.mean([np.nan_to_num(statistic(*pair).statistic) for pair in pairs]))


if __name__ == "__main__":
    main(predictors)
