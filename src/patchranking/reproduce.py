"""The paper's tables and figures, measured on your data sets, next to what it publishes."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import torch

from patchranking.data import ImageData, read_batches, subset
from patchranking.errors import UserError
from patchranking.evaluation.published import PUBLISHED, paper_name
from patchranking.files import make_folder
from patchranking.fitting.fit import fit
from patchranking.fitting.settings import FitSettings
from patchranking.methods import Dense, Encoding, PatchRanking, named
from patchranking.methods.golden import by_golden
from patchranking.methods.measure import measure
from patchranking.predictor.measures import matching_rate
from patchranking.pruner import Pruner
from patchranking.pruning.schedule import Schedule
from patchranking.pruning.select import kept_count
from patchranking.ranking.job import rank
from patchranking.ranking.search import ScoreName, SearchSettings
from patchranking.ranking.store import golden_by_index
from patchranking.towers import VisionTower
from patchranking.towers.load import LoadedModel
from patchranking.tuning.tune import TuneSettings, tune

__all__ = ["TABLES", "Job", "TableName", "reproduce"]

TableName = Literal["table1", "table4", "table5", "figure1", "figure5"]
_STAGES = (3, 5, 7, 9)
_STAGE_DROPS = 20 / 196
_BLOCK = 3

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
        fitting: How to fit; the paper's own predictor, in table1, only imitates. As many test images as a fit ranks are
            measured on in the golden rows.
        tuning: How to tune; the kind of tokens is the row's.
        seed: Random seed.
    """

    model: LoadedModel
    test: ImageData
    train: ImageData | None
    pruner: Pruner | None
    out: Path
    fitting: FitSettings
    tuning: TuneSettings
    seed: int


def reproduce(table: str, job: Job) -> list[dict[str, Any]]:
    """Measures one data set of a table or figure.

    Args:
        table: A key of ``TABLES``.
        job: What to measure on.

    Returns:
        A row for every cell, with the published value next to the measured one where the paper has the data set.

    Raises:
        UserError: If the images have no classes, the model has no text encoder, or a fit needs training images.
    """
    if job.test.labels is None or job.model.text is None:
        raise UserError("The paper's tables need classes and a text encoder: give labelled images and a CLIP.")
    make_folder(job.out)
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


def _accuracies(job: Job, encodings: Mapping[tuple[str, str], Encoding]) -> Cells:
    """Top-1 of each encoding in percent."""
    tally = measure(job.model, job.test, encodings)
    return {key: value for key in encodings if (value := tally.mean(key, "top1")) is not None}


def _named(job: Job, name: str, schedule: Schedule) -> Encoding:
    return named([name])[0].at(job.model.tower, schedule, job.seed)


def _dense(job: Job) -> Encoding:
    return Dense().at(job.model.tower, Schedule({_BLOCK: 1.0}), job.seed)


def _pruned(job: Job, pruner: Pruner, schedule: Schedule) -> Encoding:
    return PatchRanking(pruner).at(job.model.tower, schedule)


def _pruner(job: Job, block: int) -> Pruner:
    """The pruner given, or one fitted to the training images, kept in the folder."""
    if job.pruner is not None and job.pruner.fitted.block == block:
        return job.pruner.untuned
    folder = job.out / f"pruner-{block}"
    if (folder / "config.json").is_file():
        return Pruner.from_pretrained(folder)
    train = _train(job, f"a pruner that drops before block {block}")
    return fit(job.model, train, folder, replace(job.fitting, blocks=[block], keep=0.6))[0]


def _train(job: Job, need: str) -> ImageData:
    if job.train is None:
        raise UserError(f"This needs {need}: give --train, one DATA for each of --data.")
    return job.train


def _tuned(job: Job, pruner: Pruner, tokens: Literal["text", "both"], schedule: Schedule) -> Encoding:
    train = _train(job, "labelled images to tune on")
    name = "-".join(f"{block}-{round(100 * rate)}" for block, rate in schedule.stages.items())
    settings = replace(job.tuning, tokens=tokens, seed=job.seed)
    found, _ = tune(job.model, train, pruner.untuned.scheduled(schedule), job.out / f"tuned-{tokens}-{name}", settings)
    return PatchRanking.of(found, job.model, job.test).at(job.model.tower, schedule)


