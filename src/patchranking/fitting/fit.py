"""Fits a pruner to a model on some images: by imitation of golden rankings, by distillation, or one after the other."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import torch
from torch import Tensor

from patchranking.data import ImageData, read_batches
from patchranking.errors import UserError
from patchranking.predictor.distill import Distillation, Entering, distill
from patchranking.predictor.imitate import Imitation, imitate
from patchranking.predictor.losses import LOSSES
from patchranking.predictor.networks import Predictor
from patchranking.pruner import Pruner
from patchranking.pruning.schedule import Schedule
from patchranking.ranking.store import finished_manifest, iter_rankings
from patchranking.towers import VisionTower
from patchranking.towers.base_model import BaseModel
from patchranking.towers.fingerprint import matches
from patchranking.towers.load import LoadedModel

__all__ = ["FitReport", "cache_tokens", "default_schedule", "first_block", "fit_pruner", "with_mirrored"]

_IMAGES_PER_BATCH = 32
_ANY_LENGTH = "mlp"
"""The network of later stages after a mixer, since their number of patches changes with the keep rate."""


@dataclass(frozen=True)
class FitReport:
    """How a fit went.

    Attributes:
        n_images: Images used, those held out included.
        skipped: Key -> why an image could not be read.
        imitation: How the imitation went, where there was one.
        distillation: How the last distillation went, where there was one.
    """

    n_images: int
    skipped: dict[str, str]
    imitation: Imitation | None
    distillation: Distillation | None


def fit_pruner(
    model: LoadedModel,
    data: ImageData,
    rankings: Path | None = None,
    schedule: Schedule | None = None,
    steps: int = 300,
    epochs: int = 30,
    network: str = "mixer",
    loss: str = "listnet",
    rescore: bool | None = None,
    seed: int = 0,
) -> tuple[Pruner, FitReport]:
    """Fits a pruner for a model.

    Args:
        model: The model.
        data: The images, in any order.
        rankings: Folder of golden rankings of these images or some of them, joined by key, to imitate first, made for
            the first block of the schedule.
        schedule: Where patches go and how many stay; when omitted, 50 %, in two stages from the block that was ranked
            on, or 3, or at once where nothing is distilled.
        steps: Steps of distillation, on all images; 0 leaves it out, and with it the images without a ranking.
        epochs: Passes of imitation over the images.
        network: mixer, mlp or transformer.
        loss: Of the imitation: listnet, bce, margin or top-list.
        rescore: Whether every later stage scores again, by a predictor of its own that is distilled on what the stages
            before it leave, an mlp where the first is a mixer; otherwise it goes by the scores of the first. When
            omitted, they do wherever there is distillation.
        seed: Random seed.

    Raises:
        UserError: If the rankings are incomplete or belong to another model or to other images, if there is nothing to
            learn from, if no image can be read, or stages are to score again that are none or are not distilled.
    """
    if loss not in LOSSES:
        raise UserError(f"Unknown loss '{loss}': choose from {', '.join(LOSSES)}.")
    if rescore and (steps < 1 or schedule is None or len(schedule.stages) < 2):
        raise UserError("To score again takes two stages or more, and distillation.")
    if rankings is None and steps < 1:
        raise UserError("Nothing to fit to: give rankings to imitate, or 1 or more steps of distillation.")
    base = BaseModel.of(model.tower, model.name)
    schedule = schedule or default_schedule(model.tower, first_block(rankings), 0.5, steps)
    schedule.check(model.tower)
    block = schedule.block
    if steps > 0:
        model.tower.check_gates()
    golden = {} if rankings is None else _golden(base, data, rankings, block)
    chosen = None if steps > 0 else sorted(golden)
    used, skipped, tokens, features = cache_tokens(model, data, chosen, block, dense=steps > 0, mirrored=True)
    torch.manual_seed(seed)
    predictor = Predictor(model.tower.width, model.tower.num_prefix_tokens, model.tower.num_patches, network)
    imitation = distillation = None
    if rankings is not None:
        rows = [row for row, index in enumerate(used) if index in golden]
        importance = torch.stack([golden[used[row]] for row in rows])
        views = with_mirrored(importance, model.tower.grid)
        imitation = imitate(predictor, tokens[:, rows], views, LOSSES[loss], epochs, seed=seed)
    if features is not None:
        predictor.to(model.tower.device)
        distillation = distill(predictor, model.tower, tokens, features, block, steps, seed=seed)
    pruner = Pruner(predictor, base, schedule).eval()
    if rescore is not False and features is not None:
        again = network if predictor.any_length else _ANY_LENGTH
        for stage in list(schedule.stages)[1:]:
            later = Predictor(**predictor.config | {"network": again}).to(model.tower.device)
            seen = _pruned_before(model.tower, pruner.scheduled(schedule), stage)
            distillation = distill(later, model.tower, tokens, features, stage, steps, seed=seed, entering=seen)
            pruner.later[str(stage)] = later
    return pruner.eval(), FitReport(len(used), skipped, imitation, distillation)


def first_block(rankings: Path | None) -> int:
    """Where patches go first unless a schedule says: the block that was ranked on, or 3, the paper's.

    Raises:
        UserError: If the rankings are incomplete.
    """
    block: int = 3 if rankings is None else finished_manifest(rankings)["settings"]["block"]
    return block


def default_schedule(tower: VisionTower, first: int, keep: float, steps: int) -> Schedule:
    """In two stages where so many steps of distillation teach the second to score again, otherwise at once."""
    return Schedule.default(first, tower.depth, keep) if steps > 0 else Schedule({first: keep})


def _pruned_before(tower: VisionTower, pruner: Pruner, block: int) -> Entering:
    """What a stage sees of tokens that enter the first one, and how many patches it leaves."""
    before = [stage for stage in pruner.schedule.stages if stage < block]

    @torch.no_grad()
    def enter(tokens: Tensor, keep: float) -> tuple[Tensor, int]:
        pruner.keep = keep
        reductions = pruner.reductions()
        for stage, following in pairwise([*before, block]):
            tokens = tower.run(reductions[stage](tokens), stage, following)
        return tokens, pruner.schedule.kept(tower.num_patches)[block]

    return enter


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
    index_of = {key: index for index, key in enumerate(data.keys)}
    golden = {index_of[key]: torch.from_numpy(row) for key, row in iter_rankings(rankings) if key in index_of}
    if not golden:
        raise UserError("None of these images has a ranking in the folder given: rank them first.")
    return golden


def with_mirrored(importance: Tensor, grid: tuple[int, int]) -> Tensor:
    """Golden importance of images and of their mirror images, ``(images, patches)`` to ``(2, images, patches)``."""
    return torch.stack([importance, importance.unflatten(1, grid).flip(-1).flatten(1)])


@torch.no_grad()
def cache_tokens(
    model: LoadedModel, data: ImageData, chosen: Sequence[int] | None, block: int, dense: bool, mirrored: bool = False
) -> tuple[list[int], dict[str, str], Tensor, Tensor | None]:
    """Reads images once for a fit.

    Args:
        model: The model.
        data: The images.
        chosen: Indices to read; all when omitted.
        block: The block whose entering tokens are kept.
        dense: Whether to compute the features of the dense model too.
        mirrored: Whether every image is seen mirrored too, as a second view.

    Returns:
        Indices read; key -> reason of those skipped; tokens ``(views, images, prefix + patches, width)``
        float16; features ``(views, images, features)`` float32 or None. Both on the CPU.

    Raises:
        UserError: If no image can be read.
    """
    used: list[int] = []
    skipped: dict[str, str] = {}
    tokens: list[Tensor] = []
    features: list[Tensor] = []
    for found, pixels in read_batches(data, model.preprocess, _IMAGES_PER_BATCH, skipped, chosen, "cache tokens"):
        views = torch.cat([pixels, pixels.flip(-1)]) if mirrored else pixels
        entering = model.tower.embed(views.to(model.tower.device, model.tower.dtype), block)
        tokens.append(entering.half().cpu().unflatten(0, (-1, len(found))))
        if dense:
            features.append(
                model.tower.pool(model.tower.run(entering, block)).float().cpu().unflatten(0, (-1, len(found)))
            )
        used += found
    if not used:
        raise UserError(f"None of the images can be read, for example: {next(iter(skipped.items()))}.")
    return used, skipped, torch.cat(tokens, 1), torch.cat(features, 1) if dense else None
