"""How far a file agrees with PyTorch, and what is refused."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from patchranking.errors import UserError
from patchranking.exporting.quantise import Run

__all__ = ["BATCHES", "LEAST_COSINE", "Agreement", "agreement", "pictures"]

BATCHES = (1, 3, 8)
LEAST_COSINE = 0.9999


@dataclass(frozen=True)
class Agreement:
    """What a file has in common with PyTorch.

    Attributes:
        cosine: The least between features of the same input.
        same_patches: Share of the images of which the same patches are kept, in whatever order; 1 where all are.
    """

    cosine: float
    same_patches: float

    def check(self, what: str) -> None:
        """Raises UserError, with the figure, where this is not enough."""
        if not self.cosine >= LEAST_COSINE:
            raise UserError(
                f"{what} was not written: its features have a cosine of {self.cosine:.6f} to PyTorch's, and at least "
                f"{LEAST_COSINE} is needed: try another --format."
            )
        if self.same_patches < 1:
            raise UserError(
                f"{what} was not written: it keeps the patches that PyTorch keeps in {self.same_patches:.0%} of the "
                "images only: try another --format, or --seed if scores are all but equal."
            )


@torch.inference_mode()
def agreement(run: Run, reference: Callable[[Tensor], tuple[Tensor, ...]], inputs: Tensor) -> Agreement:
    """Compares a file with PyTorch at the batch sizes of ``BATCHES``.

    Args:
        run: Runs the file.
        reference: The module that was traced.
        inputs: As many as all batches take, ``(12, ...)``.
    """
    cosines, same = [], []
    for batch in inputs.split(BATCHES):
        features, *kept = (torch.from_numpy(np.asarray(output)) for output in run(batch.numpy()))
        expected, *known = reference(batch)
        if features.shape != expected.shape or [one.shape for one in kept] != [one.shape for one in known]:
            return Agreement(0.0, 0.0)
        cosines += F.cosine_similarity(features.double(), expected.double(), dim=-1).tolist()
        for mine, its in zip(kept, known, strict=True):
            same += (mine.sort(-1).values == its.sort(-1).values).all(-1).tolist()
    return Agreement(min(cosines), float(np.mean(same or [1.0])))


def pictures(seed: int) -> Iterator[Image.Image]:
    """As many pictures as ``agreement`` compares, of smooth colours and two shapes."""
    rng = np.random.default_rng(seed)
    for number in range(sum(BATCHES)):
        colours = Image.fromarray(rng.integers(0, 256, (9, 7, 3), np.uint8))
        yield colours.resize((320, 240) if number % 2 else (240, 400), Image.Resampling.BICUBIC)
