"""What to write, and what it is checked and calibrated on."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from patchranking.errors import UserError, check_numbers

__all__ = ["BackendName", "ExportSettings", "LayoutName", "PrecisionName"]

BackendName = Literal["onnx", "openvino", "torch"]
LayoutName = Literal["plain", "immich"]
PrecisionName = Literal["fp32", "bf16", "int8"]
_PRECISIONS = {"onnx": ("fp32", "int8"), "openvino": ("fp32", "bf16", "int8"), "torch": ("fp32", "bf16")}


@dataclass(frozen=True)
class ExportSettings:
    """What to write.

    Attributes:
        format: onnx, openvino or torch.
        precision: Of the image encoder: fp32, bf16 (openvino, torch) or int8 (onnx, openvino).
        layout: plain, or immich, which Immich reads.
        classes: Class names whose features, under the pruner's tuned text tokens, are written; those it was tuned on
            when omitted.
        calibration: Images, drawn by seed, that bf16 and int8 are measured on; as many others set the ranges of int8.
        force: Whether to write bf16 or int8 that is too far from fp32.
        seed: Random seed of the pictures on which the files are checked, and of the images that are drawn.
    """

    format: BackendName = "onnx"
    precision: PrecisionName = "fp32"
    layout: LayoutName = "plain"
    classes: list[str] = field(default_factory=list)
    calibration: int = 128
    force: bool = False
    seed: int = 0

    def __post_init__(self) -> None:
        check_numbers(vars(self), seed=0, calibration=1)
        if self.layout == "immich" and self.format != "onnx":
            raise UserError("Immich reads ONNX: leave --format out, or --layout immich.")
        if self.precision not in _PRECISIONS[self.format]:
            others = [name for name, known in _PRECISIONS.items() if self.precision in known]
            raise UserError(
                f"A model of the format {self.format} is not run in {self.precision} on CPUs: give --format "
                f"{' or '.join(others)}, or --precision {' or '.join(_PRECISIONS[self.format])}."
            )
