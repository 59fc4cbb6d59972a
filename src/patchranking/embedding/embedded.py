"""A batch of vectors, as ``embed`` yields them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np

__all__ = ["Embedded"]


@dataclass(frozen=True)
class Embedded:
    """Vectors of a batch; the rows of all three belong together.

    Attributes:
        keys: Names of the images.
        vectors: ``(images, features)``, in the type that the settings name.
        sizes: Width and height of the images, int32 ``(images, 2)``.
        failed: Keys of images that have no vector, with reasons.
    """

    keys: list[str]
    vectors: np.ndarray
    sizes: np.ndarray
    failed: list[tuple[str, str]]
