from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch.nn import functional as F

from patchranking.embedding import search as module
from patchranking.embedding.search import pictures as shown
from patchranking.embedding.search import search
from patchranking.methods.attach import attachable
from patchranking.pruner import Pruner
from patchranking.pruning.schedule import Schedule


def test_words_find_what_the_text_encoder_is_nearest_to(tiny, embedded, expected):
    found = search(embedded("out"), "a red car", 3, tiny)
    words = tiny.text(["a red car"])[0]
    cosines = {key: F.cosine_similarity(words, torch.tensor(vector), dim=0).item() for key, vector in expected.items()}
    assert [one.key for one in found] == sorted(cosines, key=cosines.get, reverse=True)[:3]
    assert [one.similarity for one in found] == pytest.approx([cosines[one.key] for one in found], abs=1e-5)


@pytest.mark.parametrize("how", ["dense", "pruner", "cls-attention"])
def test_a_picture_finds_itself_by_the_encoder_that_made_the_vectors(tiny, embedded, pictures, how):
    given = {
        "dense": None,
        "pruner": Pruner.unfitted(tiny.tower, "tiny", Schedule({1: 0.75, 3: 0.5})),
        "cls-attention": attachable("cls-attention"),
    }[how]
    settings = {} if given is None else {"keep": 0.3}
    folder = embedded("out", pruner=given, **settings)
    found = search(folder, pictures / "sub/good3.png", 2, tiny)
    assert found[0].key == "sub/good3.png"
    assert found[0].similarity == pytest.approx(1, abs=1e-5)
    assert found[1].similarity < found[0].similarity


def test_the_model_is_the_one_of_the_manifest(tiny, embedded, monkeypatch):
    loaded = []
    monkeypatch.setattr(module, "open_model", lambda name: loaded.append(name) or tiny)
    folder = embedded("out")
    assert len(search(folder, "a cat")) == 8
    assert loaded == ["tiny"]
    next(iter(tiny.tower.identity())).data.add_(1)
    for query in ("a cat", Path("cat.png")):
        with pytest.raises(module.UserError, match="'tiny' is not what made these vectors"):
            search(folder, query)


def test_mistakes_are_said(tiny, embedded, pictures):
    folder = embedded("out")
    with pytest.raises(module.UserError, match=r"torn.png' cannot be looked for: .*OSError"):
        search(folder, pictures / "torn.png", model=tiny)
    with pytest.raises(module.UserError, match="'k' is a whole number, 1 or more"):
        search(folder, "a cat", 0, tiny)
    with pytest.raises(module.UserError, match="no text encoder: look for images"):
        search(folder, "a cat", model=replace(tiny, text=None))


def test_pictures_come_as_they_are_or_with_a_reason(tiny, embedded, pictures):
    folder = embedded("out")
    found = search(folder, "a cat", 8, tiny)
    (pictures / found[1].key).unlink()
    images = shown(folder, found)
    assert "No such file" in images.pop(1)
    assert [image.width - 40 for image in images] == [int(one.key[-5]) for one in found if one is not found[1]]
    pictures.rename(pictures.with_name("elsewhere"))
    assert all("pictures" in why for why in shown(folder, found))
