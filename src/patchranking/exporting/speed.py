"""What an exported model saves on this machine, beside the model in PyTorch that it was made of."""

from __future__ import annotations

from typing import Any

from torch import Tensor
from tqdm import tqdm

from patchranking.errors import UserError
from patchranking.evaluation.cost import count_macs, noise, time_in_turn
from patchranking.evaluation.speed import SpeedSettings, speed_figures
from patchranking.exporting.method import ExportedFile
from patchranking.towers.load import LoadedModel

__all__ = ["measure_file_speed"]


def measure_file_speed(model: LoadedModel, file: ExportedFile, settings: SpeedSettings) -> list[dict[str, Any]]:
    """Times an exported model and the dense one, eager and in float32, in alternation, on random pictures.

    Args:
        model: The model that it was made of, on the CPU.
        file: The exported model.
        settings: Batches and rounds; the keep rate and all else are those of the file.

    Returns:
        Rows as those of ``measure_speed``, two for every batch size.

    Raises:
        UserError: If the file was made of another model, or the settings ask for another keep rate or precision.
    """
    file.check(model.tower)
    about = file.about
    usual = SpeedSettings()
    if any(getattr(settings, name) != getattr(usual, name) for name in ("keep", "macs", "backends", "precisions")):
        raise UserError(
            "An exported model has its keep rate and precision: leave --keep, --macs, --backends and --precisions out."
        )
    dense_macs = count_macs(model.tower, noise(model.tower, 1))
    macs = {"dense": dense_macs, "file": about.macs_share * dense_macs}
    known = {"model": about.model, "peak_activations_mb": None}
    told: dict[str, dict[str, Any]] = {
        "dense": known | {"backend": "eager", "precision": "fp32", "keep_rate": 1.0, "macs": 1.0},
        "file": known | {"backend": about.backend, "precision": about.precision, "keep_rate": about.keep, "macs": None},
    }

    def run(pixels: Tensor) -> object:
        return file.encoder.run(pixels.numpy())

    rows: list[dict[str, Any]] = []
    for batch in tqdm(settings.batches, desc="time", unit="batch size"):
        pixels = noise(model.tower, batch, settings.seed)
        found = time_in_turn({"dense": model.tower, "file": run}, pixels, settings.repeats, settings.seconds)
        figures = speed_figures(found, macs, batch, "dense")
        rows += [
            {"model": about.model} | told[key] | own | {"peak_activations_mb": None} for key, own in figures.items()
        ]
    return rows
