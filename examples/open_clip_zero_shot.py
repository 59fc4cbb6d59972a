"""open_clip's zero-shot evaluation, with the dense model and with a pruner attached.

    python examples/open_clip_zero_shot.py local-dir:clip photos/val runs/fit

The model is what ``open_clip.create_model_from_pretrained`` takes. The loop is that of open_clip's training code, and
no line of it knows of the pruner.
"""

from __future__ import annotations

from pathlib import Path

import open_clip
import torch
from jsonargparse import auto_cli
from torch import Tensor
from torch.utils.data import DataLoader
from torchvision.datasets import ImageFolder

import patchranking


@torch.inference_mode()
def top1(model: open_clip.CLIP, classifier: Tensor, images: DataLoader[tuple[Tensor, Tensor]]) -> float:
    """Share of the images whose class is the most likely one; the classifier is ``(features, classes)``."""
    right = total = 0
    for pixels, target in images:
        logits = 100.0 * model.encode_image(pixels, normalize=True) @ classifier
        right += int((logits.argmax(-1) == target).sum())
        total += len(target)
    return right / total


def main(model: str, photos: Path, pruner: Path, batch_size: int = 32) -> None:
    """Prints top-1, dense and pruned.

    Args:
        model: ``local-dir:PATH``, or on the Hub ``hf-hub:ORG/NAME``.
        photos: Folder with one sub-folder per class.
        pruner: Folder that ``patchranking fit`` wrote for this model.
        batch_size: Images of a batch.
    """
    clip, preprocess = open_clip.create_model_from_pretrained(model)
    data = ImageFolder(str(photos), preprocess)
    names = [name.replace("_", " ") for name in data.classes]
    templates = open_clip.SIMPLE_IMAGENET_TEMPLATES
    classifier = open_clip.build_zero_shot_classifier(clip.eval(), open_clip.get_tokenizer(model), names, templates)
    images = DataLoader(data, batch_size)
    print(f"dense: top-1 {top1(clip, classifier, images):.1%} of {len(data)} images")
    with patchranking.Pruner.from_pretrained(pruner).attached(clip) as fitted:
        print(f"{fitted.keep:.0%} of the patches: top-1 {top1(clip, classifier, images):.1%} of {len(data)} images")


if __name__ == "__main__":
    auto_cli(main)
