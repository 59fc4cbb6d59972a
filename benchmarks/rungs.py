"""Every way to run an image encoder on a CPU that the ladder compares, dense or pruned."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from patchranking.data import ImageData
from patchranking.embedding.encoder import Encoder as Embedder
from patchranking.embedding.settings import EmbedSettings
from patchranking.evaluation.cost import count_macs
from patchranking.evaluation.speed import compiled
from patchranking.exporting.backends import BACKENDS
from patchranking.exporting.export import export
from patchranking.exporting.folder import Exported, is_exported
from patchranking.exporting.model import ExportedModel
from patchranking.exporting.settings import ExportSettings
from patchranking.methods import METHODS
from patchranking.pruner import Pruner
from patchranking.towers.load import LoadedModel

STOCK = "pytorch fp32"
LOW_RES = "low-res fp32"
EAGER, COMPILED = "pytorch", "compile"
RUNGS = {
    STOCK: (EAGER, "fp32"),
    "pytorch bf16": (EAGER, "bf16"),
    "compile fp32": (COMPILED, "fp32"),
    "compile bf16": (COMPILED, "bf16"),
    "onnx fp32": ("onnx", "fp32"),
    "onnx int8": ("onnx", "int8"),
    "openvino fp32": ("openvino", "fp32"),
    "openvino bf16": ("openvino", "bf16"),
    "openvino int8": ("openvino", "int8"),
    LOW_RES: (EAGER, "fp32"),
}
"""Rung -> backend, precision; low-res is PyTorch on a smaller picture at the same multiply-accumulates."""


@dataclass(frozen=True)
class Cell:
    """A rung at a share of the dense multiply-accumulates.

    Attributes:
        rung: Its name.
        share: What was asked for; 1 is the dense model.
        twin: Whether it is of another model that users may take in place of this one.
    """

    rung: str
    share: float
    twin: bool = False

    @property
    def name(self) -> str:
        """Of its row."""
        return f"twin {self.rung}" if self.twin else f"{self.rung} {self.share:g}"

    @property
    def backend(self) -> str:
        """What runs it."""
        return RUNGS[self.rung][0]

    @property
    def precision(self) -> str:
        """Of its weights."""
        return RUNGS[self.rung][1]

    @property
    def counted(self) -> Cell:
        """The cell in PyTorch that needs as many multiply-accumulates, and in which they can be counted."""
        return self if self.rung == LOW_RES else replace(self, rung=STOCK)

    @property
    def exported(self) -> bool:
        """Whether it runs a file."""
        return self.backend in BACKENDS


def folder_of(work: Path, cell: Cell) -> Path:
    """Where an exported model is."""
    return work / f"{cell.backend}-{cell.precision}-{'twin' if cell.twin else f'{cell.share:g}'}"


@dataclass(frozen=True)
class Rungs:
    """Makes what runs.

    Attributes:
        model: The dense model.
        pruner: Fitted to it.
        images: What int8 and bf16 are measured on when they are exported.
        calibration: How many of them.
        work: Folder for exported models; finished ones are read again.
    """

    model: LoadedModel
    pruner: Pruner
    images: ImageData | None
    calibration: int
    work: Path

    def run(self, cell: Cell) -> Callable[[Tensor], Tensor]:
        """Maps pixels to features, float32 ``(batch, features)``."""
        if cell.rung == LOW_RES:
            schedule = self.pruner.at_macs(self.model.tower, cell.share).schedule
            return METHODS["low-res"].at(self.model.tower, schedule, 0)
        model = ExportedModel.of(str(self._folder(cell))) if cell.exported else self.model
        settings, pruner = EmbedSettings(), None
        if not cell.exported:
            settings = EmbedSettings(macs=cell.share, precision=cell.precision)  # type: ignore[arg-type]
            pruner = self.pruner if cell.share < 1 else None
        encoder = Embedder(model, pruner, settings)
        if cell.backend != COMPILED:
            return encoder
        run = compiled(lambda pixels: encoder.encode(pixels.to(encoder.dtype)).float(), dynamic=None)

        def of_any_batch(pixels: Tensor) -> Tensor:
            torch._dynamo.maybe_mark_dynamic(pixels, 0)
            return run(pixels)

        return of_any_batch

    def macs(self, cell: Cell) -> float:
        """The multiply-accumulates of one image, counted: ask of a cell that runs in PyTorch."""
        return count_macs(self.run(cell), torch.zeros(1, 3, *self.model.tower.image_size))

    def check(self, cell: Cell) -> dict[str, float]:
        """What an exported model's config.json says of its agreement; empty where nothing is exported."""
        return dict(Exported.read(self._folder(cell)).check) if cell.exported else {}

    def _keep(self, cell: Cell) -> float:
        return self.pruner.at_macs(self.model.tower, cell.share).keep

    def _folder(self, cell: Cell) -> Path:
        folder = folder_of(self.work, cell)
        if not is_exported(folder):
            settings = ExportSettings(cell.backend, cell.precision, calibration=self.calibration, force=True)  # type: ignore[arg-type]
            pruner = self.pruner.at(self._keep(cell)) if cell.share < 1 else None
            export(self.model, folder, pruner, settings, self.images)
            print(f"exported {folder}", flush=True)
        return folder
