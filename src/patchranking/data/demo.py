"""The generated scenes of the demo as images."""

from __future__ import annotations

import numpy as np
from PIL import Image

from patchranking.data.base import ImageData
from patchranking.demo import scenes

__all__ = ["DemoData"]


class DemoData(ImageData):
    """The first scenes of a split of ``patchranking.demo.scenes``."""

    def __init__(self, split: str, length: int) -> None:
        self.name, self.split = "demo", split
        self.class_names = list(scenes.CLASSES)
        self.templates = scenes.TEMPLATES
        drawn = [scenes.scene(split, index) for index in range(length)]
        self.keys = [scene.key for scene in drawn]
        self.labels = [scene.label for scene in drawn]
        self._masks = [scene.mask for scene in drawn]
        self._images = [scene.image for scene in drawn]

    def image(self, index: int) -> Image.Image:
        return self._images[index]

    def mask(self, index: int) -> np.ndarray:
        return self._masks[index]
