"""What the commands share."""

from __future__ import annotations

from pathlib import Path

import torch

from patchranking.errors import UserError
from patchranking.towers.load import LoadedModel, load_model

__all__ = ["load", "make_folder", "number", "print_skipped"]


def make_folder(path: Path) -> None:
    """Makes a folder for output, or says in one sentence why it cannot."""
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"Cannot make the folder '{path}': {error.strerror}.") from error


def load(model: str, device: str, seed: int) -> LoadedModel:
    """Seeds torch and loads a model."""
    torch.manual_seed(seed)
    return load_model(model, device)


def number(value: float | None, spec: str) -> str:
    """A figure as text, a dash where there is none."""
    return "-" if value is None else format(value, spec)


def print_skipped(skipped: dict[str, str]) -> None:
    """Says which images were left out, and why."""
    for key, reason in skipped.items():
        print(f"skipped {key}: {reason}")
