"""A batch of images and what several methods share of it."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from typing import Any

from torch import Tensor

from patchranking.towers import VisionTower

__all__ = ["Batch"]


class Batch:
    """Preprocessed images; what several methods need of them is computed once.

    Args:
        tower: The image encoder.
        pixels: ``(batch, 3, height, width)``.
        images: Indices of the images in their data set; 0, 1, ... when omitted.
    """

    def __init__(self, tower: VisionTower, pixels: Tensor, images: Sequence[int] = ()) -> None:
        self.tower, self.pixels = tower, pixels
        self.images = list(images) or list(range(len(pixels)))
        self._entering: dict[int, Tensor] = {}
        self._found: dict[Hashable, Any] = {}

    def entering(self, block: int) -> Tensor:
        """Tokens of the dense model that enter a block, ``(batch, prefix + patches, width)``."""
        if block not in self._entering:
            earlier = max((known for known in self._entering if known < block), default=None)
            self._entering[block] = (
                self.tower.embed(self.pixels, block)
                if earlier is None
                else self.tower.run(self._entering[earlier], earlier, block)
            )
        return self._entering[block]

    @property
    def features(self) -> Tensor:
        """Features of the dense model, ``(batch, features)``, computed from the deepest block that is known."""

        def run() -> Tensor:
            deepest = max(self._entering, default=0)
            return self.tower.pool(self.tower.run(self.entering(deepest), deepest))

        return self.once("features", run)

    def once(self, key: Hashable, compute: Callable[[], Any]) -> Any:
        """What ``compute`` returns, called once for a key."""
        if key not in self._found:
            self._found[key] = compute()
        return self._found[key]

    def rows(self, rows: Sequence[int]) -> Batch:
        """Some of the images; the same rows give the same batch."""
        if len(rows) == len(self.pixels):
            return self
        return self.once(("rows", *rows), lambda: _Part(self, rows))


class _Part(Batch):
    """Some rows of a batch, which take what the whole batch has computed."""

    def __init__(self, whole: Batch, rows: Sequence[int]) -> None:
        super().__init__(whole.tower, whole.pixels[list(rows)], [whole.images[row] for row in rows])
        self._whole, self._rows = whole, list(rows)

    def entering(self, block: int) -> Tensor:
        return self.once(("entering", block), lambda: self._whole.entering(block)[self._rows])

    @property
    def features(self) -> Tensor:
        return self._whole.features[self._rows]
