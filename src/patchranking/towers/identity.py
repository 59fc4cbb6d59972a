"""What an artefact knows of the model it belongs to, and a fingerprint that tells its weights from others."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, Self

import torch
from torch import Tensor, nn

from patchranking.errors import UserError
from patchranking.towers.base import VisionTower

__all__ = ["BaseModel", "fingerprint", "matches"]

_SAMPLES = 32
_TOLERANCE = 2**-7
_EXACT = 2**24
"""Whole numbers up to here are exact in float32, by which places were found from the start."""


@dataclass(frozen=True)
class BaseModel:
    """What a pruner knows of the model it was fitted to.

    Attributes:
        name: The MODEL argument or any reference the user gave; for reading, never checked.
        image_size: Height and width in pixels.
        grid: Patch rows and columns.
        num_prefix_tokens: Tokens before the patches.
        width: Channels of a token.
        depth: Transformer blocks.
        activation: Activation of the MLPs.
        fingerprint: A few weights of the model; None for those of a quantised matrix.
    """

    name: str
    image_size: tuple[int, int]
    grid: tuple[int, int]
    num_prefix_tokens: int
    width: int
    depth: int
    activation: str
    fingerprint: list[float | None]

    @classmethod
    def of(cls, tower: VisionTower, name: str) -> Self:
        """Describes the model behind a tower."""
        return cls(
            name,
            tower.image_size,
            tower.grid,
            tower.num_prefix_tokens,
            tower.width,
            tower.depth,
            tower.activation,
            fingerprint(tower),
        )

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Self:
        """The inverse of ``dataclasses.asdict`` after a trip through JSON; raises ValueError for anything else."""
        sizes: dict[str, Any] = {key: tuple(values[key]) for key in ("image_size", "grid")}
        found = cls(**(values | sizes))
        counts = (*found.image_size, *found.grid, found.num_prefix_tokens, found.width, found.depth)
        if len(counts) != 7 or not all(type(count) is int for count in counts) or not _numbers(found.fingerprint):
            raise ValueError("this does not describe a base model")
        return found

    @property
    def _patch_size(self) -> tuple[float, float]:
        return self.image_size[0] / self.grid[0], self.image_size[1] / self.grid[1]

    def check(self, tower: VisionTower) -> None:
        """Raises UserError, naming the first difference, when ``tower`` is another model."""
        other = BaseModel.of(tower, self.name)
        if tower.any_size and self._patch_size == other._patch_size:
            other = replace(other, image_size=self.image_size, grid=self.grid)
        for field in ("image_size", "grid", "num_prefix_tokens", "width", "depth", "activation"):
            mine, its = getattr(self, field), getattr(other, field)
            if mine != its:
                raise UserError(
                    f"This pruner was fitted to '{self.name}' with {field.replace('_', ' ')} {mine}, and the model has "
                    f"{its}: load the model it was fitted to, or fit a new pruner."
                )
        if not matches(self.fingerprint, other.fingerprint):
            raise UserError(
                f"This pruner was fitted to '{self.name}', and the model has other weights: load the model it was "
                "fitted to, or fit a new pruner."
            )


def fingerprint(tower: VisionTower) -> list[float | None]:
    """Samples a few weights: equal for the same weights in any library and, nearly, in any floating type.

    None stands for those of a quantised or sharded matrix, which are not what they were.

    Raises:
        UserError: If no weight is as it was.
    """
    found: list[float | None] = []
    for weight in tower.identity():
        if type(weight) in (Tensor, nn.Parameter) and weight.is_floating_point() and weight.itemsize > 1:
            flat = weight.detach().flatten()
            values = flat[_places(len(flat))].float().cpu().tolist()
            found += [round(value, 7) for value in values]
        else:
            found += [None] * _SAMPLES
    if all(value is None for value in found):
        raise UserError(
            "The weights of this model are quantised or sharded, so it cannot be told from others: attach the pruner "
            "to the model first, and quantise or shard it then."
        )
    return found


def _places(length: int) -> Tensor:
    """Indices from the first to the last, at equal distances."""
    if length <= _EXACT:
        return torch.linspace(0, length - 1, _SAMPLES).long()
    return torch.tensor([place * (length - 1) // (_SAMPLES - 1) for place in range(_SAMPLES)])


def matches(first: list[float | None], second: list[float | None]) -> bool:
    """Whether two fingerprints agree, where both are known, up to the rounding of bfloat16."""
    if not (_numbers(first) and _numbers(second)) or len(first) != len(second):
        return False
    known = [(a, b) for a, b in zip(first, second, strict=True) if a is not None and b is not None]
    return bool(known) and all(abs(a - b) <= 1e-5 + _TOLERANCE * abs(b) for a, b in known)


def _numbers(values: object) -> bool:
    """Whether these are numbers, and None for some of them."""
    if not isinstance(values, list) or all(value is None for value in values):
        return False
    return all(value is None or (isinstance(value, float | int) and abs(value) < 2**63) for value in values)
