"""Contrastive pretraining from start to end: pictures, encoder, method, schedule, loop, measures, the saved tower."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, get_args

from patchranking.checkpoint import digest
from patchranking.data import ImageData
from patchranking.errors import UserError, check_numbers
from patchranking.files import make_folder, write_json
from patchranking.pretrain.budget import budget_of
from patchranking.pretrain.dino import DINO
from patchranking.pretrain.encoder import make_encoder, normalisation_of, save_encoder, trained_weights
from patchranking.pretrain.gradients import GradientSettings, spent_on, stage_errors
from patchranking.pretrain.loop import TrainSettings, fabric_for, identity_of, train
from patchranking.pretrain.moco import MoCo
from patchranking.pretrain.objective import Contrastive, KeysName
from patchranking.pretrain.pictures import Pictures, Shuffled, Views, read_pictures
from patchranking.pretrain.probe import measures_on, nothing
from patchranking.pretrain.progress import ProgressFolder, load_stage, read_stage, stages_of
from patchranking.pretrain.report import MODEL, PretrainReport
from patchranking.pretrain.schedule import CompressionSchedule
from patchranking.pretrain.search import named_schedule, schedule_from_errors
from patchranking.pretrain.simclr import SimCLR
from patchranking.seeding import seeded

__all__ = ["ContrastiveSettings", "MethodName", "contrastive", "make_objective"]

MethodName = Literal["moco", "simclr", "dino"]
_PILOT = 0.1
"""Share of the budget that the search's pilot takes."""
_MOST_SEARCHED = 0.5
_BATCHES = 48, 16
"""Base batches and batches of each compression in the search: fewer than an analysis on its own has."""


@dataclass(frozen=True)
class ContrastiveSettings:
    """What is trained, and by which method.

    Attributes:
        method: MoCo v3, SimCLR or DINO.
        model: A timm vision transformer by its name.
        image_size: Side of its images in pixels.
        patch_size: Side of its patches in pixels.
        model_args: What else timm takes for it, such as '{depth: 6, embed_dim: 192, num_heads: 3}'.
        head: Hidden units of the heads.
        keys: How keys are compressed: larger patches but none dropped (patch), not at all (full), or as queries (both).
            SimCLR has no keys.
        min_scale: Least share of a picture that a view shows; the method's own when omitted.
        weights: Folder of a trained tower of the same model and sizes to go on from, such as runs/mae/model; drawn when
            omitted.
    """

    method: MethodName = "moco"
    model: str = "vit_tiny_patch16_224"
    image_size: int = 224
    patch_size: int = 16
    model_args: dict[str, Any] = field(default_factory=dict)
    head: int = 2048
    keys: KeysName = "patch"
    min_scale: float | None = None
    weights: str | None = None

    def __post_init__(self) -> None:
        check_numbers(vars(self), image_size=1, patch_size=1, head=1)
        if self.method not in get_args(MethodName):
            raise UserError(f"Unknown method '{self.method}': choose from {', '.join(get_args(MethodName))}.")
        if self.min_scale is not None and not 0 < self.min_scale < 1:
            raise UserError(f"'min_scale' is a share of the picture, above 0 and below 1, not {self.min_scale:g}.")


def make_objective(settings: ContrastiveSettings, seed: int = 0) -> Contrastive:
    """The encoder of some settings and the method on it; what is not trained yet has random weights.

    Args:
        settings: What is trained, and by which method.
        seed: Of the weights.

    Raises:
        UserError: If timm cannot make the encoder, it cannot be compressed, or the trained one is of another kind.
    """
    encoder = make_encoder(settings.model, settings.image_size, settings.patch_size, settings.model_args, seed)
    weights = None if settings.weights is None else trained_weights(settings.weights, encoder)
    more: dict[str, Any] = {} if settings.min_scale is None else {"min_scale": settings.min_scale}
    with seeded(seed):
        if settings.method == "simclr":
            found: Contrastive = SimCLR(encoder, hidden=settings.head, **more)
        else:
            kind = MoCo if settings.method == "moco" else DINO
            found = kind(encoder, settings.keys, hidden=settings.head, **more)
    if weights is not None:
        found.start_from(weights)
    return found


