"""Two pipelines of transformers with a pruner attached: zero-shot classification and feature extraction.

    python examples/transformers_pipelines.py clip photo.jpg runs/fit cat,dog,bird

A pipeline is attached to like a model. ``image-feature-extraction`` runs the image encoder alone, so it is given that
class; the pruner that was fitted to the whole CLIP serves it, because the weights are the same.
"""

from __future__ import annotations

from pathlib import Path

import torch
from jsonargparse import auto_cli
from PIL import Image
from torch.nn import functional as F
from transformers import AutoImageProcessor, CLIPVisionModel, pipeline

import patchranking


def main(model: Path, photo: Path, pruner: Path, labels: str) -> None:
    """Prints the classes and the cosine of the feature, dense and pruned.

    Args:
        model: Folder of a transformers CLIP.
        photo: A picture.
        pruner: Folder that ``patchranking fit`` wrote for ``hf:MODEL``.
        labels: Class names, joined by commas.
    """
    picture, names = Image.open(photo).convert("RGB"), labels.split(",")
    fitted = patchranking.Pruner.from_pretrained(pruner)

    classify = pipeline("zero-shot-image-classification", model=str(model))
    print("dense: ", classify(picture, candidate_labels=names))
    with fitted.attached(classify):
        print("pruned:", classify(picture, candidate_labels=names))

    encoder = CLIPVisionModel.from_pretrained(model)
    processor = AutoImageProcessor.from_pretrained(model)
    extract = pipeline("image-feature-extraction", model=encoder, image_processor=processor)
    dense = torch.tensor(extract(picture, pool=True)).flatten()
    with fitted.attached(extract):
        pruned = torch.tensor(extract(picture, pool=True)).flatten()
    print(f"cosine of the two features: {F.cosine_similarity(dense, pruned, dim=0):.4f}")


if __name__ == "__main__":
    auto_cli(main)
