"""A FAISS index of dense vectors that is queried with pruned ones: an index that is there need not be built again.

    python examples/faiss_dense_index.py open_clip:local-dir:clip photos queries runs/fit

Prints how many of the nearest neighbours stay. Where too few do, prune queries less: ``--keep 0.8``.
"""

from __future__ import annotations

from pathlib import Path

import faiss
import numpy as np
from jsonargparse import auto_cli

import patchranking


def main(model: str, photos: str, queries: str, pruner: Path, keep: float | None = None, k: int = 10) -> None:
    """Prints the share of the nearest neighbours of a dense query that a pruned one finds, too.

    Args:
        model: As on the command line of patchranking.
        photos: The indexed pictures: a folder, or another DATA argument.
        queries: Other pictures.
        pruner: Folder that ``patchranking fit`` wrote for this model.
        keep: Share of the patches that reaches the end in queries; that of the pruner when omitted.
        k: Neighbours.
    """
    loaded = patchranking.load_model(model)

    def vectors(data: str, pruner: Path | None = None, keep: float | None = None) -> np.ndarray:
        settings = patchranking.EmbedSettings(keep, normalize=True, dtype="float32")
        return np.concatenate([batch.vectors for batch in patchranking.embed(loaded, data, pruner, settings)])

    dense = vectors(photos)
    index = faiss.IndexFlatIP(dense.shape[1])  # inner products of unit vectors are cosines
    index.add(dense)
    _, expected = index.search(vectors(queries), k)
    _, found = index.search(vectors(queries, pruner, keep), k)
    stay = [len(set(mine) & set(theirs)) / k for mine, theirs in zip(found.tolist(), expected.tolist(), strict=True)]
    print(f"{index.ntotal} pictures, {len(stay)} queries: {np.mean(stay):.1%} of the {k} nearest neighbours stay")


if __name__ == "__main__":
    auto_cli(main)
