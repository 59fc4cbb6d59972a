"""What becomes of an index when its vectors come from another encoding, such as a pruned one."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from patchranking.embedding.index import Index, nearest
from patchranking.embedding.listed import digests
from patchranking.errors import UserError, check_numbers
from patchranking.evaluation.neighbours import overlap

__all__ = ["Comparison", "compare_index"]

_NEIGHBOURS = 10
_NAMED = 5


@dataclass(frozen=True)
class Comparison:
    """Two embedded folders beside each other.

    Attributes:
        images: Images with a vector in both.
        queries: How many of them were asked with.
        overlap_at_10: Mean share of a query's 10 nearest others that are the same in both, among the images in both.
        cosine: Mean cosine of a query's two vectors.
        lowest_cosine: The lowest.
        missing: For either folder, how many images have a vector in the other only, with the first keys.
    """

    images: int
    queries: int
    overlap_at_10: float
    cosine: float
    lowest_cosine: float
    missing: tuple[tuple[int, list[str]], tuple[int, list[str]]]


def compare_index(dense: str | Path, pruned: str | Path, queries: int = 1000, seed: int = 0) -> Comparison:
    """Compares the vectors and the neighbours of the same images in two embedded folders, joined by key.

    An image that a folder has twice counts once, by its first row. Vectors are read a shard at a time; of keys, digests
    are in memory.

    Args:
        dense: A folder that ``embed`` wrote, usually of the dense model.
        pruned: Another of the same model, usually pruned.
        queries: Images to ask with, drawn by seed.
        seed: Seed of the draw.

    Raises:
        UserError: If a folder holds no vectors, they are of different models, or fewer than two images are in both.
    """
    check_numbers({"queries": queries, "seed": seed}, queries=1, seed=0)
    first, second = Index(dense), Index(pruned)
    if first.manifest["fingerprint"] != second.manifest["fingerprint"]:
        one, other = first.manifest["model"], second.manifest["model"]
        raise UserError(f"These are vectors of different models, '{one}' and '{other}': compare folders of one model.")
    unique = [np.unique(digests(index.keys(), len(index)), return_index=True) for index in (first, second)]
    names, *shared = np.intersect1d(unique[0][0], unique[1][0], assume_unique=True, return_indices=True)
    if len(names) < 2:
        raise UserError(f"'{dense}' and '{pruned}' have {len(names)} images in common: embed the same DATA into both.")
    drawn = np.random.default_rng(seed).permutation(len(names))[:queries]
    found, vectors = [], []
    for index, (_, places), own in zip((first, second), unique, shared, strict=True):
        numbers = np.full(len(index), -1)
        numbers[places[own]] = np.arange(len(names))
        asked = _rows(index, numbers, drawn)
        found.append(_neighbours(asked, index, numbers, drawn))
        vectors.append(asked)
    cosines = (vectors[0] * vectors[1]).sum(1)
    return Comparison(
        images=len(names),
        queries=len(drawn),
        overlap_at_10=overlap(*found).mean().item(),
        cosine=cosines.mean().item(),
        lowest_cosine=cosines.min().item(),
        missing=(
            _only(second, unique[1][1], shared[1]),
            _only(first, unique[0][1], shared[0]),
        ),
    )


def _shared(index: Index, numbers: np.ndarray) -> Iterator[tuple[np.ndarray, Tensor]]:
    """Numbers and vectors of the images in both folders, block by block; the number of any other is -1."""
    start = 0
    for block in index.blocks():
        here = numbers[start : (start := start + len(block))]
        yield here[here >= 0], block[torch.from_numpy(here >= 0)]


def _rows(index: Index, numbers: np.ndarray, drawn: np.ndarray) -> Tensor:
    """The vectors of the images drawn, ``(queries, features)``."""
    rows = torch.empty(len(drawn), index.manifest["features"])
    order = np.full(numbers.max() + 1, -1)
    order[drawn] = np.arange(len(drawn))
    for here, block in _shared(index, numbers):
        wanted = order[here] >= 0
        rows[torch.from_numpy(order[here][wanted])] = block[torch.from_numpy(wanted)]
    return rows


def _neighbours(asked: Tensor, index: Index, numbers: np.ndarray, drawn: np.ndarray) -> Tensor:
    """Numbers of the nearest other images in both folders, ``(queries, at most 10)``."""
    k = min(_NEIGHBOURS, int(numbers.max()))
    places = nearest(asked, (block for _, block in _shared(index, numbers)), k + 1)[1]
    found = torch.from_numpy(numbers[numbers >= 0])[places]
    itself = found == torch.from_numpy(drawn)[:, None]
    itself[:, -1] |= ~itself.any(1)
    return found[~itself].view(len(asked), k)


def _only(index: Index, places: np.ndarray, shared: np.ndarray) -> tuple[int, list[str]]:
    """How many images are in this folder only, and the first keys."""
    alone = set(np.delete(places, shared).tolist())
    return len(alone), list(islice((key for place, key in enumerate(index.keys()) if place in alone), _NAMED))
