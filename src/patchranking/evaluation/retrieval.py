"""Recall of retrieval between pictures and their captions."""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["found", "recall"]

_ROWS = 1024


def recall(images: Tensor, texts: Tensor, owner: Tensor, k: int) -> tuple[float, float]:
    """Recall at k both ways, in percent.

    Args:
        images: Unit features ``(images, features)``.
        texts: Unit features of all captions, ``(texts, features)``.
        owner: Number of each caption's image, ``(texts,)``.
        k: How many answers count.

    Returns:
        Share of the captions whose image is among the first k pictures, and share of the images of which a caption is
        among the first k captions.
    """
    to_image, to_text = found(images, texts, owner, k)
    return 100 * to_image.float().mean().item(), 100 * to_text.float().mean().item()


def found(images: Tensor, texts: Tensor, owner: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """Whether each caption finds its image, ``(texts,)``, and each image a caption of its own, ``(images,)``.

    The arguments are those of ``recall``.
    """
    k_images, k_texts = min(k, len(images)), min(k, len(texts))
    answers = [
        (texts[first : first + _ROWS] @ images.T).topk(k_images, dim=1).indices for first in range(0, len(texts), _ROWS)
    ]
    to_image = (torch.cat(answers) == owner.unsqueeze(1)).any(1)
    numbers = torch.arange(len(images), device=images.device)
    answers = [
        owner[(images[first : first + _ROWS] @ texts.T).topk(k_texts, dim=1).indices]
        for first in range(0, len(images), _ROWS)
    ]
    return to_image, (torch.cat(answers) == numbers.unsqueeze(1)).any(1)
