"""Several sets of pictures as one, and pictures that two sets share."""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Sequence

import numpy as np
from PIL import Image

from patchranking.data.base import ImageData
from patchranking.data.images import UnreadableImageError

__all__ = ["joined", "shared_pictures"]


def joined(sets: Sequence[ImageData]) -> ImageData:
    """All pictures of several sets, one set after the other, without labels."""
    return _Joined(sets)


class _Joined(ImageData):
    """Keys begin with the name and the split of the set, and with its number where these come twice."""

    def __init__(self, sets: Sequence[ImageData]) -> None:
        self._sets = sets
        self._places = [(number, index) for number, data in enumerate(sets) for index in range(len(data))]
        self.name, self.split = ("+".join(dict.fromkeys(names)) for names in zip(*_names(sets), strict=True))
        names = ["/".join(name) for name in _names(sets)]
        unique = [name if names.count(name) == 1 else f"{name}-{number}" for number, name in enumerate(names)]
        self.keys = [f"{unique[number]}/{sets[number].keys[index]}" for number, index in self._places]
        self.labels, self.class_names, self.templates = None, [], sets[0].templates
        self.left_out = {
            f"{name}/{left}": why
            for name, data in zip(unique, sets, strict=True)
            for left, why in data.left_out.items()
        }
        self.notes = [note for data in sets for note in data.notes]

    def image(self, index: int) -> Image.Image:
        number, own = self._places[index]
        return self._sets[number].image(own)

    def mask(self, index: int) -> np.ndarray | None:
        number, own = self._places[index]
        return self._sets[number].mask(own)


def _names(sets: Sequence[ImageData]) -> list[tuple[str, str]]:
    return [(data.name, data.split) for data in sets]


def shared_pictures(first: ImageData, second: ImageData) -> list[str]:
    """Keys of the second set whose pictures are in the first: of the same file name, and equal pixel by pixel.

    Only pictures with a file name that both sets have are read.
    """
    ours, theirs = _by_name(first), _by_name(second)
    shared: list[int] = []
    for name in ours.keys() & theirs.keys():
        known = {_digest(first, image) for image in ours[name]} - {None}
        shared += [image for image in theirs[name] if _digest(second, image) in known]
    return [second.keys[image] for image in sorted(shared)]


def _by_name(data: ImageData) -> dict[str, list[int]]:
    found: dict[str, list[int]] = defaultdict(list)
    for index, key in enumerate(data.keys):
        found[key.rpartition("/")[2]].append(index)
    return found


def _digest(data: ImageData, index: int) -> str | None:
    """Of the pixels; None where they cannot be read."""
    try:
        image = data.image(index)
    except UnreadableImageError:
        return None
    return hashlib.sha256(f"{image.size}".encode() + image.tobytes()).hexdigest()
