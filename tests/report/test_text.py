from __future__ import annotations

import pytest

from patchranking.report.text import model_name, signed, span


@pytest.mark.parametrize(
    ("model", "name"),
    [
        ("demo", "demo"),
        ("open_clip:ViT-B-16/openai", "ViT-B-16/openai"),
        ("open_clip:local-dir:/data/models/photo-clip-s14/", "photo-clip-s14"),
        ("open_clip:local-dir:photo-clip", "photo-clip"),
        ("hf:openai/clip-vit-base-patch32", "openai/clip-vit-base-patch32"),
        ("hf:./models/mine", "mine"),
        ("hf:~/mine", "mine"),
        ("timm:vit_base_patch16_clip_224.openai", "vit_base_patch16_clip_224.openai"),
    ],
)
def test_a_model_is_called_by_its_name_and_not_by_its_path(model: str, name: str) -> None:
    assert model_name(model) == name


def test_changes_have_signs() -> None:
    assert [signed(value) for value in (1.24, -0.04, 0.0, -3.0)] == ["+1.2", "0.0", "0.0", "−3.0"]
    assert span([-0.5, 1.0]) == "−0.5 to +1.0"
    assert span(None) == ""
