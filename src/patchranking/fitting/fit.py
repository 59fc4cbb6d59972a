"""Fits a pruner to a model: by imitation of golden rankings, by distillation, or one after the other (Phase II)."""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from torch import Tensor

from patchranking.checkpoint import claim, digest
from patchranking.data import ImageData, subset
from patchranking.errors import UserError
from patchranking.files import make_folder, write_json
from patchranking.fitting.cache import cache_tokens, with_mirrored
from patchranking.fitting.doubt import DoubtReport, learn_doubt
from patchranking.fitting.held_out import measure_held_out
from patchranking.fitting.settings import FitSettings
from patchranking.predictor.distill import Distillation, distill
from patchranking.predictor.imitate import Imitation, imitate
from patchranking.predictor.losses import LOSSES
from patchranking.predictor.networks import Predictor
from patchranking.predictor.precision import precision_for
from patchranking.predictor.rows import split
from patchranking.predictor.targets import FEATURE, check_handed_on
from patchranking.pruner import Pruner
from patchranking.pruning.macs import keep_at_macs
from patchranking.pruning.schedule import Schedule
from patchranking.ranking.job import rank
from patchranking.ranking.search import SearchSettings
from patchranking.ranking.store import finished_manifest, golden_by_index
from patchranking.seeding import seeded
from patchranking.towers import VisionTower
from patchranking.towers.identity import BaseModel, matches
from patchranking.towers.load import LoadedModel

__all__ = ["MATCHED_ON", "FitReport", "fit", "match_by_keys", "planned"]

MATCHED_ON = 64
"""Images by whose keys patches are first compared."""


@dataclass(frozen=True)
class FitReport:
    """What a fit did.

    Attributes:
        n_images: Images used, those held out included.
        n_patches: Patches of an image.
        n_kept: Patches that reach the end at the keep rate stored.
        skipped: Key -> why an image could not be read.
        imitation: What the imitation reached, where there was one.
        distillation: What the last distillation reached, where there was one.
        doubt: How well the pruner's errors are estimated, where they are.
    """

    n_images: int
    n_patches: int
    n_kept: int
    skipped: dict[str, str]
    imitation: Imitation | None
    distillation: Distillation | None
    doubt: DoubtReport | None = None


def fit(
    model: LoadedModel,
    data: ImageData,
    out: str | Path,
    settings: FitSettings = FitSettings(),  # noqa: B008
    rankings: str | Path | None = None,
) -> tuple[Pruner, FitReport]:
    """Fits a pruner to a model and saves it; run again after a kill, it goes on where it stopped.

    Until it ends, ``progress`` in ``out`` holds how far it is, and the tokens of the images: for 1,000 images of
    ViT-B/16 at 224 pixels 0.6 GB, and as much again where the target is tokens. What is measured on the images held out
    goes with the pruner, as ``pruner.measured``, and onto its card. Fitted to 36 images or more, it also estimates its
    error on single images, ``pruner.doubt``.

    Args:
        model: The model.
        data: Pictures of the kind to encode, in any order; labels are not needed.
        out: Folder for the pruner, ``fit.json``, and the rankings made for it.
        settings: How to fit.
        rankings: Folder of golden rankings of these images or some of them, joined by key, to imitate; made for the
            first block of the schedule. By default ``settings.ranked`` images are ranked into ``out``.

    Returns:
        The pruner and a report.

    Raises:
        UserError: If the rankings are incomplete or belong to another model, block or other images, if rankings are
            given and none are imitated, if no image can be read, the disk has no room for the tokens, or ``out`` holds
            the progress of another fit.
    """
    schedule, base = planned(model, settings, rankings), BaseModel.of(model.tower, model.name)
    data, folder = subset(data, settings.limit, settings.seed), make_folder(out)
    given = None if rankings is None else Path(rankings).expanduser()
    if settings.imitates and given is None:
        given = folder / "rankings"
        search = SearchSettings(settings.search, settings.score, schedule.block, seed=settings.seed)
        rank(model, subset(data, settings.ranked, settings.seed), given, search)
    imitated = None if given is None else finished_manifest(given)["settings"]
    of = {"model": asdict(base), "images": digest(data.keys), "settings": asdict(settings), "rankings": imitated}
    progress = claim(folder / "progress", "fit", of)
    pruner, report, held_out = _fit(model, data, base, schedule, settings, given, progress)
    n_train = report.n_images - len(held_out)
    pruner.measured = measure_held_out(model, data, held_out, pruner, n_train, report.distillation, settings.seed)
    pruner.save_pretrained(folder)
    write_json(folder / "fit.json", asdict(report) | {"settings": asdict(settings), "rankings": imitated})
    shutil.rmtree(progress)
    return pruner, report


def planned(model: LoadedModel, settings: FitSettings, rankings: str | Path | None = None) -> Schedule:
    """Where a fit will drop patches; raises UserError where it cannot be done, before any work."""
    if rankings is not None and not settings.imitates:
        raise UserError("Distillation alone needs no rankings: leave --rankings out, or choose --objective both.")
    first = None if rankings is None else finished_manifest(Path(rankings).expanduser())["settings"]["block"]
    schedule = settings.stages(model.tower, first)
    schedule.check(model.tower)
    if settings.macs is not None:
        schedule = schedule.at(keep_at_macs(model.tower, schedule, settings.macs))
    model.tower.check_dense()
    if settings.distills:
        settings.preserved(model.tower).check(model.tower)
        precision_for(model.tower, settings.precision)
    if settings.hands_on is not None:
        check_handed_on(schedule, settings.hands_on, model.tower.depth)
        if settings.imitates and rankings is None:
            _check_feature(model.tower)
    return schedule


