"""A model with its pruner, as a function from pixels to vectors."""

from __future__ import annotations

import copy
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from patchranking.checkpoint import digest
from patchranking.embedding.settings import EmbedSettings
from patchranking.errors import UserError
from patchranking.exporting.model import ExportedModel, ReadyModel
from patchranking.methods.attach import attach_copy, attachable, keep_at_share
from patchranking.methods.method import Attachable
from patchranking.predictor.fallback import NEEDS_A_FIT, ONE_PASS, with_fallback
from patchranking.pruner import Pruner
from patchranking.towers import VisionTower, as_tower
from patchranking.towers.copies import copied
from patchranking.towers.load import LoadedModel

__all__ = ["PRUNER", "Encoder", "another", "recorded"]

PRUNER = "_pruner"
"""Folder of a fitted pruner, beside the vectors that it made."""

_TYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
_STORED = {"float16": torch.float16, "float32": torch.float32}
_BATCH = {"cpu": 32}
_BATCH_ELSEWHERE = 256
_KEEP = 0.5


class Encoder:
    """Turns pixels into vectors; the model that is given stays as it is, and its weights are shared where they can be.

    Args:
        model: The model, or an exported one, which holds its pruner.
        pruner: A pruner that was fitted to it, or a method that needs no fit; None for the dense model.
        settings: How to embed.

    Attributes:
        encode: What runs, from pixels to features: the model's image encoder, twice for images in doubt if it falls
            back, or an exported file.
        device: Where it runs.
        image_size: Height and width of the pixels.
        record: What the vectors depend on, ready for JSON.
        features: Size of a vector.
        stored: Type of the vectors that are kept.
        batch_size: Images to give it at once.

    Raises:
        UserError: If the pruner is another model's or preserves no feature, the model is pruned already, or a keep rate
            or a fallback comes without a pruner that takes it.
    """

    def __init__(self, model: ReadyModel, pruner: Pruner | Attachable | None, settings: EmbedSettings) -> None:
        self._settings, self.stored = settings, _STORED[settings.dtype]
        self.device, self.image_size, self.dtype = model.device, model.image_size, _TYPES[settings.precision]
        if isinstance(model, ExportedModel):
            self.encode, self.features, about = _of_file(model, pruner, settings)
        else:
            self.encode, self.features, about = _of_library(model, pruner, settings)
        self.batch_size = self._fitting() if settings.batch_size == "auto" else settings.batch_size
        self.record = {
            "model": model.name,
            "fingerprint": model.fingerprint,
            "features": self.features,
            **about,
            "fallback": settings.fallback,
            "precision": settings.precision,
            "normalize": settings.normalize,
            "dtype": settings.dtype,
            "preprocessing": _described(model),
        }

    def __call__(self, pixels: Tensor) -> Tensor:
        """The first of what ``doubting`` gives."""
        return self.doubting(pixels)[0]

    @torch.inference_mode()
    def doubting(self, pixels: Tensor) -> tuple[Tensor, Tensor | None]:
        """Encodes a batch.

        Args:
            pixels: ``(batch, 3, height, width)``.

        Returns:
            Vectors ``(batch, features)``, float32, on the model's device, and with a fallback whether each image ran
            densely, bool ``(batch,)``.

        Raises:
            UserError: If the batch does not fit into memory.
        """
        try:
            pixels = pixels.to(self.device, self.dtype, non_blocking=True)
            found, dense = (
                self.encode.doubting(pixels) if isinstance(self.encode, _FallingBack) else (self.encode(pixels), None)
            )
        except torch.OutOfMemoryError as error:
            raise UserError(f"A batch of {len(pixels)} does not fit into memory: give a smaller batch_size.") from error
        found = found.float()
        return (F.normalize(found, dim=-1) if self._settings.normalize else found), dense

    def _fitting(self) -> int:
        """The usual batch size, halved until a batch fits."""
        size = _BATCH.get(self.device.type, _BATCH_ELSEWHERE)
        while self.device.type != "cpu" and size > 1:
            try:
                self(torch.zeros(size, 3, *self.image_size))
                break
            except UserError:
                size //= 2
        return size


def recorded(model: ReadyModel, folder: Path, manifest: Mapping[str, Any], batch_size: int = 1) -> Encoder:
    """What made the vectors of a folder, once more.

    Args:
        model: The model.
        folder: The folder, which holds a fitted pruner itself.
        manifest: What it says about its vectors.
        batch_size: Images that will be given at once.

    Raises:
        UserError: If the model is another.
    """
    about: dict[str, Any] = {name: manifest[name] for name in ("precision", "normalize", "dtype")}
    pruner: Pruner | Attachable | None = None
    if manifest["pruner"] is not None:
        method = "seed" in manifest
        pruner = attachable(manifest["pruner"]) if method else Pruner.from_pretrained(folder / PRUNER)
        about |= {name: manifest[name] for name in ("keep", "seed", "fallback") if name in manifest}
    encoder = Encoder(model, pruner, EmbedSettings(**about, batch_size=batch_size))
    if any(manifest.get(name) != value for name, value in encoder.record.items() if name != "model"):
        raise another(model, manifest)
    return encoder


