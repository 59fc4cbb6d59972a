"""Every way to run an image encoder on a CPU that the ladder compares, dense or pruned."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import FunctionType

import torch
from torch import Tensor

from patchranking.data import ImageData
from patchranking.evaluation.cost import count_macs
from patchranking.exporting.backends import BACKENDS
from patchranking.exporting.encoder import Encoder
from patchranking.exporting.export import export
from patchranking.exporting.folder import is_exported
from patchranking.exporting.settings import ExportSettings
from patchranking.methods import METHODS
from patchranking.methods.attach import attach_copy
from patchranking.pruner import Pruner
from patchranking.towers import as_tower
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
_TYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}


@dataclass(frozen=True)
class Cell:
    """A rung at a share of the dense multiply-accumulates.

    Attributes:
        rung: Its name.
        share: What was asked for; 1 is the dense model.
    """

    rung: str
    share: float

    @property
    def backend(self) -> str:
        """What runs it."""
        return RUNGS[self.rung][0]

    @property
    def precision(self) -> str:
        """Of its weights."""
        return RUNGS[self.rung][1]

    @property
    def exported(self) -> bool:
        """Whether it runs a file."""
        return self.backend in BACKENDS


def folder_of(work: Path, cell: Cell) -> Path:
    """Where an exported model is."""
    return work / f"{cell.backend}-{cell.precision}-{cell.share:g}"


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
        if cell.exported:
            encoder = Encoder.from_pretrained(self._folder(cell))
            return lambda pixels: torch.from_numpy(encoder.run(pixels.numpy())[0])
        dtype = _TYPES[cell.precision]
        tower = as_tower(copy.deepcopy(self.model.model).to(dtype))
        if cell.share < 1:
            attach_copy(tower, self.pruner, self._keep(cell), dtype)

        def run(pixels: Tensor) -> Tensor:
            return tower(pixels.to(dtype)).float()

        if cell.backend == EAGER:
            return run
        own = FunctionType(run.__code__.replace(), run.__globals__, closure=run.__closure__)
        return torch.compile(own, fullgraph=True)

    def macs_share(self, cell: Cell) -> float:
        """The share of the dense multiply-accumulates as counted in PyTorch."""
        if cell.share == 1:
            return 1.0
        pixels = torch.zeros(1, 3, *self.model.tower.image_size)
        counted = cell if cell.rung == LOW_RES else Cell(STOCK, cell.share)
        return count_macs(self.run(counted), pixels) / count_macs(self.model.tower, pixels)

    def check(self, cell: Cell) -> dict[str, float]:
        """What an exported model's config.json says of its agreement; empty where nothing is exported."""
        return dict(Encoder.from_pretrained(self._folder(cell)).about.check) if cell.exported else {}

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
