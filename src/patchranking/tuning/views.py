"""Views of the pictures tuned on: a fixed sequence of random crops."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset

from patchranking.data import ImageData
from patchranking.extras import import_extra
from patchranking.seeding import nth_seed
from patchranking.towers.load import LoadedModel

__all__ = ["Views", "augmentation"]

_SMALLEST_CROP = 0.5


def augmentation(model: LoadedModel) -> Callable[[Image.Image], Tensor]:
    """Makes a picture a random crop of half of it or more, mirrored half of the time, as the model's pixels.

    Args:
        model: Gives the size and the normalisation.

    Returns:
        Function from an RGB picture to pixels ``(3, height, width)``, float32, by torch's random numbers.

    Raises:
        MissingExtraError: If torchvision is not installed.
    """
    v2 = import_extra("torchvision.transforms.v2", "Augmentation needs torchvision", "tune")
    size, bicubic = model.tower.image_size, v2.InterpolationMode.BICUBIC
    return v2.Compose(
        [
            v2.RandomResizedCrop(size, (_SMALLEST_CROP, 1.0), interpolation=bicubic, antialias=True),
            v2.RandomHorizontalFlip(),
            v2.PILToTensor(),
            v2.ToDtype(torch.float32, scale=True),
            v2.Normalize(list(model.mean), list(model.std)),
        ]
    )


class Views(Dataset[tuple[Tensor, int | str]]):
    """A fixed sequence of augmented views: item i is the same whoever asks for it, and when.

    An item is the pixels ``(3, height, width)`` of a random view and the image's class, or one of its captions.

    Args:
        data: Labelled or captioned images.
        order: Index of the image of each item.
        view: Turns an RGB picture into pixels, with torch's random numbers.
        seed: Seed of the views and the captions.
    """

    def __init__(self, data: ImageData, order: Sequence[int], view: Callable[[Image.Image], Tensor], seed: int) -> None:
        self.data, self.order, self.view, self.seed = data, order, view, seed

    def __len__(self) -> int:
        return len(self.order)

    def __getitem__(self, item: int) -> tuple[Tensor, int | str]:
        index = self.order[item]
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(nth_seed(self.seed, item))
            pixels = self.view(self.data.image(index))
            if self.data.captions is not None:
                captions = self.data.captions[index]
                return pixels, captions[int(torch.randint(len(captions), ()))]
        assert self.data.labels is not None
        return pixels, self.data.labels[index]
