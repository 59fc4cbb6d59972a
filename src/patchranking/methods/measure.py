"""The one loop that measures: every image is read once, and every method encodes it."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence, Set
from typing import TypeVar

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from patchranking.data import ImageData, none_readable, read_batches
from patchranking.methods.batch import Batch
from patchranking.methods.journal import Journal
from patchranking.methods.method import Encoding
from patchranking.methods.tally import DENSE, Tally
from patchranking.towers.load import LoadedModel
from patchranking.towers.zero_shot import class_features

__all__ = ["measure", "object_share", "zero_shot_classes"]

Key = TypeVar("Key", bound=Hashable)


@torch.inference_mode()
def measure(
    model: LoadedModel,
    data: ImageData,
    encodings: Mapping[Key, Encoding],
    images: Sequence[int] | None = None,
    indexed: Set[int] = frozenset(),
    batch_size: int = 32,
    progress: str | None = "measure",
    journal: Journal | None = None,
) -> Tally:
    """Measures encodings and the dense model on the same images; what they share of an image is computed once.

    Args:
        model: The dense model.
        data: The images, labelled for accuracy.
        encodings: Key -> what to measure, of the same model.
        images: Indices of the images to read; all when omitted.
        indexed: Indices of the images whose features are kept.
        batch_size: Images per batch.
        progress: Label of the progress bar, none when omitted.
        journal: Keeps what is measured; images that are in it are not measured again.

    Returns:
        A tally with the keys of ``encodings`` and ``DENSE``.

    Raises:
        UserError: If no image can be read.
    """
    tower, tally = model.tower, Tally(data.labels, indexed)
    classes = zero_shot_classes(model, data)
    if journal is not None:
        journal.restore(tally)
    done = tally.values(DENSE, "feature_cosine")
    chosen = range(len(data)) if images is None else images
    left = [image for image in chosen if image not in done and data.keys[image] not in tally.skipped]
    for read, pixels in read_batches(data, model.preprocess, batch_size, tally.skipped, left, progress):
        batch = Batch(tower, pixels.to(tower.device, tower.dtype), read)
        parts = {key: _part(batch, encoding.images) for key, encoding in encodings.items()}
        found = {key: encodings[key].run(part) for key, part in parts.items() if part is not None}
        objects = _objects(data, batch)
        tally.add(DENSE, read, batch.features, batch.features, classes, _kept(objects, batch, None))
        for key, (features, keep_indices, errors) in found.items():
            part, own = parts[key] or batch, encodings[key].classes
            share = None if keep_indices is None else _kept(objects, part, keep_indices)
            tally.add(key, part.images, features, part.features, classes if own is None else own, share, errors)
        if journal is not None:
            journal.note(tally, read)
    if not tally.count(DENSE):
        raise none_readable(tally.skipped)
    if journal is not None:
        journal.note(tally, [], last=True)
    return tally


def _part(batch: Batch, images: Set[int] | None) -> Batch | None:
    """The images of a batch that an encoding is measured on; None if there are none."""
    rows = [row for row, image in enumerate(batch.images) if images is None or image in images]
    return batch.rows(rows) if rows else None


def _objects(data: ImageData, batch: Batch) -> dict[int, Tensor]:
    """Image -> share of the object in each patch, ``(patches,)``; empty unless all masks are known."""
    masks = {image: data.mask(image) for image in batch.images}
    shares = {image: object_share(mask, batch.tower.grid) for image, mask in masks.items() if mask is not None}
    return shares if len(shares) == len(masks) else {}


def _kept(objects: Mapping[int, Tensor], batch: Batch, keep_indices: Tensor | None) -> Tensor | None:
    """Share of the object in the patches kept, all of them when omitted, ``(batch,)``."""
    if not objects:
        return None
    shares = torch.stack([objects[image] for image in batch.images]).to(batch.pixels.device)
    return (shares if keep_indices is None else shares.gather(1, keep_indices)).sum(1)


def object_share(mask: np.ndarray, grid: tuple[int, int]) -> Tensor:
    """Share of the object's pixels that lie in each patch, ``(patches,)``, summing to 1."""
    area = F.adaptive_avg_pool2d(torch.from_numpy(mask).float()[None], grid).flatten()
    return area / area.sum().clamp_min(1e-12)


def zero_shot_classes(model: LoadedModel, data: ImageData) -> Tensor | None:
    """Unit text features of the classes, ``(classes, features)``; None without labels or a text tower."""
    if data.labels is None or model.text is None:
        return None
    return class_features(model.text, data.class_names, data.templates)
