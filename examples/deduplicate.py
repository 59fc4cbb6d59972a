"""Finds pictures that a folder holds twice or nearly so: scaled, compressed again, cropped a little.

    python examples/deduplicate.py open_clip:local-dir:clip photos --pruner runs/fit --threshold 0.97

All pictures are encoded by the same pruned model; look at some pairs before you trust a threshold. Nothing is deleted.
Files that cannot be read are named.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from jsonargparse import auto_cli

import patchranking

ROWS = 1024
"""Pictures that are compared with all others at once."""


def pairs(vectors: np.ndarray, threshold: float) -> Iterator[tuple[int, int, float]]:
    """Every pair of unit vectors whose cosine is at least a threshold, the first of them and then the second."""
    for start in range(0, len(vectors), ROWS):
        cosines = vectors[start : start + ROWS] @ vectors.T
        later = np.triu(np.ones_like(cosines, bool), start + 1)  # each pair once, no picture with itself
        for row, other in np.argwhere(later & (cosines >= threshold)).tolist():
            yield start + row, other, float(cosines[row, other])


def main(model: str, photos: str, pruner: str = "tome", threshold: float = 0.97) -> None:
    """Prints pairs of pictures that are nearly the same, with their cosine.

    Args:
        model: As on the command line of patchranking.
        photos: A folder of pictures, of any depth.
        pruner: Folder that ``patchranking fit`` wrote for this model, or a method that needs no fit.
        threshold: Cosine from which on two pictures count as the same.
    """
    keys: list[str] = []
    vectors: list[np.ndarray] = []
    settings = patchranking.EmbedSettings(normalize=True, dtype="float32")
    for batch in patchranking.embed(model, photos, pruner, settings):
        keys += batch.keys
        vectors.append(batch.vectors)
        for key, reason in batch.failed:
            print(f"not read: {key}: {reason}")
    for one, other, cosine in pairs(np.concatenate(vectors), threshold):
        print(f"{cosine:.4f}  {keys[one]}  {keys[other]}")
    print(f"compared {len(keys)} pictures")


if __name__ == "__main__":
    auto_cli(main)
