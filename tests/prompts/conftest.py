from __future__ import annotations

import open_clip
import pytest
import torch

from patchranking import as_text_tower, load_model


@pytest.fixture(scope="session")
def demo():
    return load_model("demo")


@pytest.fixture(params=["transformers", "open_clip", "open_clip-custom-text"])
def text(request, demo):
    """Text sides of every kind, with their tokenizers."""
    if request.param == "transformers":
        return demo.text
    torch.manual_seed(0)
    vision_cfg = {"image_size": 32, "patch_size": 8, "width": 32, "head_width": 16, "layers": 2}
    text_cfg = {"context_length": 24, "vocab_size": 49408, "width": 16, "heads": 2, "layers": 3}
    kind = open_clip.CLIP if request.param == "open_clip" else open_clip.CustomTextCLIP
    model = kind(embed_dim=24, vision_cfg=vision_cfg, text_cfg=text_cfg).eval().requires_grad_(False)
    return as_text_tower(model, open_clip.SimpleTokenizer(context_length=24))


def embedded(text, phrase):
    """The embedding of a phrase, without start and end."""
    ids = text.tokenize([phrase, ""])
    return text.embedding(ids[0][~torch.isin(ids[0], ids[1])]).detach()
