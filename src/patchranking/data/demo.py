"""The generated scenes of the demo as images."""

from __future__ import annotations

from functools import lru_cache

import numpy as np
from PIL import Image

from patchranking.data.base import ImageData
from patchranking.demo import scenes

__all__ = ["DemoData", "by_colour"]


class DemoData(ImageData):
    """The first scenes of a split of ``patchranking.demo.scenes``."""

    def __init__(self, split: str, length: int) -> None:
        self.name, self.split = "demo", split
        self.class_names = list(scenes.CLASSES)
        self.templates = scenes.TEMPLATES
        self.keys = [scenes.key(split, index) for index in range(length)]
        self.labels = [scenes.label(split, index) for index in range(length)]

    def image(self, index: int) -> Image.Image:
        return _scene(self.split, index).image.copy()

    def mask(self, index: int) -> np.ndarray:
        return _scene(self.split, index).mask


class _ByColour(DemoData):
    """The same scenes with their captions, whose classes are the colours of their objects."""

    def __init__(self, split: str, length: int) -> None:
        super().__init__(split, length)
        self.class_names = list(scenes.COLOURS)
        self.labels = [self.class_names.index(scenes.colour(split, index)) for index in range(length)]
        self.templates = tuple(f"a {{}} {name}" for name in scenes.CLASSES)
        self.captions = [[scenes.caption(split, index)] for index in range(length)]


def by_colour(data: ImageData) -> ImageData:
    """The scenes of the demo with captions, and the 12 colours of their objects as classes; other data as they are."""
    return _ByColour(data.split, len(data)) if isinstance(data, DemoData) else data


@lru_cache(maxsize=256)
def _scene(split: str, index: int) -> scenes.Scene:
    """A scene; some are kept, since its picture and its mask are asked for one after the other."""
    return scenes.scene(split, index)
