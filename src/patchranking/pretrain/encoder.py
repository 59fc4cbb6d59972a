"""The encoder that is trained: a timm vision transformer of any size, saved as timm saves its own."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from PIL import Image
from safetensors.torch import load_file
from torch import Tensor, nn

from patchranking.errors import UserError, reason
from patchranking.extras import import_extra
from patchranking.pretrain.compression import Compression, check_compressible
from patchranking.pretrain.objective import Normalisation
from patchranking.seeding import seeded
from patchranking.towers import as_tower
from patchranking.towers.load import load_model

__all__ = [
    "data_config_of",
    "load_encoder",
    "make_encoder",
    "normalisation_of",
    "preprocess_of",
    "save_encoder",
    "trained_weights",
]


def make_encoder(name: str, image_size: int, patch_size: int, more: Mapping[str, Any], seed: int) -> nn.Module:
    """A timm vision transformer with random weights and no head.

    Args:
        name: Of the architecture, such as ``vit_tiny_patch16_224``.
        image_size: Side of its images in pixels.
        patch_size: Side of its patches in pixels.
        more: What else ``timm.create_model`` takes, such as ``depth``.
        seed: Of the weights.

    Raises:
        UserError: If timm does not know the name or an argument, or the model cannot be compressed.
        MissingExtraError: If timm is not installed.
    """
    timm = import_extra("timm", "Pretraining needs timm", "pretrain")
    try:
        with seeded(seed):
            encoder: nn.Module = timm.create_model(
                name.removeprefix("timm:"), num_classes=0, img_size=image_size, patch_size=patch_size, **more
            )
    except Exception as error:
        raise UserError(f"timm cannot make the model '{name}' so ({reason(error)}).") from error
    check_compressible(as_tower(encoder), Compression(patch_size))
    return encoder


def data_config_of(encoder: nn.Module) -> dict[str, Any]:
    """How timm prepares pictures for it: the whole of their middle square."""
    data = import_extra("timm.data", "Pretraining needs timm", "pretrain")
    size = as_tower(encoder).image_size
    shown: dict[str, Any] = data.resolve_model_data_config(encoder) | {"input_size": (3, *size), "crop_pct": 1.0}
    return shown


def normalisation_of(encoder: nn.Module) -> Normalisation:
    """Means and standard deviations of its pixels."""
    shown = data_config_of(encoder)
    return Normalisation(tuple(shown["mean"]), tuple(shown["std"]))


def preprocess_of(encoder: nn.Module) -> Callable[[Image.Image], Tensor]:
    """What turns a picture into pixels for evaluation, as in the saved model."""
    data = import_extra("timm.data", "Pretraining needs timm", "pretrain")
    transform: Callable[[Image.Image], Tensor] = data.create_transform(**data_config_of(encoder), is_training=False)
    return transform


def save_encoder(encoder: nn.Module, folder: Path) -> None:
    """Writes weights and configuration as timm does; ``timm:local-dir:FOLDER`` is then a MODEL argument.

    Args:
        encoder: From ``make_encoder``.
        folder: Made where it is missing; its files are replaced, the configuration last.
    """
    models = import_extra("timm.models", "Pretraining needs timm", "pretrain")
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder) as partial:
        models.save_for_hf(encoder, partial, safe_serialization=True, data_config=data_config_of(encoder))
        for name in ("model.safetensors", "config.json"):
            os.replace(Path(partial) / name, folder / name)


def load_encoder(folder: str | Path) -> nn.Module:
    """The encoder that ``save_encoder`` wrote.

    Raises:
        UserError: If there is none in the folder.
    """
    return load_model(f"timm:local-dir:{Path(folder).expanduser().resolve()}").model


def trained_weights(folder: str | Path, encoder: nn.Module) -> dict[str, Tensor]:
    """Weights of a trained encoder, for another of its kind to go on from.

    Args:
        folder: That ``save_encoder`` wrote.
        encoder: Of the same architecture and sizes.

    Raises:
        UserError: If there is none in the folder, or it is of another kind.
    """
    path = Path(folder).expanduser() / "model.safetensors"
    if not path.is_file():
        raise UserError(f"There is no trained encoder in '{folder}': give the folder 'model' of a pretraining.")
    weights = load_file(path)
    own = {name: value.shape for name, value in encoder.state_dict().items()}
    if own != {name: value.shape for name, value in weights.items()}:
        raise UserError(
            f"The encoder in '{folder}' is of another kind: give the model, image_size, patch_size and model_args that "
            "it was trained with."
        )
    return weights
