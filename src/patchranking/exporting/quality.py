"""How far a file of lower precision is from float32, on images of the user, and what is refused."""

from __future__ import annotations

import platform
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from torch import Tensor

from patchranking.data import ImageData, read_batches
from patchranking.errors import UserError
from patchranking.evaluation.neighbours import nearest, overlap
from patchranking.exporting.quantise import LEAST_COSINE
from patchranking.towers.load import LoadedModel

__all__ = ["LEAST_IMAGES", "LEAST_OVERLAP", "Quality", "pictured", "processor", "quality"]

LEAST_OVERLAP = 0.9
LEAST_IMAGES = 20
_NEIGHBOURS = 10
_BATCH = 16
_FLAGS = ("avx2", "avx512f", "avx512_vnni", "avx_vnni", "avx512_bf16", "amx_bf16", "amx_int8", "bf16", "i8mm")


@dataclass(frozen=True)
class Quality:
    """What a file of lower precision keeps of float32.

    Attributes:
        feature_cosine: Mean between features of the same images.
        index_overlap_at_10: Share of the 10 nearest neighbours in an index of float32 features that stay.
        images: How many were measured.
    """

    feature_cosine: float
    index_overlap_at_10: float
    images: int

    def check(self, precision: str) -> None:
        """Raises UserError, with the figures, where this is not enough."""
        if self.feature_cosine >= LEAST_COSINE and self.index_overlap_at_10 >= LEAST_OVERLAP:
            return
        raise UserError(
            f"The image encoder was not written in {precision}: on {self.images} images its features have a cosine of "
            f"{self.feature_cosine:.4f} to float32 and keep {self.index_overlap_at_10:.0%} of the nearest neighbours, "
            f"and at least {LEAST_COSINE} and {LEAST_OVERLAP:.0%} are needed: give more --calibration images, another "
            "--precision, or --force true."
        )


def pictured(model: LoadedModel, data: ImageData, number: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Pixels to calibrate on and pixels to measure on, no picture in both.

    Args:
        model: Whose preprocessing is done.
        data: The images.
        number: As many of either, or half of what can be read.
        seed: Of their order.

    Returns:
        float32 ``(images, 3, height, width)`` twice.

    Raises:
        UserError: If fewer than ``LEAST_IMAGES`` are left for either.
    """
    order = np.random.default_rng(seed).permutation(len(data)).tolist()
    batches = read_batches(data, model.preprocess, _BATCH, {}, order[: 2 * number], "read images")
    pixels = [batch.numpy() for _, batch in batches]
    found = np.concatenate(pixels) if pixels else np.zeros((0, 3, 1, 1), np.float32)
    if len(found) < 2 * LEAST_IMAGES:
        raise UserError(
            f"{len(found)} images of '{data.name}' can be read, and at least {2 * LEAST_IMAGES} are needed, half of "
            "them to calibrate and half to measure: give more --images."
        )
    return found[: len(found) // 2], found[len(found) // 2 :]


def quality(found: Tensor, reference: Tensor) -> Quality:
    """Compares unit features ``(images, features)`` with those of float32."""
    k = min(_NEIGHBOURS, len(reference) - 1)
    neighbours = [nearest(one, reference, k)[0] for one in (found, reference)]
    return Quality((found * reference).sum(1).mean().item(), overlap(*neighbours).mean().item(), len(reference))


def processor(cpuinfo: Path = Path("/proc/cpuinfo")) -> dict[str, str | list[str]]:
    """The processor, and which of the instructions it has that lower precision depends on."""
    told: dict[str, str] = {}
    with suppress(OSError):
        for line in cpuinfo.read_text().splitlines():
            name, _, value = line.partition(":")
            told.setdefault(name.strip(), value.strip())
    flags = told.get("flags", told.get("Features", "")).split()
    return {"name": told.get("model name", platform.machine()), "instructions": [f for f in _FLAGS if f in flags]}
