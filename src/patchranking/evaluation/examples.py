"""Examples: single images with the golden ranking of their patches and what methods keep of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from PIL import Image

from patchranking.data import ImageData, read_batches
from patchranking.methods import Method
from patchranking.methods.batch import Batch
from patchranking.methods.golden import golden_importance
from patchranking.pruning.select import best_first, kept_count
from patchranking.towers.load import LoadedModel

__all__ = ["Example", "examples"]


@dataclass(frozen=True)
class Example:
    """One image with what is known about its patches.

    Attributes:
        image: RGB square as the model sees it.
        caption: Plain text under the image.
        importance: Golden importance ``(rows, cols)``, higher = keep; None if the golden ranking was not run.
        places: From method to the place of every patch in its order, ``(rows, cols)``, 0 = stays longest.
    """

    image: Image.Image
    caption: str
    importance: np.ndarray | None = None
    places: dict[str, np.ndarray] = field(default_factory=dict)

    def kept(self, method: str, rate: float) -> np.ndarray:
        """Which patches a method keeps at a keep rate, boolean ``(rows, cols)``."""
        return np.asarray(self.places[method] < kept_count(rate, self.places[method].size))


@torch.inference_mode()
def examples(
    model: LoadedModel, data: ImageData, images: Sequence[int], methods: Sequence[Method], block: int, golden: bool
) -> list[Example]:
    """Reads some images again to show them.

    Args:
        model: The model.
        data: The images.
        images: Indices of a few that can be read.
        methods: Whose choice to show, where they have one before the first stage.
        block: The first stage.
        golden: Whether to search for the golden ranking.
    """
    tower, found = model.tower, []
    scorers = {method.name: scorer for method in methods if (scorer := method.first_scorer(tower, block)) is not None}
    for read, pixels in read_batches(data, model.preprocess, 1, {}, images):
        batch = Batch(tower, pixels.to(tower.device, tower.dtype), read)
        importance = golden_importance(batch, block).view(tower.grid).float().cpu().numpy() if golden else None
        places = {}
        for name, scorer in scorers.items():
            order = best_first(scorer(batch.entering(block)), tower.num_patches)[0]
            places[name] = order.argsort().view(tower.grid).cpu().numpy()
        caption = data.keys[read[0]] if data.labels is None else data.class_names[data.labels[read[0]]]
        found.append(Example(model.picture(pixels[0]), caption, importance, places))
    return found
