"""The paper's tables and figures, measured on the data sets at hand and set beside what it publishes."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from patchranking.data import ImageData, read_batches, subset
from patchranking.errors import UserError
from patchranking.evaluation.published import PUBLISHED, paper_name
from patchranking.fitting.fit import fit_pruner
from patchranking.methods import ENCODERS, baseline_reductions
from patchranking.methods.tally import Tally, zero_shot_classes
from patchranking.predictor.measures import matching_rate
from patchranking.pruner import Pruner
from patchranking.pruning.attach import Reduction, attach_reductions
from patchranking.pruning.schedule import Schedule
from patchranking.pruning.select import gather_tokens, kept_count, top_patches
from patchranking.ranking.job import rank_dataset
from patchranking.ranking.search import SearchSettings
from patchranking.ranking.store import iter_rankings
from patchranking.towers import VisionTower
from patchranking.towers.load import LoadedModel
from patchranking.tuning.tune import TuneSettings, tune

__all__ = ["TABLES", "Job", "reproduce"]

_STAGES = (3, 5, 7, 9)
_STAGE_DROPS = 20 / 196
_BLOCK = 3

Encoder = Callable[[Tensor], Tensor]
Cells = dict[tuple[str, str], float]
"""(row, column) -> accuracy or rate in percent."""


@dataclass(frozen=True)
class Job:
    """One data set of a table.

    Attributes:
        model: The model.
        test: Labelled images to test on.
        train: Images to fit, and to tune on; None where ``pruner`` is enough.
        pruner: To use in place of a fit, where it prunes before the same block.
        out: Folder for what is ranked, fitted and tuned.
        ranked: Images ranked for a fit, and for the golden rows.
        steps: Steps of distillation; the paper's own predictor, in table1, is never distilled.
        tuning: How to tune; the kind of tokens is the row's.
        seed: Random seed.
    """

    model: LoadedModel
    test: ImageData
    train: ImageData | None
    pruner: Pruner | None
    out: Path
    ranked: int
    steps: int
    tuning: TuneSettings
    seed: int


def reproduce(table: str, job: Job) -> list[dict[str, Any]]:
    """Measures one data set of a table or figure.

    Args:
        table: A key of ``TABLES``.
        job: What to measure on.

    Returns:
        A row for every cell, with the published value beside the measured one where the paper has the data set.

    Raises:
        UserError: If the images have no classes, the model has no text encoder, or a fit needs training images.
    """
    if job.test.labels is None or job.model.text is None:
        raise UserError("The paper's tables need classes and a text encoder: give labelled images and a CLIP.")
    job.out.mkdir(parents=True, exist_ok=True)
    name, published = paper_name(job.test.name), PUBLISHED[table]
    rows: list[dict[str, Any]] = []
    seen: dict[str, int] = {}
    for (row, column), value in TABLES[table](job).items():
        place = seen[row] = seen.get(row, -1) + 1
        known = published.get((name or "", row), ())
        rows.append(
            {
                "table": table,
                "dataset": f"{job.test.name}/{job.test.split}",
                "row": row,
                "column": column,
                "measured": value,
                "published": known[place] if place < len(known) else None,
                "oracle": "golden" in row or "label" in row,
            }
        )
    return rows


@torch.inference_mode()
def _accuracies(
    job: Job, encoders: Mapping[tuple[str, str], Encoder], classes: Mapping[tuple[str, str], Tensor] | None = None
) -> Cells:
    """Top-1 of each encoder; ``classes`` holds text features of those that have tuned them."""
    tower, labels = job.model.tower, job.test.labels
    assert labels is not None
    tally = Tally(zero_shot_classes(job.model, job.test))
    for images, pixels in read_batches(job.test, job.model.preprocess, 32, {}, None, "measure"):
        pixels = pixels.to(tower.device, tower.dtype)
        own = torch.tensor([labels[image] for image in images], device=tower.device)
        for number, (key, encode) in enumerate(encoders.items()):
            features = encode(pixels)
            tally.add((str(number), 0.0), images, features, features, own, None, (classes or {}).get(key))
    found = {key: tally.mean((str(number), 0.0), "top1") for number, key in enumerate(encoders)}
    if None in found.values():
        raise UserError(f"None of the images of '{job.test.name}' can be read.")
    return {key: value for key, value in found.items() if value is not None}


def _with(tower: VisionTower, reductions: Mapping[int, Reduction]) -> Encoder:
    def encode(pixels: Tensor) -> Tensor:
        with attach_reductions(tower, reductions):
            return tower(pixels)

    return encode


def _at(job: Job, pruner: Pruner, schedule: Schedule) -> Encoder:
    return _with(job.model.tower, pruner.scheduled(schedule).reductions())


def _baseline(job: Job, name: str, schedule: Schedule) -> Encoder:
    tower = job.model.tower
    return _with(tower, baseline_reductions(name, tower, schedule, job.seed))


def _pruner(job: Job, block: int) -> Pruner:
    """The pruner given, or one fitted to the training images, kept in the folder."""
    if job.pruner is not None and job.pruner.schedule.block == block:
        return job.pruner.untuned
    folder = job.out / f"pruner-{block}"
    if (folder / "config.json").is_file():
        return Pruner.from_pretrained(folder)
    train = _train(job, f"a pruner that drops before block {block}")
    rankings = _rankings(job, train, "sketched", "preservation", block, "train")
    fitted, _ = fit_pruner(job.model, train, rankings, Schedule({block: 0.6}), job.steps, seed=job.seed)
    fitted.save_pretrained(folder)
    return fitted


def _train(job: Job, need: str) -> ImageData:
    if job.train is None:
        raise UserError(f"This needs {need}: give --train, one DATA for each of --data.")
    return job.train


def _rankings(job: Job, data: ImageData, search: str, score: str, block: int, name: str) -> Path:
    folder = job.out / f"rankings-{name}-{search}-{score}-{block}"
    rank_dataset(job.model, subset(data, job.ranked, job.seed), folder, SearchSettings(search, score, block))
    return folder


def _tuned(job: Job, pruner: Pruner, tokens: str, schedule: Schedule) -> tuple[Encoder, Tensor]:
    train = _train(job, "labelled images to tune on")
    settings = TuneSettings(**(vars(job.tuning) | {"tokens": tokens, "seed": job.seed}))
    name = "-".join(f"{block}-{round(100 * rate)}" for block, rate in schedule.stages.items())
    folder = job.out / f"tuned-{tokens}-{name}"
    folder.mkdir(parents=True, exist_ok=True)
    found, _ = tune(job.model, train, pruner.untuned.scheduled(schedule), folder, settings)
    return _at(job, found, schedule), found.text_features(job.test.class_names, job.model.text)


def _progressive(tower: VisionTower) -> Schedule:
    """20 of 196 patches before each of layers 4, 6, 8 and 10 of 12, or the same shares of another model."""
    blocks = [block * tower.depth // 12 for block in _STAGES]
    return Schedule({block: 1 - _STAGE_DROPS * stage for stage, block in enumerate(blocks, 1)})


def _table1(job: Job) -> Cells:
    tower, rates = job.model.tower, (0.8, 0.7, 0.6, 0.5)
    train = _train(job, "images to fit the paper's predictor to")
    cells = {
        ("dense", f"{rate:.0%}"): value for value in _accuracies(job, {("", ""): tower}).values() for rate in rates
    }
    for score in ("label", "confidence", "preservation"):
        golden = dict(iter_rankings(_rankings(job, job.test, "leave-out", score, _BLOCK, "test")))
        pruner, _ = fit_pruner(
            job.model, train, _rankings(job, train, "leave-out", score, _BLOCK, "train"), steps=0, seed=job.seed
        )
        pruner.to(tower.device)
        cells |= _golden(job, golden, score, rates)
        cells[f"matching rate, {score}", f"{rates[0]:.0%}"] = _matching(job, golden, pruner)
        cells |= _accuracies(
            job, {(f"predicted, {score}", f"{rate:.0%}"): _at(job, pruner, Schedule({_BLOCK: rate})) for rate in rates}
        )
    return cells


@torch.inference_mode()
def _golden(job: Job, golden: Mapping[str, Any], score: str, rates: tuple[float, ...]) -> Cells:
    """Accuracy of the golden rankings themselves, on the images that were ranked."""
    tower, labels, classes = job.model.tower, job.test.labels, zero_shot_classes(job.model, job.test)
    assert labels is not None
    tally, chosen = Tally(classes), [index for index, key in enumerate(job.test.keys) if key in golden]
    for images, pixels in read_batches(job.test, job.model.preprocess, 32, {}, chosen):
        tokens = tower.embed(pixels.to(tower.device, tower.dtype), _BLOCK)
        importance = torch.stack([torch.from_numpy(golden[job.test.keys[index]]) for index in images]).to(tower.device)
        own = torch.tensor([labels[index] for index in images], device=tower.device)
        for rate in rates:
            patches = top_patches(importance, kept_count(rate, tower.num_patches))
            features = tower.pool(tower.run(gather_tokens(tokens, patches, tower.num_prefix_tokens), _BLOCK))
            tally.add((score, rate), images, features, features, own, None)
    return {(f"golden, {score}", f"{rate:.0%}"): tally.mean((score, rate), "top1") or 0.0 for rate in rates}


@torch.inference_mode()
def _matching(job: Job, golden: Mapping[str, Any], pruner: Pruner) -> float:
    """Matching rate at 100 of 196 patches, or as large a share of the patches that there are."""
    tower, rates = job.model.tower, []
    chosen = [index for index, key in enumerate(job.test.keys) if key in golden]
    for images, pixels in read_batches(job.test, job.model.preprocess, 32, {}, chosen):
        scores = pruner(tower.embed(pixels.to(tower.device, tower.dtype), _BLOCK)).cpu()
        importance = torch.stack([torch.from_numpy(golden[job.test.keys[index]]) for index in images])
        count = kept_count(100 / 196, tower.num_patches)
        rates += [matching_rate(one[None], two[None], count) for one, two in zip(scores, importance, strict=True)]
    return 100 * sum(rates) / len(rates)


def _table4(job: Job) -> Cells:
    tower, schedule = job.model.tower, _progressive(job.model.tower)
    merged = ENCODERS["tome"][0](tower, schedule)
    encoders: dict[tuple[str, str], Encoder] = {
        ("dense", "progressive"): tower,
        ("evit", "progressive"): _baseline(job, "evit", schedule),
        ("a-vit", "progressive"): lambda pixels: ENCODERS["a-vit"][1](tower, pixels, schedule),
        ("tome", "progressive"): lambda pixels: ENCODERS["tome"][1](tower, pixels, merged),
        ("patchranking", "progressive"): _at(job, _pruner(job, schedule.block), schedule),
    }
    return _accuracies(job, encoders)


def _table5(job: Job) -> Cells:
    schedule = _progressive(job.model.tower)
    pruner = _pruner(job, schedule.block)
    dense = schedule.at(1.0)
    column = "progressive"
    encoders: dict[tuple[str, str], Encoder] = {
        ("dense", column): job.model.tower,
        ("pruned", column): _at(job, pruner, schedule),
    }
    classes = {}
    for tokens in ("text", "both"):
        for row, where in (("dense", dense), ("pruned", schedule)):
            key = (f"{row} + {tokens}", column)
            encoders[key], classes[key] = _tuned(job, pruner, tokens, where)
    return _accuracies(job, encoders, classes)


def _figure1(job: Job) -> Cells:
    pruner, rates = _pruner(job, _BLOCK), (1.0, 0.9, 0.8, 0.7, 0.6, 0.5)
    encoders: dict[tuple[str, str], Encoder] = {}
    classes = {}
    for rate in rates:
        encoders["cls-attention", f"{rate:.0%}"] = _baseline(job, "cls-attention", Schedule({_BLOCK: rate}))
        encoders["patchranking", f"{rate:.0%}"] = _at(job, pruner, Schedule({_BLOCK: rate}))
        for tokens in ("text", "both"):
            key = (f"patchranking + {tokens}", f"{rate:.0%}")
            encoders[key], classes[key] = _tuned(job, pruner, tokens, Schedule({_BLOCK: rate}))
    return _accuracies(job, encoders, classes)


def _figure5(job: Job) -> Cells:
    pruner, rates = _pruner(job, 0), (0.9, 0.8, 0.7, 0.6, 0.5)
    encoders: dict[tuple[str, str], Encoder] = {}
    for rate in rates:
        encoders["cls-attention", f"{rate:.0%}"] = _baseline(job, "cls-attention", Schedule({0: rate}))
        encoders["patchranking", f"{rate:.0%}"] = _at(job, pruner, Schedule({0: rate}))
    return _accuracies(job, encoders)


TABLES: dict[str, Callable[[Job], Cells]] = {
    "table1": _table1,
    "table4": _table4,
    "table5": _table5,
    "figure1": _figure1,
    "figure5": _figure5,
}
"""Name of a table or figure -> function that measures it on one data set."""
