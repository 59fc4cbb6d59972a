"""Masked autoencoding from start to end: prototypes, the order of the pictures, the loop, measures, the saved tower."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch

from patchranking.checkpoint import digest
from patchranking.data import ImageData
from patchranking.errors import UserError, check_numbers
from patchranking.files import make_folder
from patchranking.pretrain.budget import budget_of
from patchranking.pretrain.curriculum import ORDERS, Curriculum, RampName
from patchranking.pretrain.encoder import make_encoder, normalisation_of, save_encoder
from patchranking.pretrain.features import HOG, compute_features
from patchranking.pretrain.loop import TrainSettings, fabric_for, identity_of, train
from patchranking.pretrain.mae import MAE
from patchranking.pretrain.pictures import Views, read_pictures
from patchranking.pretrain.probe import measures_on
from patchranking.pretrain.progress import ProgressFolder
from patchranking.pretrain.prototypes import Prototypes, PrototypeSettings, find_prototypes, read_prototypes
from patchranking.pretrain.report import MODEL, PretrainReport
from patchranking.pretrain.sampler import CurriculumSampler
from patchranking.pretrain.schedule import CompressionSchedule
from patchranking.seeding import seeded
from patchranking.towers.load import load_model

__all__ = ["PROTOTYPES", "Drawn", "MAEReport", "MAESettings", "mae", "make_mae"]

PROTOTYPES = "prototypes.parquet"
"""File of the prototypes in the folder of a run."""


@dataclass(frozen=True)
class MAESettings:
    """What is trained, and which pictures it sees when.

    Attributes:
        model: A timm vision transformer by its name.
        image_size: Side of its images in pixels.
        patch_size: Side of its patches in pixels.
        model_args: What else timm takes for it, such as '{depth: 6, embed_dim: 192, num_heads: 3}'.
        mask: Share of the patches that are hidden.
        decoder_width: Channels of the decoder, a multiple of 32.
        decoder_depth: Blocks of the decoder.
        normalise_pixels: Predict pixels less their patch's mean, divided by its deviation; false for pixels themselves.
        min_scale: Least share of a picture that a view shows.
        curriculum: prototype, the most typical images first; uniform, hard-first or fixed, to compare with; or a file
            that pretrain prototypes wrote, for prototypes first by it.
        start: Expected share of distinct images in the first epoch.
        until: Share of the training after which every image is drawn alike.
        ramp: How the share of distinct images rises until then: cosine or linear.
        temperature: Of fixed, where distances are 0 to 1.
        features: What images are compared by: hog, histograms of gradients, which know of no network; or a model.
        clusters: A number, or auto, that with the lowest Davies-Bouldin index; or labels, an oracle.
    """

    model: str = "vit_tiny_patch16_224"
    image_size: int = 224
    patch_size: int = 16
    model_args: dict[str, Any] = field(default_factory=dict)
    mask: float = 0.75
    decoder_width: int = 512
    decoder_depth: int = 8
    normalise_pixels: bool = True
    min_scale: float = 0.2
    curriculum: str = "prototype"
    start: float = 0.1
    until: float = 0.5
    ramp: RampName = "cosine"
    temperature: float = 0.2
    features: str = HOG
    clusters: int | Literal["auto", "labels"] = "auto"

    def __post_init__(self) -> None:
        check_numbers(vars(self), image_size=1, patch_size=1, decoder_width=32, decoder_depth=1)
        for name in ("mask", "min_scale"):
            if not 0 < getattr(self, name) < 1:
                raise UserError(f"'{name}' is a share above 0 and below 1, not {getattr(self, name):g}.")
        if self.decoder_width % 32:
            raise UserError(f"'decoder_width' is a multiple of 32, not {self.decoder_width}.")
        if self.curriculum not in ORDERS and not Path(self.curriculum).expanduser().is_file():
            raise UserError(
                f"'curriculum' is one of {', '.join(ORDERS)}, or a file that patchranking pretrain prototypes wrote, "
                f"and there is no file '{self.curriculum}'."
            )
        self.drawn()
        PrototypeSettings(self.clusters)

    def drawn(self) -> Curriculum:
        """In which order pictures are drawn."""
        order: Any = self.curriculum if self.curriculum in ORDERS else "prototype"
        return Curriculum(order, self.start, self.until, self.ramp, self.temperature)


@dataclass(frozen=True)
class MAEReport(PretrainReport):
    """What a pretraining of a masked autoencoder did.

    Attributes:
        prototypes: How typical the pictures are; None where all are drawn alike.
        prototype_seconds: What it took to find out, in this run.
        sampler: Which pictures came when.
        model: The trained autoencoder.
    """

    prototypes: Prototypes | None
    prototype_seconds: float
    sampler: CurriculumSampler
    model: MAE


@dataclass(frozen=True)
class Drawn:
    """Pictures of an epoch as a sampler draws them; an ``Order``.

    Attributes:
        sampler: Of all pictures, on one rank: processes share the steps.
    """

    sampler: CurriculumSampler

    def __call__(self, epoch: int) -> Sequence[int]:
        order: list[int] = self.sampler.draw(epoch).tolist()
        return order


def make_mae(settings: MAESettings, seed: int = 0) -> MAE:
    """The autoencoder of some settings, with weights drawn by the seed.

    Raises:
        UserError: If timm cannot make the encoder, or it does not fit.
    """
    encoder = make_encoder(settings.model, settings.image_size, settings.patch_size, settings.model_args, seed)
    with seeded(seed):
        return MAE(
            encoder,
            settings.mask,
            settings.decoder_width,
            settings.decoder_depth,
            settings.normalise_pixels,
            settings.min_scale,
        )


def mae(
    data: ImageData,
    test: ImageData | None,
    out: str | Path,
    settings: MAESettings = MAESettings(),
    training: TrainSettings = TrainSettings(),  # noqa: B008
    device: str = "cpu",
    prototypes: Prototypes | None = None,
    bank: ImageData | None = None,
) -> MAEReport:
    """Trains a masked autoencoder and saves its encoder for timm; a killed training goes on from ``out``.

    Args:
        data: Pictures to train on; their classes, if they have any, only measure.
        test: Pictures of the same classes to measure on along the way; none are measured when omitted.
        out: Folder for the prototypes, the progress and the trained tower.
        settings: What is trained, and which pictures it sees when.
        training: How.
        device: cpu, cuda, cuda:1, mps, ...
        prototypes: How typical the pictures are; found out, or read from the settings' file, when omitted.
        bank: Labelled pictures that ``test`` is compared with; those to train on when omitted.

    Returns:
        What was done.

    Raises:
        UserError: If the pictures, their prototypes or the encoder do not fit, or the folder holds another training.
        MissingExtraError: If lightly, timm, lightning-fabric, scikit-learn or scikit-image is not installed.
    """
    folder = make_folder(out)
    fabric = fabric_for(device, training)
    objective, began = make_mae(settings, training.seed), time.perf_counter()
    if settings.curriculum == "uniform":
        found = None
    else:
        found = prototypes or _prototypes(data, folder, settings, training.seed, fabric, device)
    seconds = time.perf_counter() - began
    distances, lost = np.zeros(len(data), np.float32), dict[str, str]()
    if found is not None:
        data, distances, lost = found.join(data)
    pictures = read_pictures(data, settings.image_size, training.in_memory, progress=not fabric.global_rank)
    seen = None if fabric.global_rank else test
    measures, unread = measures_on(objective.encoder, bank or data, seen, training.probe_images, training.seed)
    budget = budget_of(objective, training.epochs, len(pictures))
    distances = distances[pictures.indices]
    of = identity_of(settings, training, pictures) | {"order": settings.drawn().order}
    of["distances"] = digest({"distances": torch.from_numpy(distances)})
    del of["curriculum"]  # a file's name says nothing
    kept = ProgressFolder(folder / "progress", of)
    sampler = CurriculumSampler(distances, training.epochs, settings.drawn(), training.seed, 1, 0)
    views = Views(pictures, Drawn(sampler), objective.views(normalisation_of(objective.encoder)), training.seed)
    schedule = CompressionSchedule.constant(objective.base)
    progress = train(objective, views, schedule, budget, training, kept, fabric, measures)
    if not fabric.global_rank:
        save_encoder(objective.encoder, folder / MODEL)
    skipped = lost | pictures.skipped | unread
    return MAEReport(len(pictures), skipped, budget, 0.0, schedule, progress, found, seconds, sampler, objective)


def _prototypes(
    data: ImageData, folder: Path, settings: MAESettings, seed: int, fabric: Any, device: str
) -> Prototypes:
    """How typical the pictures are, found by the first process for all."""
    if settings.curriculum not in ORDERS:
        return read_prototypes(settings.curriculum)
    if not fabric.global_rank:
        model = None if settings.features == HOG else load_model(settings.features, device)
        features = compute_features(data, model, folder / "features")
        find_prototypes(data, features, PrototypeSettings(settings.clusters, seed)).write(folder / PROTOTYPES)
    fabric.barrier()
    return read_prototypes(folder / PROTOTYPES)
