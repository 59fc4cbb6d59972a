"""A CLIP of sentence-transformers that searches pictures by words, encoded with a pruner attached.

    python examples/sentence_transformers_search.py clip photos "a red car" runs/fit

Only the image side is pruned: words are encoded as before.
"""

from __future__ import annotations

from pathlib import Path

from jsonargparse import auto_cli
from PIL import Image
from sentence_transformers import SentenceTransformer, util

import patchranking


def main(model: Path, photos: Path, words: str, pruner: Path, k: int = 5) -> None:
    """Prints the pictures that are most like the words.

    Args:
        model: Folder of a CLIP, of sentence-transformers or of transformers.
        photos: Folder of pictures.
        words: What to look for.
        pruner: Folder that ``patchranking fit`` wrote for this CLIP.
        k: How many pictures.
    """
    clip = SentenceTransformer(str(model), device="cpu")
    files = sorted(path for path in photos.rglob("*") if path.suffix.lower() in (".jpg", ".jpeg", ".png", ".webp"))
    with patchranking.Pruner.from_pretrained(pruner).attached(clip):
        vectors = clip.encode([Image.open(file).convert("RGB") for file in files], convert_to_tensor=True)
    for found in util.semantic_search(clip.encode([words], convert_to_tensor=True), vectors, top_k=k)[0]:
        print(f"{found['score']:.4f}  {files[int(found['corpus_id'])].relative_to(photos)}")


if __name__ == "__main__":
    auto_cli(main)
