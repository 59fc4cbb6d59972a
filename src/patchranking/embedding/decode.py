"""Entries of a stream -> pixels, in processes of their own."""

from __future__ import annotations

import pickle
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from patchranking.data.images import UnreadableImageError, read_sized
from patchranking.data.reading import preprocessed
from patchranking.data.streams import Entry, ImageStream
from patchranking.extras import declare_missing_operators

__all__ = ["Decoded", "Decoder", "Work", "shrinks"]

_DRAFT = 2
"""A JPEG may be decoded smaller as long as its shorter side has so many times the pixels of the model's longer one."""
_PROBE = 4


class Work(NamedTuple):
    """A batch to decode.

    Attributes:
        shard: Number of the shard it is part of.
        start: Row of its first entry there.
        entries: The entries in their order; None leaves a black picture in the place of one.
    """

    shard: int
    start: int
    entries: Sequence[Entry | None]


class Decoded(NamedTuple):
    """A decoded batch; keys come with the pixels that belong to them.

    Attributes:
        shard: As in ``Work``.
        start: As in ``Work``.
        keys: ``(batch,)``, empty where there was no entry.
        pixels: ``(batch, 3, height, width)``, zero where there is an error.
        sizes: Width and height of the pictures as they are stored, int32 ``(batch, 2)``, zero where they are unknown.
        errors: Why a picture cannot be used, empty where it can.
    """

    shard: int
    start: int
    keys: list[str]
    pixels: Tensor
    sizes: Tensor
    errors: list[str]


@dataclass(frozen=True)
class Decoder:
    """Reads and preprocesses pictures; a picture that cannot be used never stops it, nor changes others' places.

    Attributes:
        stream: Where entries are from.
        preprocess: Turns a picture into pixels ``(3, height, width)``.
        image_size: Height and width of these.
        draft: Whether a large JPEG may be decoded at a part of its size.
    """

    stream: ImageStream
    preprocess: Callable[[Image.Image], Tensor]
    image_size: tuple[int, int]
    draft: bool

    def __getstate__(self) -> dict[str, Any]:
        """Keeps the preprocessing apart, as what it is made of may need torchvision, which may need help."""
        return vars(self) | {"preprocess": pickle.dumps(self.preprocess)}

    def __setstate__(self, state: dict[str, Any]) -> None:
        declare_missing_operators()
        vars(self).update(state | {"preprocess": pickle.loads(state["preprocess"])})

    def __getitems__(self, work: Work) -> Decoded:
        """Decodes a batch; the name is that by which a ``DataLoader`` asks for one."""
        count = len(work.entries)
        pixels = torch.zeros(count, 3, *self.image_size)
        sizes = torch.zeros(count, 2, dtype=torch.int32)
        errors = [""] * count
        for row, entry in enumerate(work.entries):
            if entry is None:
                continue
            try:
                image, size = self._read(entry)
                sizes[row] = torch.tensor(size)
                pixels[row] = self._preprocessed(image)
            except UnreadableImageError as error:
                errors[row] = str(error)
        keys = ["" if entry is None else entry.key for entry in work.entries]
        return Decoded(work.shard, work.start, keys, pixels, sizes, errors)

    def _read(self, entry: Entry) -> tuple[Image.Image, tuple[int, int]]:
        if entry.lost:
            raise UnreadableImageError(entry.lost)
        return read_sized(self.stream.content(entry.place), _DRAFT * max(self.image_size) if self.draft else None)

    def _preprocessed(self, image: Image.Image) -> Tensor:
        pixels = preprocessed(self.preprocess, image)
        if pixels.shape != (3, *self.image_size):
            raise UnreadableImageError(f"the preprocessing makes it {tuple(pixels.shape)}, not {(3, *self.image_size)}")
        return pixels


def shrinks(preprocess: Callable[[Image.Image], Tensor], image_size: tuple[int, int]) -> bool:
    """Whether a preprocessing scales large pictures down, so that it makes the same of one at half its size.

    One that cuts a piece out of the picture as it is makes something else of it.
    """
    levels = np.random.default_rng(0).integers(0, 256, (8, 8, 3), dtype=np.uint8)
    height, width = image_size
    half = Image.fromarray(levels).resize((_PROBE * width, _PROBE * height), Image.Resampling.BICUBIC)
    try:
        first, second = (preprocess(one) for one in (half, half.resize((2 * half.width, 2 * half.height))))
    except Exception:
        return False
    return first.shape == second.shape and bool((first - second).abs().mean() < 0.02 * first.std())
