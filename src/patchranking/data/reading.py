"""Reads images in batches; one that cannot be used is skipped with its reason and never stops a run."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence

import torch
from PIL import Image
from torch import Tensor
from tqdm import tqdm

from patchranking.data.base import ImageData
from patchranking.data.images import UnreadableImageError, reason
from patchranking.errors import UserError

__all__ = ["none_readable", "preprocessed", "read_batches"]


def read_batches(
    data: ImageData,
    preprocess: Callable[[Image.Image], Tensor],
    batch_size: int,
    skipped: dict[str, str],
    indices: Sequence[int] | None = None,
    progress: str | None = None,
) -> Iterator[tuple[list[int], Tensor]]:
    """Yields images in order.

    Args:
        data: The images.
        preprocess: Turns a picture into pixels ``(3, height, width)``.
        batch_size: Images per batch; the last one may be smaller.
        skipped: Receives ``key -> reason`` for every image left out.
        indices: Which images; all when omitted.
        progress: Label of a progress bar, none when omitted.

    Yields:
        The images' indices and their pixels ``(batch, 3, height, width)``.
    """
    chosen = range(len(data)) if indices is None else indices
    found: list[int] = []
    pixels: list[Tensor] = []
    with tqdm(chosen, desc=progress, unit="image", disable=progress is None) as bar:
        for index in bar:
            try:
                pixels.append(preprocessed(preprocess, data.image(index)))
                found.append(index)
            except UnreadableImageError as error:
                skipped[data.keys[index]] = str(error)
            if len(found) == batch_size:
                yield found, torch.stack(pixels)
                found, pixels = [], []
        if found:
            yield found, torch.stack(pixels)


def preprocessed(preprocess: Callable[[Image.Image], Tensor], image: Image.Image) -> Tensor:
    """The pixels of a picture; UnreadableImageError, with its size, where there can be none."""
    try:
        return preprocess(image)
    except Exception as error:
        size = f"{image.width} x {image.height} pixels"
        raise UnreadableImageError(f"cannot be preprocessed, {size}: {reason(error)}") from error


def none_readable(skipped: Mapping[str, str]) -> UserError:
    """The error when every image was left out."""
    key, why = next(iter(skipped.items()))
    return UserError(f"None of the {len(skipped)} images can be read, for example '{key}': {why}")
