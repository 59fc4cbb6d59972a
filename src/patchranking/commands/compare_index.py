"""patchranking compare-index."""

from __future__ import annotations

from pathlib import Path

__all__ = ["compare_index"]


def compare_index(dense: Path, pruned: Path, queries: int = 1000, seed: int = 0) -> None:
    """Compares two folders that embed wrote: cosine of the vectors, and neighbours that stay.

    Args:
        dense: Folder of the dense model's vectors.
        pruned: Folder of a pruned model's vectors of the same images.
        queries: Images to ask with, drawn by seed.
        seed: Random seed.
    """
    from patchranking.embedding import compare  # here, so that --help need not wait for torch

    found = compare.compare_index(dense, pruned, queries, seed)
    print(f"{found.images} images in both, {found.queries} of them asked with")
    print(f"overlap@10 {found.overlap_at_10:.4f}: so much of the 10 nearest neighbours is the same in both")
    print(f"cosine {found.cosine:.4f} on average, {found.lowest_cosine:.4f} at the lowest")
    for folder, (number, keys) in zip((dense, pruned), found.missing, strict=True):
        if number:
            print(f"{number} missing in {folder}: {', '.join(keys)}{', ...' if number > len(keys) else ''}")