def contrastive(
    data: ImageData,
    test: ImageData | None,
    out: str | Path,
    settings: ContrastiveSettings = ContrastiveSettings(),
    training: TrainSettings | None = None,
    schedule: str = "default",
    device: str = "cpu",
) -> PretrainReport:
    """Trains a vision transformer without labels and saves it for timm; a killed training goes on from ``out``.

    Args:
        data: Pictures to train on; their classes, if they have any, only measure.
        test: Pictures of the same classes to measure on along the way; none are measured when omitted.
        out: Folder for the progress and the trained tower.
        settings: What is trained, and by which method.
        training: How; by the defaults when omitted.
        schedule: ``default``, ``none``, ``two-phase``, ``auto`` (by the errors of gradients along a pilot, which the
            budget pays for), or a YAML file.
        device: cpu, cuda, cuda:1, mps, ...

    Returns:
        What was done.

    Raises:
        UserError: If the schedule, the pictures or the encoder do not fit, or the folder holds another training.
        MissingExtraError: If lightly, timm, lightning-fabric or scikit-learn is not installed.
    """
    training, folder = training or TrainSettings(), make_folder(out)
    fabric = fabric_for(device, training)
    objective = make_objective(settings, training.seed)
    chosen = None if schedule == "auto" else named_schedule(schedule, objective)
    if chosen is None and fabric.world_size > 1:
        raise UserError("A schedule is searched for on one process: search first, then give --schedule FILE.")
    pictures = read_pictures(data, settings.image_size, training.in_memory, progress=not fabric.global_rank)
    seen = None if fabric.global_rank else test
    measures, skipped = measures_on(objective.encoder, data, seen, training.probe_images, training.seed)
    budget = budget_of(objective, training.epochs, len(pictures))
    of = identity_of(settings, training, pictures)
    if of.pop("weights") is not None:  # a folder's name says nothing
        of["started_from"] = digest(objective.encoder.state_dict())
    searched = 0.0
    if chosen is None:
        chosen, searched = _searched(pictures, folder / "search", settings, training, budget, of, fabric)
    chosen.save(folder / "schedule.yaml")
    stages = [asdict(stage) for stage in chosen.stages]
    kept = ProgressFolder(folder / "progress", of | {"schedule": stages, "searched": searched})
    views = _views(pictures, objective, training.seed)
    progress = train(objective, views, chosen, budget - searched, training, kept, fabric, measures)
    if not fabric.global_rank:
        save_encoder(objective.encoder, folder / MODEL)
    return PretrainReport(len(pictures), pictures.skipped | skipped, budget, searched, chosen, progress)


def _views(pictures: Pictures, objective: Contrastive, seed: int) -> Views:
    """Views of all pictures, every epoch in its own order."""
    return Views(pictures, Shuffled(len(pictures), seed), objective.views(normalisation_of(objective.encoder)), seed)


def _searched(
    pictures: Pictures,
    folder: Path,
    settings: ContrastiveSettings,
    training: TrainSettings,
    budget: float,
    of: Mapping[str, Any],
    fabric: Any,
) -> tuple[CompressionSchedule, float]:
    """The schedule by the errors of gradients along an uncompressed pilot, and the passes that it took to find it."""
    objective = make_objective(settings, training.seed)
    size = min(training.batch_size, len(pictures))
    gradients = GradientSettings(*_BATCHES, size, drops=[0.0, 0.5, 0.75], groups=16, seed=training.seed)
    analysed = (training.evaluations + 1) * spent_on(objective, gradients)
    if _PILOT * budget + analysed > _MOST_SEARCHED * budget:
        raise UserError(
            f"To search for a schedule would take {_PILOT + analysed / budget:.0%} of the budget: give more epochs, or "
            "--schedule default."
        )
    kept = ProgressFolder(folder, dict(of) | {"pilot": _PILOT})
    views = _views(pictures, objective, training.seed)
    none = CompressionSchedule.constant(objective.base)
    pilot = train(objective, views, none, _PILOT * budget, replace(training, cost="formula"), kept, fabric, nothing)
    stages: dict[float, list[dict[str, Any]]] = {}
    normalisation = normalisation_of(objective.encoder)
    for path in stages_of(folder):
        share, _ = read_stage(path)
        load_stage(path, objective)
        stages[share] = stage_errors(objective, pictures, normalisation, gradients, folder, f"{share:.0%} of the pilot")
    write_json(folder / "errors.json", {"stages": [{"share": s, "rows": rows} for s, rows in stages.items()]})
    return schedule_from_errors(stages, objective.base, objective.passes), pilot.spent + analysed