def another(model: ReadyModel, manifest: Mapping[str, Any]) -> UserError:
    """The error when a model is not the one of a manifest."""
    return UserError(
        f"'{model.name}' is not what made these vectors, '{manifest['model']}': give a model of the same weights and "
        "preprocessing, or embed again."
    )


def _of_file(
    model: ExportedModel, pruner: Pruner | Attachable | None, settings: EmbedSettings
) -> tuple[Callable[[Tensor], Tensor], int, dict[str, Any]]:
    """What runs an exported model, the size of its features, and how it prunes."""
    if settings.fallback is not None:
        raise UserError(ONE_PASS)
    asked = (settings.keep, settings.macs, settings.precision)
    if pruner is not None or asked != (None, None, "fp32"):
        raise UserError(
            f"'{model.name}' is an exported model, with its own pruner, keep rate and precision: leave --pruner, "
            "--keep, --macs and --precision out."
        )
    about = model.encoder.about

    def encode(pixels: Tensor) -> Tensor:
        return torch.from_numpy(model.encoder.run(pixels.numpy())[0])

    return encode, about.feature_size, {"pruner": None, "keep": about.keep, "schedule": about.schedule}


def _of_library(
    model: LoadedModel, pruner: Pruner | Attachable | None, settings: EmbedSettings
) -> tuple[Callable[[Tensor], Tensor], int, dict[str, Any]]:
    """The same of a copy of a model, pruned if it is to be."""
    if pruner is None and (settings.keep or settings.macs or 1) < 1:
        raise UserError("The dense model keeps all patches: give a pruner, or a method such as cls-attention.")
    model.tower.check_dense()
    dtype = _TYPES[settings.precision]
    tower = as_tower(copied(model.model, dtype))
    about: dict[str, Any] = {"pruner": None, "keep": 1.0, "schedule": None}
    if settings.fallback is not None:
        again = _FallingBack(tower, pruner, settings, settings.fallback)
        return again, tower.feature_size, again.about
    if pruner is not None:
        about = _attached(tower, pruner, settings, dtype)
    return tower, tower.feature_size, about


class _FallingBack:
    """A tower that stays as it is, run by a fitted pruner, and once more where that is in doubt."""

    def __init__(
        self, tower: VisionTower, pruner: Pruner | Attachable | None, settings: EmbedSettings, fallback: float
    ) -> None:
        if not isinstance(pruner, Pruner):
            raise UserError(NEEDS_A_FIT)
        pruner.check_doubt()
        pruner.base.check(tower)
        own = copy.deepcopy(pruner.at(_keep(tower, pruner, settings, pruner.keep))).to(tower.device)
        own.predictors.to(tower.dtype)
        self._of = tower, own, fallback
        schedule = own.schedule
        self.about = {"pruner": digest(pruner.state_dict()), "keep": schedule.keep, "schedule": schedule.to_dict()}

    def doubting(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        """Features, and which of them are dense."""
        tower, own, fallback = self._of
        found = with_fallback(tower, pixels, own.schedule, own.reductions(), own.check_doubt(), fallback)
        return found.features, found.dense

    def __call__(self, pixels: Tensor) -> Tensor:
        return self.doubting(pixels)[0]


def _attached(
    tower: VisionTower, pruner: Pruner | Attachable, settings: EmbedSettings, dtype: torch.dtype
) -> dict[str, Any]:
    """Prunes a tower, and says how."""
    about: dict[str, Any]
    if isinstance(pruner, Pruner):
        if pruner.hands_on is not None:
            raise UserError("This pruner was fitted with --target tokens and preserves no image feature: fit another.")
        about, usual = {"pruner": digest(pruner.state_dict())}, pruner.keep
    else:
        about, usual = {"pruner": pruner.name, "seed": settings.seed}, _KEEP
    schedule = attach_copy(tower, pruner, _keep(tower, pruner, settings, usual), dtype, settings.seed)
    return about | {"keep": schedule.keep, "schedule": schedule.to_dict()}


def _keep(tower: VisionTower, pruner: Pruner | Attachable, settings: EmbedSettings, usual: float) -> float:
    """The keep rate that the settings ask for."""
    return settings.keep or usual if settings.macs is None else keep_at_share(tower, pruner, settings.macs)


def _described(model: ReadyModel) -> dict[str, Any]:
    """A preprocessing in words, without the addresses of functions."""
    steps = " ".join(re.sub(r" at 0x[0-9a-f]+", "", repr(model.preprocess)).split())
    return {
        "image_size": list(model.image_size),
        "mean": list(map(float, model.mean)),
        "std": list(map(float, model.std)),
        "steps": steps,
    }
