from __future__ import annotations

from typing import Any

import pytest
import timm
import torch

from patchranking.towers import as_tower

SMALL: dict[str, Any] = {"img_size": 32, "patch_size": 4, "embed_dim": 32, "depth": 2, "num_heads": 2}


@pytest.fixture
def vit():
    """A small timm ViT of 32 x 32 pixels with 8 x 8 patches of 4, random weights and no head."""
    torch.manual_seed(0)
    return timm.create_model("vit_tiny_patch16_224", num_classes=0, **SMALL)


@pytest.fixture
def vit_tower(vit):
    return as_tower(vit)