def _check_feature(tower: VisionTower) -> None:
    try:
        FEATURE.shape(tower)
    except UserError as error:
        raise UserError("Rankings are by the image feature, and this model has none: --objective distill.") from error


def _fit(
    model: LoadedModel,
    data: ImageData,
    base: BaseModel,
    schedule: Schedule,
    settings: FitSettings,
    rankings: Path | None,
    progress: Path,
) -> tuple[Pruner, FitReport, list[int]]:
    """The pruner, the report, and the indices of the images held out."""
    tower, block, seed = model.tower, schedule.block, settings.seed
    target = settings.preserved(tower) if settings.distills else None
    golden = {} if rankings is None else _golden(base, data, rankings, block)
    chosen = None if settings.distills else sorted(golden)
    used, skipped, tokens, dense = cache_tokens(model, data, chosen, block, target, progress, mirrored=True)
    predictors = _predictors(tower, schedule, settings)
    ranked = [row for row, index in enumerate(used) if index in golden]
    held_out = _held_out(len(used), ranked, seed)
    imitation = distillation = None
    if rankings is not None:
        importance = with_mirrored(torch.stack([golden[used[row]] for row in ranked]), tower.grid)
        imitation = imitate(
            predictors[block],
            tokens.of(ranked),
            importance,
            LOSSES[settings.loss],
            settings.epochs,
            held_out=torch.isin(torch.tensor(ranked), held_out).nonzero()[:, 0],
            seed=seed,
            checkpoint=progress / "imitation.safetensors",
        )
    if target is not None and dense is not None:
        for predictor in predictors.values():
            predictor.to(tower.device)
        match_by_keys(tower, predictors, tokens[0, torch.arange(min(len(used), MATCHED_ON))], block)
        distillation = distill(
            predictors,
            tower,
            tokens,
            dense,
            schedule,
            settings.steps,
            held_out=held_out,
            seed=seed,
            checkpoint=progress / "distillation.safetensors",
            target=target,
            precision=settings.precision,
        )
    kept = schedule.kept(tower.num_patches)
    pruner = Pruner(predictors, base, schedule, hands_on=settings.hands_on).eval()
    learned = None
    if dense is not None and settings.hands_on is None:
        learned = learn_doubt(pruner, tower, tokens, dense, held_out, settings.steps, seed)
    pruner.doubt, doubt = learned or (None, None)
    report = FitReport(len(used), tower.num_patches, min(kept.values()), skipped, imitation, distillation, doubt)
    return pruner, report, [used[row] for row in held_out.tolist()]


@torch.no_grad()
def match_by_keys(tower: VisionTower, predictors: Mapping[int, Predictor], tokens: Tensor, first: int) -> None:
    """Lets every stage compare patches by the keys of its block, or by the tokens where the keys cannot be read.

    Args:
        tower: The image encoder.
        predictors: Block -> predictor, in ascending order; those that do not merge stay as they are.
        tokens: Tokens of some images that enter block ``first``, ``(images, prefix + patches, width)``.
        first: The first of the blocks.
    """
    tokens = tokens.to(tower.device, tower.dtype)
    for block, predictor in predictors.items():
        tokens, first = tower.run(tokens, first, block), block
        if predictor.merges:
            try:
                keys = tower.attend(tokens, block).keys.transpose(1, 2).flatten(2)
            except UserError:
                keys = tokens
            predictor.match_by(tokens, keys[:, tower.num_prefix_tokens :])


def _held_out(images: int, ranked: Sequence[int], seed: int) -> Tensor:
    """A tenth of the ranked images and a tenth of the others: what is held out is so in every part of the fit."""
    generator = torch.Generator().manual_seed(seed)
    others = sorted({*range(images)} - {*ranked})
    parts = [torch.tensor(part) for part in (ranked, others) if part]
    return torch.cat([part[split(len(part), None, generator)[1]] for part in parts]).sort().values


def _predictors(tower: VisionTower, schedule: Schedule, settings: FitSettings) -> dict[int, Predictor]:
    """New predictors for the stages that score."""
    blocks = list(schedule.stages) if settings.distills else [schedule.block]
    with seeded(settings.seed):
        return Predictor.for_stages(tower, blocks, settings.network, merges=settings.merge and settings.distills)


def _golden(base: BaseModel, data: ImageData, rankings: Path, block: int) -> dict[int, Tensor]:
    """Golden importance by index of the image."""
    settings = finished_manifest(rankings)["settings"]
    if not matches(settings["fingerprint"], base.fingerprint):
        raise UserError(
            f"These rankings were made with '{settings['model']}', whose weights differ from '{base.name}': "
            "rank the images with this model."
        )
    if settings["block"] != block:
        raise UserError(
            f"These rankings are for pruning before block {settings['block']}, not {block}: prune there first, or rank "
            "again."
        )
    golden = golden_by_index(rankings, data.keys)
    if not golden:
        raise UserError("None of these images has a ranking in the folder given: rank them first.")
    return golden
