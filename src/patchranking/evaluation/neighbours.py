"""What pruning does to an index of dense features: who the nearest neighbours are, and of what class."""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["knn_top1", "nearest", "overlap", "voted"]

_TEMPERATURE = 0.07
_ROWS = 1024


def nearest(queries: Tensor, index: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """The nearest other images of an index; query i is another view of the index's image i, and never finds itself.

    Args:
        queries: Unit features ``(images, features)``, for example of a pruned model.
        index: Unit features of the same images, ``(images, features)``, of the dense model.
        k: Neighbours, at most one fewer than there are images.

    Returns:
        Their numbers and their cosines, ``(images, k)``, nearest first.
    """
    found = []
    for first in range(0, len(queries), _ROWS):
        cosines = queries[first : first + _ROWS] @ index.T
        cosines.diagonal(first).fill_(-torch.inf)
        found.append(cosines.topk(k, dim=1))
    return torch.cat([part.indices for part in found]), torch.cat([part.values for part in found])


def overlap(first: Tensor, second: Tensor) -> Tensor:
    """Share of the neighbours that two lists have in common, ``(images,)``; the lists are ``(images, k)``."""
    return (first.unsqueeze(2) == second.unsqueeze(1)).any(2).float().mean(1)


def knn_top1(neighbours: Tensor, cosines: Tensor, labels: Tensor) -> Tensor:
    """Whether the neighbours vote for an image's own class, 1 or 0, ``(images,)``; see ``voted``."""
    return voted(neighbours, cosines, labels).eq(labels).float()


def voted(neighbours: Tensor, cosines: Tensor, labels: Tensor, temperature: float = _TEMPERATURE) -> Tensor:
    """The class for which most neighbours vote, weighted as in instance discrimination (Wu et al., 2018).

    Args:
        neighbours: Numbers of each image's neighbours in an index, ``(images, k)``.
        cosines: Their cosines, ``(images, k)``.
        labels: Class of every image of the index.
        temperature: A vote weighs ``exp(cosine / temperature)``.

    Returns:
        ``(images,)``.
    """
    votes = cosines.new_zeros(len(cosines), int(labels.max()) + 1)
    return votes.scatter_add(1, labels[neighbours], (cosines / temperature).exp()).argmax(1)
