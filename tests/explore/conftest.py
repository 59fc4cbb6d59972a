from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from patchranking.data import ImageData
from patchranking.data.images import UnreadableImageError
from patchranking.explore.look import Explorer
from patchranking.pruner import Pruner
from patchranking.pruning.schedule import Schedule


class Noise(ImageData):
    """Seven pictures of noise, of which one cannot be read."""

    def __init__(self):
        self.name, self.split, self.keys = "noise", "test", [f"{number}.png" for number in range(7)]
        self.class_names, self.labels = ["red", "green", "blue"], [1, 0, 0, 1, 2, 2, 0]
        self.templates = ("a {}",)

    def image(self, index):
        if index == 2:
            raise UnreadableImageError("a bad day")
        return Image.fromarray(np.random.default_rng(index).integers(0, 255, (32, 32, 3), np.uint8))


@pytest.fixture
def noise():
    return Noise()


@pytest.fixture
def pruner(tiny):
    return Pruner.unfitted(tiny.tower, "tiny", Schedule({1: 0.75, 3: 0.5}))


@pytest.fixture
def explorer(tiny, noise, pruner):
    return Explorer(tiny, noise, pruner)
