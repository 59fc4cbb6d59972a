"""The pictures of a training: read once, made small, and the views of them, the same in every run."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset, Sampler
from tqdm import tqdm

from patchranking.data import ImageData, none_readable
from patchranking.data.images import UnreadableImageError
from patchranking.errors import UserError
from patchranking.seeding import nth_seed, seeded_everywhere

__all__ = ["Batches", "Order", "Pictures", "Shuffled", "Views", "drop_noise", "read_pictures"]

_LARGER = 2
"""Pictures are made so many times as large as the encoder's images."""


@dataclass(frozen=True)
class Pictures:
    """Pictures that can be read.

    Attributes:
        data: Where they are from.
        indices: Their indices in it.
        skipped: Key -> why a picture was left out.
        kept: The pictures themselves, made small; empty where they are read again each time.
    """

    data: ImageData
    indices: list[int]
    skipped: dict[str, str]
    kept: list[Image.Image]

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, place: int) -> Image.Image:
        return self.kept[place] if self.kept else self.data.image(self.indices[place])


def read_pictures(data: ImageData, image_size: int, in_memory: bool = True, progress: bool = True) -> Pictures:
    """Reads every picture once, so that none stops the training, and keeps small ones in memory.

    Args:
        data: The pictures.
        image_size: Side of the encoder's images; the shorter side of what is kept is at most twice as long.
        in_memory: Keep them; otherwise they are read again each time, which suits more than some 100,000.
        progress: Show a bar.

    Raises:
        UserError: If fewer than two can be read.
    """
    indices: list[int] = []
    kept: list[Image.Image] = []
    skipped: dict[str, str] = {}
    for index in tqdm(range(len(data)), desc="read", unit="image", disable=not progress):
        try:
            picture = data.image(index)
        except UnreadableImageError as error:
            skipped[data.keys[index]] = str(error)
            continue
        indices.append(index)
        if in_memory:
            kept.append(_small(picture, _LARGER * image_size))
    if not indices and skipped:
        raise none_readable(skipped)
    if len(indices) < 2:
        raise UserError(f"Pretraining needs 2 pictures or more that can be read, not {len(indices)}.")
    return Pictures(data, indices, skipped, kept)


def _small(picture: Image.Image, side: int) -> Image.Image:
    shorter = min(picture.size)
    if shorter <= side:
        return picture
    size = (max(1, round(picture.width * side / shorter)), max(1, round(picture.height * side / shorter)))
    return picture.resize(size, Image.Resampling.BICUBIC, reducing_gap=3.0)


class Order(Protocol):
    """Which pictures an epoch shows, in order, as a pure function of its number; all epochs are equally long."""

    def __call__(self, epoch: int) -> Sequence[int]:
        """Places of the pictures."""
        ...


@dataclass(frozen=True)
class Shuffled:
    """All pictures once an epoch, every epoch in its own order.

    Attributes:
        pictures: How many there are.
        seed: Of the orders.
    """

    pictures: int
    seed: int

    def __call__(self, epoch: int) -> Sequence[int]:
        order: list[int] = np.random.default_rng([self.seed, epoch]).permutation(self.pictures).tolist()
        return order


class Views(Dataset[list[Tensor]]):
    """Endless items, each the views of one picture: item i is the same whoever asks for it, and when.

    Args:
        pictures: The pictures.
        order: Which one comes when.
        views: Turns an RGB picture into views, with torch's and numpy's random numbers.
        seed: Seed of the views.
    """

    def __init__(
        self, pictures: Pictures, order: Order, views: Callable[[Image.Image], Sequence[Tensor]], seed: int
    ) -> None:
        self._pictures, self._views, self._seed = pictures, views, seed
        self._order, self._epoch, self._places = order, 0, order(0)
        self._length = len(self._places)

    def __len__(self) -> int:
        return self._length

    def __getitem__(self, item: int) -> list[Tensor]:
        picture = self._pictures[self.place_of(item)]
        with seeded_everywhere(nth_seed(self._seed, item)):
            return list(self._views(picture))

    def place_of(self, item: int) -> int:
        """Place of an item's picture among the pictures."""
        epoch, place = divmod(item, self._length)
        if epoch != self._epoch:
            self._epoch, self._places = epoch, self._order(epoch)
        return self._places[place]


class Batches(Sampler[list[int]]):
    """The items of every step from some step on, without end: those of one process.

    Args:
        first: The first step.
        batch_size: Items of a step over all processes.
        rank: Number of this process.
        processes: How many there are; every one takes the items ``rank, rank + processes, ...`` of a step.
    """

    def __init__(self, first: int, batch_size: int, rank: int = 0, processes: int = 1) -> None:
        self._first, self._batch_size, self._rank, self._processes = first, batch_size, rank, processes

    def __iter__(self) -> Iterator[list[int]]:
        step = self._first
        while True:
            start = step * self._batch_size
            yield list(range(start + self._rank, start + self._batch_size, self._processes))
            step += 1


def drop_noise(seed: int, step: int, batch_size: int, rank: int = 0, processes: int = 1) -> Callable[[int], Tensor]:
    """Random numbers that choose the patches of a step, a pure function of the seed and the step.

    Args:
        seed: Of the training.
        step: Its number.
        batch_size: Images of the step over all processes.
        rank: Number of this process.
        processes: How many there are.

    Returns:
        From a number of patches to ``(images of this process, patches)``; other numbers at every call.
    """
    generator = torch.Generator().manual_seed(nth_seed(seed, step))
    return lambda patches: torch.rand(batch_size, patches, generator=generator)[rank::processes]
