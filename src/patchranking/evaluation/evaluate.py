"""Compares ways of choosing patches on the same images, at the same block and the same counts."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from patchranking.data import ImageData, read_batches
from patchranking.errors import UserError
from patchranking.evaluation.cost import analytic_macs, count_macs, images_per_second
from patchranking.evaluation.environment import environment
from patchranking.evaluation.tally import Tally, object_share, zero_shot_classes
from patchranking.pruning.attach import Scorer, attach_reductions, scorer_attached
from patchranking.pruning.baselines import BASELINES, ENCODERS, REDUCTIONS
from patchranking.pruning.pruner import Pruner
from patchranking.pruning.schedule import Schedule
from patchranking.pruning.select import gather_tokens, kept_count, top_patches
from patchranking.ranking.sketched import sketched
from patchranking.report.wall import WallImage
from patchranking.towers.load import LoadedModel

__all__ = ["ORACLES", "EvaluationSettings", "evaluate"]

ORACLES = ("golden",)
"""Methods that look at the result before they choose; no deployable method."""

_WALL_METHODS = ("patchranking", "cls-attention")
_WALL_RATES = (0.6, 0.5)
_GOLDEN_IMAGES_PER_BATCH = 8
_TUNED = " + "
"""Between a method and the kind of its tuned tokens, in the names that stay inside this file."""


@dataclass(frozen=True)
class EvaluationSettings:
    """What to compare.

    Attributes:
        methods: Baselines and ``golden``; ``dense`` and the pruners given are always there.
        keep_rates: Shares of the patches kept; 1.0 is the dense row.
        block: Where patches go when no pruner is given.
        golden_images: Images, drawn by seed, for the golden oracle, which runs the model many times on each.
        batch_size: Images a batch.
        timing_batch: Images a batch when timing; 0 leaves timing out.
        wall: Images on the report's wall.
        seed: Seed of the random baseline and of the golden images.
    """

    methods: Sequence[str] = ("random", "cls-attention", "evit", "tome", "golden")
    keep_rates: Sequence[float] = (1.0, 0.9, 0.8, 0.7, 0.6, 0.5, 0.4)
    block: int = 3
    golden_images: int = 100
    batch_size: int = 32
    timing_batch: int = 16
    wall: int = 8
    seed: int = 0


@dataclass
class _Run:
    """State of one evaluation."""

    model: LoadedModel
    data: ImageData
    settings: EvaluationSettings
    block: int
    rates: list[float]
    scorers: dict[str, Scorer]
    encoders: dict[str, dict[float, Schedule]]
    pruner: Pruner | None
    tuned: dict[str, Pruner]
    tuned_classes: dict[str, Tensor | None]
    tally: Tally
    golden: set[int]
    wall: list[WallImage] = field(default_factory=list)
    skipped: dict[str, str] = field(default_factory=dict)


def evaluate(
    model: LoadedModel, data: ImageData, pruners: Sequence[Pruner], settings: EvaluationSettings
) -> tuple[dict[str, Any], list[WallImage]]:
    """Measures accuracy, feature cosine, cost and speed.

    Args:
        model: The dense model.
        data: The images, labelled for top-1.
        pruners: A pruner fitted to the model, and others tuned from it, at most one of each kind of tokens; none for
            the baselines alone.
        settings: What to compare.

    Returns:
        The content of results.json and the images of the report's wall.

    Raises:
        UserError: If a method or keep rate is unknown, two pruners are of a kind, tuned tokens do not fit the classes,
            or no image can be read.
    """
    run = _prepare(model, data, pruners, settings)
    with torch.inference_mode():
        for images, pixels in read_batches(data, model.preprocess, settings.batch_size, run.skipped, None, "evaluate"):
            _measure(run, images, pixels.to(model.tower.device, model.tower.dtype))
    if not run.tally.count(("dense", 1.0)):
        raise UserError(
            f"None of the {len(data)} images could be read, for example: {next(iter(run.skipped.items()))}."
        )
    totals = {"in": len(data), "evaluated": run.tally.count(("dense", 1.0)), "skipped": len(run.skipped)}
    results = {
        "environment": environment(model.tower.device) | {"dtype": str(model.tower.dtype).removeprefix("torch.")},
        "rows": _rows(run),
        "images": totals,
        "skipped": run.skipped,
    }
    return results, run.wall


def _prepare(model: LoadedModel, data: ImageData, pruners: Sequence[Pruner], settings: EvaluationSettings) -> _Run:
    known = [*BASELINES, *ENCODERS, *ORACLES]
    unknown = [name for name in settings.methods if name not in known]
    if unknown:
        raise UserError(f"Unknown method '{unknown[0]}': choose from {', '.join(known)}.")
    block = settings.block
    for one in pruners:
        one.base.check(model.tower)
        one.to(model.tower.device)
    kinds = [one.tuned for one in pruners]
    if len(set(kinds)) < len(kinds):
        raise UserError(f"Two pruners hold the same kind of tokens, {', '.join(kinds)}: give one of each.")
    by_kind = dict(zip(kinds, pruners, strict=True))
    pruner = by_kind.pop("none", pruners[0].untuned if pruners else None)
    if pruner is not None:
        block = pruner.schedule.block
    for rate in settings.keep_rates:
        Schedule({block: rate}).check(model.tower)
    rates = sorted({float(rate) for rate in settings.keep_rates if rate < 1}, reverse=True)
    scorers = {
        name: BASELINES[name](model.tower, block, settings.seed) for name in settings.methods if name in BASELINES
    }
    if pruner is not None:
        scorers["patchranking"] = pruner
    encoders = {
        name: {rate: ENCODERS[name][0](model.tower, block, kept_count(rate, model.tower.num_patches)) for rate in rates}
        for name in settings.methods
        if name in ENCODERS
    }
    golden = np.random.default_rng(settings.seed).permutation(len(data))[: settings.golden_images]
    chosen = set(golden.tolist()) if "golden" in settings.methods else set()
    tuned_classes = {kind: _tuned_classes(model, data, one) for kind, one in by_kind.items()}
    tally = Tally(zero_shot_classes(model, data))
    return _Run(model, data, settings, block, rates, scorers, encoders, pruner, by_kind, tuned_classes, tally, chosen)


def _tuned_classes(model: LoadedModel, data: ImageData, pruner: Pruner) -> Tensor | None:
    """Text features that go with tuned tokens; None where the text encoder is left alone, or without classes."""
    if data.labels is None or pruner.tuned == "visual":
        return None
    return pruner.text_features(data.class_names, model.text)


def _measure(run: _Run, images: list[int], pixels: Tensor) -> None:
    tower = run.model.tower
    tokens = tower.embed(pixels, run.block)
    full = tower.pool(tower.run(tokens, run.block))
    labels = None if run.data.labels is None else torch.tensor([run.data.labels[i] for i in images], device=full.device)
    masks = [run.data.mask(i) for i in images]
    objects = None
    if all(mask is not None for mask in masks):
        objects = torch.stack([object_share(mask, tower.grid) for mask in masks if mask is not None]).to(full.device)
    run.tally.add(("dense", 1.0), images, full, full, labels, None if objects is None else objects.sum(1))
    scores = {name: scorer(tokens) for name, scorer in run.scorers.items()}
    rows = {name: list(range(len(images))) for name in scores}
    oracle = [row for row, image in enumerate(images) if image in run.golden]
    if oracle:
        parts = [
            sketched(tower, pixels[part], run.block).importance
            for part in torch.tensor(oracle, device=pixels.device).split(_GOLDEN_IMAGES_PER_BATCH)
        ]
        scores["golden"], rows["golden"] = torch.cat(parts), oracle
    for name, importance in scores.items():
        some = rows[name]
        for rate in run.rates:
            patches = top_patches(importance, kept_count(rate, tower.num_patches))
            if name == "patchranking" or name in REDUCTIONS:
                with _pruned(run, name, rate):
                    features = tower.pool(tower.run(tokens, run.block))
            else:
                kept = gather_tokens(tokens[some], patches, tower.num_prefix_tokens)
                features = tower.pool(tower.run(kept, run.block))
            run.tally.add(
                (name, rate),
                [images[row] for row in some],
                features,
                full[some],
                None if labels is None else labels[some],
                None if objects is None else objects[some].gather(1, patches).sum(1),
            )
    for name in run.encoders:
        for rate in run.rates:
            run.tally.add((name, rate), images, _encoder(run, name, rate)(pixels), full, labels, None)
    for kind, classes in run.tuned_classes.items():
        for rate in (1.0, *run.rates):
            name = f"{'dense' if rate == 1 else 'patchranking'}{_TUNED}{kind}"
            run.tally.add((name, rate), images, _encoder(run, name, rate)(pixels), full, labels, None, classes)
    shown = oracle if run.golden else range(len(images))
    for row in list(shown)[: run.settings.wall - len(run.wall)]:
        run.wall.append(
            _wall_image(run, images[row], pixels[row], {n: s[rows[n].index(row)] for n, s in scores.items()})
        )


def _wall_image(run: _Run, image: int, pixels: Tensor, scores: dict[str, Tensor]) -> WallImage:
    tower = run.model.tower
    kept = {}
    for name in filter(scores.__contains__, _WALL_METHODS):
        for rate in _WALL_RATES:
            patches = top_patches(scores[name][None], kept_count(rate, tower.num_patches))
            grid = torch.zeros(tower.num_patches, dtype=torch.bool)
            grid[patches[0].cpu()] = True
            kept[name, rate] = grid.view(tower.grid).numpy()
    golden = scores["golden"].view(tower.grid).float().cpu().numpy() if "golden" in scores else None
    label = run.data.labels[image] if run.data.labels is not None else None
    caption = run.data.keys[image] if label is None else run.data.class_names[label]
    return WallImage(run.model.picture(pixels), caption, golden, kept)


def _rows(run: _Run) -> list[dict[str, Any]]:
    tower, settings = run.model.tower, run.settings
    sample = torch.zeros(max(1, settings.timing_batch), 3, *tower.image_size, dtype=tower.dtype, device=tower.device)
    sample.normal_(generator=torch.Generator(tower.device).manual_seed(settings.seed))
    features = tower(sample[:1]).shape[-1]
    dense_macs = count_macs(tower, sample[:1])
    dense_top1 = run.tally.mean(("dense", 1.0), "top1")
    rows = []
    for rate in [1.0, *run.rates]:
        methods = ["dense"] if rate == 1 else [*run.scorers, *run.encoders, *(ORACLES if run.golden else ())]
        methods += [f"{'dense' if rate == 1 else 'patchranking'}{_TUNED}{kind}" for kind in run.tuned]
        encoders = {name: _encoder(run, name, rate) for name in methods}
        timed = {"dense": tower} | {name: encode for name, encode in encoders.items() if name not in ORACLES}
        speed = images_per_second(timed, sample) if settings.timing_batch else {}
        for name in methods:
            method, _, kind = name.partition(_TUNED)
            rows.append(
                {
                    "model": run.model.name,
                    "dataset": run.data.name,
                    "split": run.data.split,
                    "n_images": run.tally.count((name, rate)),
                    "seed": settings.seed,
                    "method": method,
                    "keep_rate": rate,
                    "kept_patches": list(_schedule(run, name, rate).kept(tower.num_patches).values())[-1],
                    "schedule": None if name == "dense" else _schedule(run, name, rate).to_dict(),
                    "tuned": kind or "none",
                    "oracle": name in ORACLES,
                    "top1": run.tally.mean((name, rate), "top1"),
                    "top1_dense": dense_top1,
                    "feature_cosine": run.tally.mean((name, rate), "feature_cosine"),
                    "object_patches_kept": run.tally.mean((name, rate), "object_patches_kept"),
                    "gmacs": count_macs(encoders[name], sample[:1]) / 1e9,
                    "gmacs_analytic": _analytic_macs(run, name, rate, features) / 1e9,
                    "gmacs_dense": dense_macs / 1e9,
                    "images_per_second": speed.get(name),
                    "images_per_second_dense": speed.get("dense"),
                    **({"same_images": _same_images(run, rate)} if name in ORACLES else {}),
                }
            )
    return rows


def _same_images(run: _Run, rate: float) -> dict[str, dict[str, float | None]]:
    keys = [("dense", 1.0), *((name, rate) for name in (*run.scorers, *run.encoders))]
    return {
        key[0]: {measure: run.tally.mean(key, measure, run.golden) for measure in ("top1", "feature_cosine")}
        for key in keys
    }


def _schedule(run: _Run, name: str, rate: float) -> Schedule:
    if name in run.encoders:
        return run.encoders[name][rate]
    if run.pruner is not None and name.startswith("patchranking"):
        return run.pruner.schedule.at(rate)
    return Schedule({run.block: rate})


def _analytic_macs(run: _Run, name: str, rate: float, features: int) -> float:
    kind = name.partition(_TUNED)[2]
    beside = run.tuned[kind].visual_tokens if kind else 0
    return analytic_macs(run.model.tower, features, _schedule(run, name, rate), beside)


def _pruned(run: _Run, name: str, rate: float) -> AbstractContextManager[object]:
    """Makes the tower prune as the method does; the oracle's scores, made before, cost nothing here."""
    tower = run.model.tower
    kind = name.partition(_TUNED)[2]
    pruner = run.tuned[kind] if kind else run.pruner if name == "patchranking" else None
    if pruner is not None:
        pruner.keep = rate
        return attach_reductions(tower, pruner.reductions())
    if name in REDUCTIONS:
        kept = kept_count(rate, tower.num_patches)
        return attach_reductions(tower, {run.block: REDUCTIONS[name](tower, run.block, kept)})
    scorer = run.scorers.get(name, lambda tokens: tokens[:, tower.num_prefix_tokens :, 0])
    return scorer_attached(tower, Schedule({run.block: rate}), scorer)


def _encoder(run: _Run, name: str, rate: float) -> Callable[[Tensor], Tensor]:
    tower = run.model.tower
    if name == "dense":
        return tower
    if name in run.encoders:
        schedule, encode_merged = _schedule(run, name, rate), ENCODERS[name][1]
        return lambda pixels: encode_merged(tower, pixels, schedule)

    def encode(pixels: Tensor) -> Tensor:
        with _pruned(run, name, rate):
            return tower(pixels)

    return encode
