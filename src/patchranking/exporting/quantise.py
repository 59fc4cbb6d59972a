"""int8 by NNCF: calibrated with the pruner inside; what costs most stays as it is, by measurement."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Sequence
from types import ModuleType
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from patchranking.extras import import_extra

__all__ = ["LEAST_COSINE", "Run", "import_nncf", "quantised", "unit_features"]

Run = Callable[[np.ndarray], list[np.ndarray]]
"""Maps a batch to the outputs of a file: features, and the patches kept where there are some."""

LEAST_COSINE = 0.99
_MARGIN = 0.001
"""For images other than those that layers were chosen on."""
_RANKED_ON = 32
"""Images that tell which layers cost most; the cosine itself is measured on all."""
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
    predictors: Sequence[str] = (),
) -> Any:
    """A model in int8, but for what has to stay in float32 for its features to keep their cosine.

    Where int8 throughout is not enough, predictors go back first: they are a small part of the work, and their rounding
    changes which patches go. Then layers do, one by one, those first whose return brings most.

    Args:
        model: ``openvino.Model`` or ``onnx.ModelProto``, in float32.
        run_of: What runs such a model, or one that NNCF has compiled.
        name: Of the model's input.
        pixels: Set the ranges and tell what to keep, float32 ``(images, 3, height, width)``.
        reference: Their unit features in float32, ``(images, features)``.
        predictors: Names of the multiplications of predictors.
    """
    nncf = import_nncf()

    def cosine(candidate: Any, rows: Iterable[int]) -> tuple[float, list[float]]:
        chosen = list(rows)
        cosines = (unit_features(run_of(candidate), pixels[chosen]) * reference[chosen]).sum(1)
        return cosines.mean().item(), cosines.tolist()

    calibration = nncf.Dataset([{name: one[None]} for one in pixels])
    how = {"model_type": nncf.ModelType.TRANSFORMER, "subset_size": len(pixels)}
    kept = nncf.IgnoredScope(names=list(predictors))
    for ignored in (nncf.IgnoredScope(), kept) if predictors else (nncf.IgnoredScope(),):
        found = nncf.quantize(model, calibration, ignored_scope=ignored, **how)
        if cosine(found, range(len(pixels)))[0] >= LEAST_COSINE + _MARGIN:
            return found
    return nncf.quantize_with_accuracy_control(
        model,
        calibration,
        nncf.Dataset(list(range(len(pixels)))),
        cosine,
        max_drop=1 - LEAST_COSINE - _MARGIN,
        ignored_scope=kept,
        advanced_accuracy_restorer_parameters=nncf.AdvancedAccuracyRestorerParameters(
            ranking_subset_size=min(_RANKED_ON, len(pixels))
        ),
        **how,
    )


def unit_features(run: Run, pixels: np.ndarray) -> Tensor:
    """Unit features of pixels ``(images, 3, height, width)``, float32 ``(images, features)``."""
    found = [run(pixels[start : start + _BATCH])[0] for start in range(0, len(pixels), _BATCH)]
    return F.normalize(torch.from_numpy(np.concatenate(found)).float(), dim=-1)
