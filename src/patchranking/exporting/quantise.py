"""int8 by NNCF: calibrated with the pruner inside; what costs most stays as it is, by measurement."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from types import ModuleType
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from patchranking.exporting.layers import Layers
from patchranking.extras import import_extra

__all__ = ["LEAST_COSINE", "Run", "import_nncf", "quantised", "unit_features"]

Run = Callable[[np.ndarray], list[np.ndarray]]
"""Maps a batch to the outputs of a file: features, and the patches kept where there are some."""

LEAST_COSINE = 0.99
_MARGIN = 0.001
"""For images other than those that layers were chosen on."""
_BATCH = 16


def import_nncf() -> ModuleType:
    """NNCF, with its warnings silenced.

    Raises:
        MissingExtraError: If it is not installed.
    """
    nncf = import_extra("nncf", "int8 needs nncf", "quantise")
    nncf.set_log_level(logging.ERROR)
    return nncf


def quantised(
    model: Any,
    run_of: Callable[[Any], Run],
    name: str,
    pixels: np.ndarray,
    reference: Tensor,
    layers: Layers,
) -> Any:
    """A model in int8, but for what has to stay in float32 for its features to keep their cosine.

    NNCF smooths activations, which moves their outliers into the weights; where that leaves too little, it is tried
    without. Where int8 throughout is not enough, predictors go back first: they are a small part of the work, and their
    rounding changes which patches go. Then layers do, a kind at a time, always the one whose return brings most, as
    long as it brings anything.

    Args:
        model: ``openvino.Model`` or ``onnx.ModelProto``, in float32.
        run_of: What runs such a model.
        name: Of the model's input.
        pixels: Set the ranges and tell what to keep, float32 ``(images, 3, height, width)``.
        reference: Their unit features in float32, ``(images, features)``.
        layers: Of the model.

    Returns:
        The first with a mean cosine that is high enough, or the one with the highest.
    """
    nncf = import_nncf()
    calibration = nncf.Dataset([{name: one[None]} for one in pixels])
    rough = nncf.AdvancedQuantizationParameters(smooth_quant_alphas=nncf.AdvancedSmoothQuantParameters(matmul=-1))
    best: tuple[float, Any] = (-1.0, None)

    def cosine(kept: Sequence[str], advanced: Any) -> float:
        """Of the features that the model then has, once it is among the candidates."""
        nonlocal best
        candidate = nncf.quantize(
            model,
            calibration,
            model_type=nncf.ModelType.TRANSFORMER,
            subset_size=len(pixels),
            ignored_scope=nncf.IgnoredScope(names=list(kept)),
            advanced_parameters=advanced,
        )
        found = (unit_features(run_of(candidate), pixels) * reference).sum(1).mean().item()
        best = max(best, (found, candidate), key=lambda one: one[0])
        return found

    def enough() -> bool:
        return best[0] >= LEAST_COSINE + _MARGIN

    smooth = cosine([], None)
    how = None if enough() or smooth > cosine([], rough) else rough
    kept, kinds = list(layers.predictors), list(layers.kinds)
    if kept and not enough():
        cosine(kept, how)
    before = 0.0
    while kinds and before < best[0] and not enough():
        before = best[0]
        found = [cosine([*kept, *kind], how) for kind in kinds]
        kept += kinds.pop(int(np.argmax(found)))
    return best[1]


def unit_features(run: Run, pixels: np.ndarray) -> Tensor:
    """Unit features of pixels ``(images, 3, height, width)``, float32 ``(images, features)``."""
    found = [run(pixels[start : start + _BATCH])[0] for start in range(0, len(pixels), _BATCH)]
    return F.normalize(torch.from_numpy(np.concatenate(found)).float(), dim=-1)
