"""What a predictor is trained on: rows of images, in memory or in a file, some of them held out."""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor

__all__ = ["Rows", "split"]

_HELD_OUT_SHARE = 0.1


class Rows(Protocol):
    """An array ``(views, images, ...)`` that gives up some images of one view: a tensor, or one in a file."""

    @property
    def shape(self) -> tuple[int, ...]:
        """Views, images, and what one image has."""
        ...

    def __getitem__(self, key: tuple[int, Tensor]) -> Tensor:
        """``rows[view, images]``, with indices of images."""
        ...


def split(images: int, held_out: Tensor | None, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Indices of the images to train on, in random order, and of those held out: a tenth, unless they are given."""
    order = torch.randperm(images, generator=generator)
    if held_out is None:
        held_out = order[: max(1, round(_HELD_OUT_SHARE * images))]
    return order[~torch.isin(order, held_out)], held_out
