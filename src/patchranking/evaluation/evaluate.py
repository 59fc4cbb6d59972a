"""Compares ways of choosing patches on the same images, before the same blocks and at the same counts."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from patchranking.data import ImageData, read_batches
from patchranking.errors import UserError
from patchranking.evaluation.environment import environment
from patchranking.evaluation.rows import rows_of
from patchranking.evaluation.run import ORACLES, TUNED, EvaluationSettings, Run, encoder
from patchranking.methods import BASELINES, ENCODERS, baseline_reductions
from patchranking.methods.tally import Tally, object_share, zero_shot_classes
from patchranking.pruner import Pruner
from patchranking.pruning.attach import Scorer, attach_reductions
from patchranking.pruning.select import best_first, check_keep_rate
from patchranking.pruning.stages import Survivors, by_scores
from patchranking.ranking.sketched import sketched
from patchranking.report.wall import WallImage
from patchranking.towers import VisionTower
from patchranking.towers.load import LoadedModel

__all__ = ["ORACLES", "EvaluationSettings", "evaluate"]

_GOLDEN_IMAGES_PER_BATCH = 8


def evaluate(
    model: LoadedModel, data: ImageData, pruners: Sequence[Pruner], settings: EvaluationSettings
) -> tuple[dict[str, Any], list[WallImage]]:
    """Measures accuracy, retrieval, agreement with the dense model, cost and speed.

    Args:
        model: The dense model.
        data: The images, labelled for top-1, captioned for retrieval.
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
        "rows": rows_of(run),
        "images": totals,
        "skipped": run.skipped,
    }
    return results, run.wall


def _prepare(model: LoadedModel, data: ImageData, pruners: Sequence[Pruner], settings: EvaluationSettings) -> Run:
    known = [*BASELINES, *ENCODERS, *ORACLES]
    unknown = [name for name in settings.methods if name not in known]
    if unknown:
        raise UserError(f"Unknown method '{unknown[0]}': choose from {', '.join(known)}.")
    for one in pruners:
        one.base.check(model.tower)
        one.to(model.tower.device)
    kinds = [one.tuned for one in pruners]
    if len(set(kinds)) < len(kinds):
        raise UserError(f"Two pruners hold the same kind of tokens, {', '.join(kinds)}: give one of each.")
    by_kind = dict(zip(kinds, pruners, strict=True))
    pruner = by_kind.pop("none", pruners[0].untuned if pruners else None)
    schedule = settings.schedule if pruner is None else pruner.schedule
    schedule.check(model.tower)
    for rate in settings.keep_rates:
        check_keep_rate(rate)
    rates = sorted({float(rate) for rate in settings.keep_rates if rate < 1}, reverse=True)
    at, survivors = {rate: schedule.at(rate) for rate in rates}, Survivors()
    reductions = {
        name: {rate: baseline_reductions(name, model.tower, at[rate], settings.seed, survivors) for rate in rates}
        for name in settings.methods
        if name in BASELINES
    }
    if pruner is not None:
        reductions["patchranking"] = {rate: pruner.scheduled(at[rate]).reductions(survivors) for rate in rates}
    encoders = {
        name: {rate: ENCODERS[name][0](model.tower, at[rate]) for rate in rates}
        for name in settings.methods
        if name in ENCODERS
    }
    order = np.random.default_rng(settings.seed).permutation(len(data)).tolist()
    chosen = set(order[: settings.golden_images]) if "golden" in settings.methods else set()
    tuned_classes = {kind: _tuned_classes(model, data, one) for kind, one in by_kind.items()}
    tally = Tally(zero_shot_classes(model, data), frozenset(order[: settings.index_images]))
    return Run(
        model,
        data,
        settings,
        schedule,
        rates,
        reductions,
        encoders,
        pruner,
        survivors,
        by_kind,
        tuned_classes,
        tally,
        chosen,
    )


def _tuned_classes(model: LoadedModel, data: ImageData, pruner: Pruner) -> Tensor | None:
    """Text features that go with tuned tokens; None where the text encoder is left alone, or without classes."""
    if data.labels is None or pruner.tuned == "visual":
        return None
    return pruner.text_features(data.class_names, model.text)


def _measure(run: Run, images: list[int], pixels: Tensor) -> None:
    tower, first = run.model.tower, run.schedule.block
    tokens = tower.embed(pixels, first)
    full = tower.pool(tower.run(tokens, first))
    labels = None if run.data.labels is None else torch.tensor([run.data.labels[i] for i in images], device=full.device)
    masks = [run.data.mask(i) for i in images]
    objects = None
    if all(mask is not None for mask in masks):
        objects = torch.stack([object_share(mask, tower.grid) for mask in masks if mask is not None]).to(full.device)
    run.tally.add(("dense", 1.0), images, full, full, labels, None if objects is None else objects.sum(1))
    oracle = [row for row, image in enumerate(images) if image in run.golden]
    reductions, golden = dict(run.reductions), None
    if oracle:
        golden = _golden(tower, pixels[oracle], first)
        reductions["golden"] = {
            rate: by_scores(tower, run.schedule.at(rate), {first: lambda _: golden}, run.survivors)
            for rate in run.rates
        }
    for name, at in reductions.items():
        some = oracle if name in ORACLES else list(range(len(images)))
        for rate in run.rates:
            run.survivors.places = None
            with attach_reductions(tower, at[rate]):
                features = tower.pool(tower.run(tokens[some], first))
            places = run.survivors.places
            run.tally.add(
                (name, rate),
                [images[row] for row in some],
                features,
                full[some],
                None if labels is None else labels[some],
                None if objects is None or places is None else objects[some].gather(1, places).sum(1),
            )
    for name in run.encoders:
        for rate in run.rates:
            run.tally.add((name, rate), images, encoder(run, name, rate)(pixels), full, labels, None)
    for kind, classes in run.tuned_classes.items():
        for rate in (1.0, *run.rates):
            name = f"{'dense' if rate == 1 else 'patchranking'}{TUNED}{kind}"
            run.tally.add((name, rate), images, encoder(run, name, rate)(pixels), full, labels, None, classes)
    shown = oracle if run.golden else range(len(images))
    for row in list(shown)[: run.settings.wall - len(run.wall)]:
        ranking = None if golden is None else golden[oracle.index(row)]
        run.wall.append(_wall_image(run, images[row], pixels[row], tokens[row : row + 1], ranking))


def _golden(tower: VisionTower, pixels: Tensor, block: int) -> Tensor:
    """The oracle's importance of the patches, ``(images, patches)``."""
    return torch.cat([sketched(tower, part, block).importance for part in pixels.split(_GOLDEN_IMAGES_PER_BATCH)])


def _wall_image(run: Run, image: int, pixels: Tensor, tokens: Tensor, golden: Tensor | None) -> WallImage:
    """An image of the wall, with the order in which methods put the patches that enter the first stage."""
    tower = run.model.tower
    scorers: dict[str, Scorer] = {} if run.pruner is None else {"patchranking": run.pruner}
    if "cls-attention" in run.reductions:
        scorers["cls-attention"] = BASELINES["cls-attention"](tower, run.schedule.block, run.settings.seed)
    places = {}
    for name, scorer in scorers.items():
        order = best_first(scorer(tokens), tower.num_patches)[0]
        places[name] = order.argsort().view(tower.grid).cpu().numpy()
    importance = None if golden is None else golden.view(tower.grid).float().cpu().numpy()
    label = run.data.labels[image] if run.data.labels is not None else None
    caption = run.data.keys[image] if label is None else run.data.class_names[label]
    return WallImage(run.model.picture(pixels), caption, importance, places)