def _progressive(tower: VisionTower) -> Schedule:
    """20 of 196 patches before each of layers 4, 6, 8 and 10 of 12, or the same shares of another model."""
    blocks = [block * tower.depth // 12 for block in _STAGES]
    return Schedule({block: 1 - _STAGE_DROPS * stage for stage, block in enumerate(blocks, 1)})


def _table1(job: Job) -> Cells:
    rates = (0.8, 0.7, 0.6, 0.5)
    train = _train(job, "images to fit the paper's predictor to")
    dense = _accuracies(job, {("dense", ""): _dense(job)})["dense", ""]
    cells = {("dense", f"{rate:.0%}"): dense for rate in rates}
    scores: tuple[ScoreName, ...] = ("label", "confidence", "preservation")
    for score in scores:
        golden = _golden(job, score)
        settings = replace(job.fitting, objective="imitate", search="leave-out", score=score, blocks=[_BLOCK])
        pruner, _ = fit(job.model, train, job.out / f"pruner-leave-out-{score}", settings)
        pruner.to(job.model.tower.device)
        cells |= _accuracies(
            job,
            {
                (f"golden, {score}", f"{rate:.0%}"): by_golden(job.model.tower, Schedule({_BLOCK: rate}), golden)
                for rate in rates
            }
            | {
                (f"predicted, {score}", f"{rate:.0%}"): _pruned(job, pruner, Schedule({_BLOCK: rate})) for rate in rates
            },
        )
        cells[f"matching rate, {score}", f"{rates[0]:.0%}"] = _matching(job, golden, pruner)
    return cells


def _golden(job: Job, score: ScoreName) -> dict[int, torch.Tensor]:
    """Golden importance of test images by the paper's search, ``(patches,)`` each."""
    folder = job.out / f"rankings-test-leave-out-{score}-{_BLOCK}"
    some = subset(job.test, job.fitting.ranked, job.seed)
    rank(job.model, some, folder, SearchSettings("leave-out", score, _BLOCK))
    return golden_by_index(folder, job.test.keys)


@torch.inference_mode()
def _matching(job: Job, golden: Mapping[int, torch.Tensor], pruner: Pruner) -> float:
    """Matching rate at 100 of 196 patches, or as large a share of the patches that there are, in percent."""
    tower, rates = job.model.tower, []
    count = kept_count(100 / 196, tower.num_patches)
    for images, pixels in read_batches(job.test, job.model.preprocess, 32, {}, sorted(golden)):
        scores = pruner(tower.embed(pixels.to(tower.device, tower.dtype), _BLOCK)).cpu()
        rates += [
            matching_rate(own[None], golden[index][None], count) for index, own in zip(images, scores, strict=True)
        ]
    return 100 * sum(rates) / len(rates)


def _table4(job: Job) -> Cells:
    schedule, column = _progressive(job.model.tower), "progressive"
    encodings = {("dense", column): _dense(job)}
    encodings |= {(name, column): _named(job, name, schedule) for name in ("evit", "a-vit", "tome")}
    encodings["patchranking", column] = _pruned(job, _pruner(job, schedule.block), schedule)
    return _accuracies(job, encodings)


def _table5(job: Job) -> Cells:
    schedule, column = _progressive(job.model.tower), "progressive"
    pruner = _pruner(job, schedule.block)
    encodings = {("dense", column): _dense(job), ("pruned", column): _pruned(job, pruner, schedule)}
    kinds: tuple[Literal["text", "both"], ...] = ("text", "both")
    for tokens in kinds:
        for row, where in (("dense", schedule.at(1.0)), ("pruned", schedule)):
            encodings[f"{row} + {tokens}", column] = _tuned(job, pruner, tokens, where)
    return _accuracies(job, encodings)


def _figure1(job: Job) -> Cells:
    pruner, encodings = _pruner(job, _BLOCK), dict[tuple[str, str], Encoding]()
    kinds: tuple[Literal["text", "both"], ...] = ("text", "both")
    for rate in (1.0, 0.9, 0.8, 0.7, 0.6, 0.5):
        schedule, column = Schedule({_BLOCK: rate}), f"{rate:.0%}"
        encodings["cls-attention", column] = _named(job, "cls-attention", schedule)
        encodings["patchranking", column] = _pruned(job, pruner, schedule)
        for tokens in kinds:
            encodings[f"patchranking + {tokens}", column] = _tuned(job, pruner, tokens, schedule)
    return _accuracies(job, encodings)


def _figure5(job: Job) -> Cells:
    pruner, encodings = _pruner(job, 0), dict[tuple[str, str], Encoding]()
    for rate in (0.9, 0.8, 0.7, 0.6, 0.5):
        schedule, column = Schedule({0: rate}), f"{rate:.0%}"
        encodings["cls-attention", column] = _named(job, "cls-attention", schedule)
        encodings["patchranking", column] = _pruned(job, pruner, schedule)
    return _accuracies(job, encodings)


TABLES: dict[str, Callable[[Job], Cells]] = {
    "table1": _table1,
    "table4": _table4,
    "table5": _table5,
    "figure1": _figure1,
    "figure5": _figure5,
}
"""Name of a table or figure -> function that measures it on one data set."""
