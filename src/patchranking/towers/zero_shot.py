"""Zero-shot classification with prompt templates."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from patchranking.errors import UserError

__all__ = ["class_features"]


@torch.no_grad()
def class_features(
    encode_text: Callable[[list[str]], Tensor], class_names: Sequence[str], templates: Sequence[str]
) -> Tensor:
    """One unit vector per class: the mean over templates of normalised prompt features (CLIP, section 3.1.4).

    Args:
        encode_text: Turns texts into normalised features.
        class_names: Natural names.
        templates: Prompts with one ``{}`` for the name.

    Returns:
        ``(classes, features)``.

    Raises:
        UserError: If a template has no ``{}``.
    """
    for template in templates:
        if template.count("{}") != 1:
            raise UserError(f"A template needs exactly one {{}} where the class name goes, unlike '{template}'.")
    per_template = [encode_text([template.format(name) for name in class_names]) for template in templates]
    return F.normalize(torch.stack(per_template).mean(0).float(), dim=-1)
