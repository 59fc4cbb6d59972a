"""What every set of images offers, and what the sources of images share."""

from __future__ import annotations

import os
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
from PIL import Image

from patchranking.data.classnames import are_ids, distinct
from patchranking.data.templates import templates_for
from patchranking.errors import UserError, one_line

__all__ = [
    "DATA_HELP",
    "ClassesName",
    "ImageData",
    "chosen_from",
    "distinct_ends",
    "inside",
    "number_classes",
    "of_classes",
    "printable",
    "row_keys",
    "sample",
    "subset",
]

DATA_HELP = (
    "demo[:split], hf:NAME[:split], wds:SHARDS, torchvision:NAME[:split], "
    "a folder with one sub-folder a class (or flat), several folders joined by commas, or a list of captions "
    "(.tsv, .csv, .json)"
)

ClassesName = Literal["all", "base", "new"]


class ImageData(ABC):
    """An ordered set of images; it can be pickled and read in other processes.

    Attributes:
        name: For tables, e.g. ``"flowers"``.
        split: For tables, e.g. ``"val"``.
        keys: One stable name per image; the images' order.
        labels: Class index per image, -1 where it is lost with an unreadable image; None when unlabelled.
        class_names: Natural names of the classes, empty when unlabelled.
        templates: Zero-shot prompt templates with one ``{}``.
        captions: Captions of every image, one or more; None without.
        left_out: What lies among the images and is none of them: name -> reason.
        notes: Sentences on what was assumed about the classes.
    """

    name: str
    split: str
    keys: list[str]
    labels: list[int] | None
    class_names: list[str]
    templates: tuple[str, ...]
    captions: list[list[str]] | None = None
    left_out: Mapping[str, str] = {}
    notes: Sequence[str] = ()

    def __len__(self) -> int:
        return len(self.keys)

    @abstractmethod
    def image(self, index: int) -> Image.Image:
        """The RGB picture; raises UnreadableImageError when it cannot be used."""

    def mask(self, index: int) -> np.ndarray | None:
        """Boolean object mask ``(height, width)`` where it is known."""
        return None

    def _describe(
        self, name: str, split: str, keys: list[str], classes: list[Any], names: Sequence[str], chosen: list[int]
    ) -> None:
        """Sets the attributes of the chosen images; see ``number_classes`` for the classes and their names."""
        self.name, self.split, self.templates = name, split, templates_for(name)
        self.keys = [printable(keys[index]) for index in chosen]
        self.class_names, labels = number_classes(classes, names)
        self.labels = None if labels is None else [labels[index] for index in chosen]
        if are_ids(self.class_names):
            self.notes = [
                *self.notes,
                f"Class names such as '{self.class_names[0]}' are no words, which zero-shot accuracy needs: name the "
                "classes in a file classnames.txt beside the images.",
            ]


def sample(length: int, limit: int | None, seed: int) -> list[int]:
    """Indices of at most ``limit`` images, ascending: a seeded sample."""
    if limit is None or limit >= length:
        return list(range(length))
    chosen: list[int] = np.sort(np.random.default_rng(seed).choice(length, limit, replace=False)).tolist()
    return chosen


def subset(data: ImageData, limit: int, seed: int) -> ImageData:
    """At most ``limit`` of the images, drawn by seed, in their order and under their keys."""
    return data if limit >= len(data) else _Subset(data, sample(len(data), limit, seed))


def chosen_from(data: ImageData, chosen: Sequence[int]) -> ImageData:
    """Some of the images by their indices, under their keys."""
    return _Subset(data, list(chosen))


def of_classes(data: ImageData, classes: ClassesName) -> ImageData:
    """The images of the first half of the classes (``base``), of the second (``new``), or ``all``.

    The halves of base-to-new generalisation (CoCoOp): the classes in their order, the first half rounded up.

    Raises:
        UserError: If the images have no classes to halve.
    """
    if classes == "all":
        return data
    if data.labels is None or len(data.class_names) < 2:
        raise UserError(
            "Base and new classes are the halves of 2 classes or more, and these images have none: choose all."
        )
    half = (len(data.class_names) + 1) // 2
    kept = range(half) if classes == "base" else range(half, len(data.class_names))
    chosen = [index for index, label in enumerate(data.labels) if label in kept]
    found = _Subset(data, chosen)
    found.class_names = [data.class_names[label] for label in kept]
    found.labels = [data.labels[index] - kept[0] for index in chosen]
    return found


class _Subset(ImageData):
    def __init__(self, data: ImageData, chosen: list[int]) -> None:
        self._data, self._chosen = data, chosen
        self.name, self.split = data.name, data.split
        self.class_names, self.templates = data.class_names, data.templates
        self.left_out, self.notes = data.left_out, data.notes
        self.keys = [data.keys[index] for index in chosen]
        self.labels = None if data.labels is None else [data.labels[index] for index in chosen]
        self.captions = None if data.captions is None else [data.captions[index] for index in chosen]

    def image(self, index: int) -> Image.Image:
        return self._data.image(self._chosen[index])

    def mask(self, index: int) -> np.ndarray | None:
        return self._data.mask(self._chosen[index])


def number_classes(classes: Sequence[Any], names: Sequence[str] = ()) -> tuple[list[str], list[int] | None]:
    """Turns what a source says about classes into names and labels.

    Args:
        classes: Class of every image, all numbers or all names; None without one, -1 where it is lost with the image.
        names: Names of the numbered classes; when omitted, classes are called by their own name or number.

    Returns:
        The class names, their underscores read as spaces, and the labels. Of classes with one name, the second is
        called ``"NAME (2)"``. One image without a class makes the set unlabelled: ``[]`` and None.

    Raises:
        UserError: If a class has no name.
    """
    if None in classes or all(value == -1 for value in classes):
        return [], None
    found = sorted(set(classes) - {-1})
    if names and found[-1] >= len(names):
        raise UserError(
            f"An image is of class {found[-1]}, but only classes 0 to {len(names) - 1} have a name: add names."
        )
    numbers = {value: value if names else number for number, value in enumerate(found)} | {-1: -1}
    shown = [printable(str(name)).replace("_", " ") for name in names or found]
    return distinct(shown), [numbers[value] for value in classes]


def row_keys(length: int) -> list[str]:
    """Keys of images that have a place in their source but no name."""
    return [f"row-{index:08d}" for index in range(length)]


def distinct_ends(paths: Sequence[Path], shortest: int) -> list[str]:
    """The shortest ends of paths, so many names or more, that tell them apart.

    Raises:
        UserError: If a path is given twice.
    """
    parts = [Path(os.path.realpath(path)).parts for path in paths]
    if len(set(parts)) < len(parts):
        raise UserError(f"The same path is given twice in '{','.join(map(str, paths))}': give each one once.")
    lengths = range(shortest, max(map(len, parts)) + 2)
    length = next(n for n in lengths if len({part[-n:] for part in parts}) == len(parts))
    return ["/".join(part[-length:]) for part in parts]


def inside(name: str) -> bool:
    """Whether a path that a list names stays in the list's folder: it is relative, and never goes above it."""
    path = os.path.normpath(name.replace("\\", "/"))
    return not (os.path.isabs(name) or Path(name).drive or path.split("/")[0] == "..") and "\0" not in name


def printable(name: str) -> str:
    """Escapes what a name holds that is not valid text or would end a line, so that it can be stored and printed."""
    return one_line(name.encode("utf-8", "backslashreplace").decode())
